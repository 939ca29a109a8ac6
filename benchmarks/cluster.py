"""Use of a cluster's slots while nodes die and join, with real Ray processes on one machine.

    python benchmarks/cluster.py --out occupancy.png

Three nodes with logical GPUs, of which kdtune takes one a trial, run a sweep of the digits; all
compute on this machine's cores, so trials are slower than on three machines, and their processes
take longer to start. When a third of the trials have ended all processes of a node are killed, and
when half of them have, a node is added. Printed are a table and one line of JSON: the share of
slot-seconds in which a trial had the slot, and in which it trained, from the first trial to the
last; and what was lost. The picture shows both over time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ray.cluster_utils import Cluster

from kdtune.log.events import EpochFinished, Event, TrialEnded, TrialProposed, TrialRestarted
from kdtune.log.folder import SweepFolder

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

NUM_NODES = 3
"""Each has a CPU and a logical GPU."""

Spans = list[tuple[float, float]]
"""Begin and end, in seconds since 1970."""


def slot_spans(events: Iterable[Event]) -> Spans:
    """Return when trials had slots: from their proposals or restarts to their ends."""
    started: dict[str, float] = {}
    spans = []
    for event in events:
        if isinstance(event, TrialProposed | TrialRestarted | TrialEnded):
            if event.trial_id in started:
                spans.append((started.pop(event.trial_id), event.time))
            if not isinstance(event, TrialEnded):
                started[event.trial_id] = event.time
    return spans


def epoch_spans(events: Iterable[Event]) -> Spans:
    """Return when trials were in an epoch."""
    return [(e.time - e.seconds, e.time) for e in events if isinstance(e, EpochFinished)]


def count_active(spans: Spans, times: np.ndarray) -> np.ndarray:
    """Return how many intervals contain each of the times."""
    begins, ends = np.sort(np.array(spans).reshape(-1, 2).T, axis=1)
    return np.searchsorted(begins, times, "right") - np.searchsorted(ends, times, "right")


def draw_occupancy(
    path: Path, times: np.ndarray, counts: dict[str, np.ndarray], node_events: Any
) -> None:
    """Draw how many slots there were, were held and trained over time."""
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    seconds = times - times[0]
    axes.fill_between(seconds, counts["held"], step="post", color="#c6dbef", label="held")
    axes.fill_between(
        seconds, counts["trained"], step="post", color="#2171b5", label="in an epoch"
    )
    axes.step(seconds, counts["slots"], where="post", color="black", label="slots")
    for (moment, label), side in zip(node_events, ("right", "left"), strict=True):
        axes.annotate(label, (moment - times[0], counts["slots"].max() + 0.2), ha=side)
    axes.set(xlabel="seconds", ylabel="trials", ylim=(0, counts["slots"].max() + 1.2))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the sweep, kill and add, and say how full the slots were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("occupancy.png"))
    parser.add_argument("--trials", type=int, default=18)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdtune-") as work_folder:
        sweep_folder, node_events = run_sweep(
            Path(work_folder), arguments.trials, arguments.epochs
        )
        events = sweep_folder.load_events()
    spans = slot_spans(events)
    times = np.arange(min(spans)[0], max(end for _, end in spans), 0.05)
    slots = np.full(len(times), NUM_NODES)
    for moment, label in node_events:
        slots[times >= moment] += 1 if "joins" in label else -1
    counts = {
        "slots": slots,
        "held": count_active(spans, times),
        "trained": count_active(epoch_spans(events), times),
    }
    draw_occupancy(arguments.out, times, counts, node_events)
    states = Counter(event.state for event in events if isinstance(event, TrialEnded))
    epochs = sum(isinstance(event, EpochFinished) for event in events)
    result = {
        "seconds": round(float(times[-1] - times[0]), 1),
        "slot_share": round(float(counts["held"].sum() / slots.sum()), 3),
        "epoch_share": round(float(counts["trained"].sum() / slots.sum()), 3),
        "trials": arguments.trials,
        "ended": dict(states),
        "restarts": sum(isinstance(event, TrialRestarted) for event in events),
        "epochs": epochs,
        "epochs_lost": arguments.trials * arguments.epochs - epochs,
    }
    for name, value in result.items():
        print(f"{name:14} {value}")
    print(json.dumps(result))


def run_sweep(work_folder: Path, trials: int, epochs: int) -> tuple[SweepFolder, Any]:
    """Run the sweep; gives it, and when a node was killed and when one was added."""
    cluster = Cluster()
    cluster.add_node(num_cpus=0, wait=False)
    node_resources = {"num_cpus": 1, "num_gpus": 1, "wait": False}
    nodes = [
        cluster.add_node(**node_resources, env_vars=_cache_environment(work_folder, n))
        for n in range(NUM_NODES)
    ]
    cluster.wait_for_nodes()
    flags = "sweep --name x --data digits --methods student --models MultiBranchNet"
    flags += f" --no-baselines --image-size 8 --trials {trials} --epochs {epochs}"
    flags += (
        f" --scheduler none --sampler random --setting device=cpu --storage {work_folder}/store"
    )
    command = [sys.executable, "-m", "kdtune", *flags.split(), "--address", cluster.address]
    sweep_folder, node_events = SweepFolder(work_folder / "results" / "x"), []
    try:
        with subprocess.Popen(command, cwd=work_folder, stdout=subprocess.DEVNULL) as driver:
            _wait_for_ended(driver, sweep_folder, trials / 3)
            cluster.remove_node(nodes[0], allow_graceful=False)
            node_events.append((time.time(), "a node dies"))
            _wait_for_ended(driver, sweep_folder, trials / 2)
            cluster.add_node(**node_resources, env_vars=_cache_environment(work_folder, NUM_NODES))
            node_events.append((time.time(), "one joins"))
        if driver.returncode:
            sys.exit("The sweep failed.")
    finally:
        cluster.shutdown()
    return sweep_folder, node_events


def _cache_environment(work_folder: Path, number: int) -> dict[str, str]:
    return {"KDTUNE_CACHE": str(work_folder / f"cache-{number}")}


def _wait_for_ended(
    driver: "subprocess.Popen[bytes]", sweep_folder: SweepFolder, min_ended: float
) -> None:
    """Wait until so many trials have ended."""
    while driver.poll() is None:
        events = sweep_folder.load_events() if sweep_folder.log_path.is_file() else []
        if sum(isinstance(event, TrialEnded) for event in events) >= min_ended:
            return
        time.sleep(0.1)
    sys.exit("The sweep ended too early.")


if __name__ == "__main__":
    main()
