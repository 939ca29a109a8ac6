"""What the machinery of a sweep costs when training costs nothing, ours and the stock recipe.

    make bench-overhead

Trials of at most a few epochs of 20 ms each, two at once, in processes that import torch, as real
ones do:

* idle seconds of a slot for each trial: slots times wall time from the first epoch to the last,
  less the epochs themselves;
* processor time of the driver for a trial, around the 50th and the 1,000th of one sweep, and for a
  report, from trials of few and of many epochs;
* memory of the driver, resident, after 50 and after 1,000 trials.

Stock is `OptunaSearch`, `ASHAScheduler` and a function, as their documentation shows them. Its
processes start anew for every trial; for 1,000 trials that would take an hour, so there they are
used again (`reuse_actors`), which is kind to it. Each run is a process of its own.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import Cell, Event, Log
from kdtune.tuning.cluster.placement import Need, Slots
from kdtune.tuning.cluster.session import ENVIRONMENT, LivingNodes, run_trials
from kdtune.tuning.scheduling.scheduler import Schedule
from kdtune.tuning.scheduling.search_policy import Search
from kdtune.tuning.scheduling.searcher import Queue
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.trainable import TrialProcess

SLOTS = 2
EPOCH = 0.02
"""Seconds."""


class Meter:
    """Samples the driver at the end of every trial, and adds up what trials did."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self.busy, self.first, self.last, self.reports = 0.0, float("inf"), 0.0, 0

    def epoch(self, begun: float, ended: float) -> None:
        """Take an epoch's times, on the clock of its process."""
        self.busy += ended - begun
        self.first, self.last = min(self.first, begun), max(self.last, ended)
        self.reports += 1

    def trial(self) -> None:
        """Take the end of a trial."""
        self.samples.append((time.process_time(), psutil.Process().memory_info().rss))

    def figures(self) -> dict[str, float]:
        """Idle seconds a trial; driver's milliseconds a trial and memory, early and late."""
        count = len(self.samples)

        def milliseconds(last: int) -> float:
            first = max(0, last - 40)
            spent = self.samples[last - 1][0] - self.samples[first][0]
            return 1000 * spent / (last - 1 - first)

        return {
            "trials": count,
            "reports": self.reports,
            "idle_seconds": (SLOTS * (self.last - self.first) - self.busy) / count,
            "early_ms": milliseconds(min(60, count)),
            "late_ms": milliseconds(count),
            "early_mb": self.samples[min(50, count) - 1][1] / 1e6,
            "late_mb": self.samples[-1][1] / 1e6,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }


def train(epochs: int, lr: float) -> Generator[dict[str, Any], None, None]:
    """A training that is none; the accuracy follows from the learning rate."""
    accuracy = 1 / (1 + abs(math.log(lr / 0.03)))
    for epoch in range(1, epochs + 1):
        begun = time.time()
        time.sleep(EPOCH)
        figures = {"epoch": epoch, "validation_accuracy": accuracy}
        figures["best_validation_accuracy"] = accuracy
        yield {**figures, "seconds": EPOCH, "train_loss": begun, "validation_loss": time.time()}


class Nothing(TrialProcess):
    """A trial of ours that trains nothing."""

    def results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[dict[str, Any], None, None]:
        """See `train`."""
        return train(config["epochs"], config["lr"])


def nothing(config: dict[str, Any]) -> None:
    """The same as a function."""
    torch.set_num_threads(1)
    for result in train(config["epochs"], config["lr"]):
        tune.report(result)


def run_ours(trials: int, epochs: int, folder: Path, meter: Meter, sampler: str) -> None:
    """Run one cell as a sweep does, with its log."""
    given = {"name": "n", "data": "d", "methods": ["at"], "models": ["A"], "baselines": False}
    sweep = SweepConfig.check({**given, "trials": trials, "epochs": epochs, "sampler": sampler})

    def count(event: Event) -> None:
        if event["event"] == "epoch":
            meter.epoch(event["train_loss"], event["validation_loss"])
        elif event["event"] == "ended":
            meter.trial()

    def configure(cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
        about = {"method": cell[0], "model": cell[1], "epochs": epochs}
        return TrainConfig.check({**settings, **about})

    decisions = Search(sweep, load_spaces(), configure)
    with Log(folder / "log.jsonl", [*decisions.folds, count]) as log:
        slots = Slots({"A": Need()}, LivingNodes(), SLOTS)
        queue = Queue(decisions, log.append, slots)
        schedule = Schedule(decisions, log.append, slots)
        run_trials(Nothing, queue, schedule, decisions.watch)


class Count(tune.Callback):
    """Gives the meter what Tune sees."""

    def __init__(self, meter: Meter):
        self.meter = meter

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        """Take an epoch."""
        self.meter.epoch(result["train_loss"], result["validation_loss"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Take a trial."""
        self.meter.trial()


def run_stock(trials: int, epochs: int, folder: Path, meter: Meter, reuse: bool) -> None:
    """Run the same search with what Ray Tune brings along."""
    os.environ.update({"RAY_AIR_NEW_OUTPUT": ENVIRONMENT["RAY_AIR_NEW_OUTPUT"]})
    metric = {"metric": "validation_accuracy", "mode": "max"}
    space = load_spaces()["at"].distributions
    tune.Tuner(
        nothing,
        param_space={"epochs": epochs},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space=space, seed=0, **metric),
            scheduler=ASHAScheduler(max_t=epochs, **metric),
            num_samples=trials,
            max_concurrent_trials=SLOTS,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), callbacks=[Count(meter)], verbose=0),
    ).fit()


OURS, ALIKE = "kdtune", "kdtune, tpe"
STOCK, KIND = "stock", "stock, processes used again"
RUNS = [
    (OURS, 1000, 3),
    (ALIKE, 1000, 3),
    (STOCK, 50, 3),
    (KIND, 1000, 3),
    (ALIKE, 100, 30),
    (KIND, 100, 30),
]
"""Ways, trials and epochs of each; the second way has stock's sampler, so that the rest shows."""


def run(way: str, trials: int, epochs: int) -> dict[str, float]:
    """Run a sweep in this process."""
    meter = Meter()
    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        if way in (OURS, ALIKE):
            sampler = "tpe" if way == ALIKE else "auto"
            run_ours(trials, epochs, Path(folder), meter, sampler)
        else:
            run_stock(trials, epochs, Path(folder), meter, reuse=way == KIND)
    ray.shutdown()
    return meter.figures()


def main() -> None:
    """Run all of `RUNS`, each in a process of its own, and print tables."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "TRIALS", "EPOCHS"), help="a run alone")
    arguments = parser.parse_args()
    if arguments.one:
        way, trials, epochs = arguments.one
        print(json.dumps(run(way, int(trials), int(epochs))))
        return
    print("| way | trials | epochs of each | idle s a trial | driver ms a trial, early | late |"
          " driver MB after 50 | at the end |\n" + "|---" * 8 + "|")  # fmt: skip
    figures: dict[tuple[str, int], dict[str, float]] = {}
    for way, trials, epochs in RUNS:
        command = [sys.executable, __file__, "--one", way, str(trials), str(epochs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        of = figures[way, epochs] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {way} | {of['trials']} | {epochs} | {of['idle_seconds']:.3f} "
            f"| {of['early_ms']:.1f} | {of['late_ms']:.1f} "
            f"| {of['early_mb']:.0f} | {of['late_mb']:.0f} |",
            flush=True,
        )
    for way in (ALIKE, KIND):
        few, many = figures[way, 3], figures[way, 30]
        reports = many["reports"] / many["trials"] - few["reports"] / few["trials"]
        each = (many["late_ms"] - few["early_ms"]) / reports
        print(f"{way}: {each:.2f} ms of the driver for a report")
    ours = figures[OURS, 3]
    summary = {
        "idle_seconds": round(ours["idle_seconds"], 3),
        "driver_ms_per_trial_50": round(ours["early_ms"], 2),
        "driver_ms_per_trial_1000": round(ours["late_ms"], 2),
        "runs": [{"way": way, "epochs": n, **of} for (way, n), of in figures.items()],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
