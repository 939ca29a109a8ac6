"""Overhead of a sweep when training costs nothing: kdtune and the stock recipe.

    make bench-overhead

Trials of a few epochs of 20 ms, two at once, in processes that import torch, as real ones do:

* idle seconds of a slot per trial: slots times wall time from the first epoch to the last, minus
  the epochs themselves;
* processor time of the driver per trial, around the 50th and the 1,000th of one sweep, and per
  report, from trials of few and of many epochs;
* resident memory of the driver after 50 and after 1,000 trials;
* the constants of kdtune/tuning/planning/driver_costs.py, with a whole driver.

Stock is `OptunaSearch`, `ASHAScheduler` and a function, as their documentation shows them. Its
processes start anew for every trial; as that would take an hour for 1,000 trials, they are reused
there (`reuse_actors`), which favours it. Each run has a process of its own.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
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
from kdtune.log.event_log import EventLog
from kdtune.log.events import (
    CachePlan,
    Cell,
    DataSummary,
    EpochFinished,
    EpochMetrics,
    Event,
    SweepStarted,
    TrialEnded,
)
from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.placement import ResourceRequest, Slots
from kdtune.tuning.cluster.session import LivingNodes, run_trials
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, Workplace
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.best_weights import CheckpointCleanup
from kdtune.tuning.trials.results import EpochReported, TrialResult
from kdtune.tuning.trials.trial_process import TrialProcess

SLOTS = 2
EPOCH_SECONDS = 0.02
DRIVER_TRIALS, DRIVER_EPOCHS = 8, 15
"""Trials, and epochs of each, from which the constants of the driver are measured."""


class OverheadMeter:
    """Samples the driver at the end of every trial, and adds up what trials did."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self.epoch_seconds, self.num_reports = 0.0, 0
        self.first_start, self.last_end = float("inf"), 0.0

    def add_epoch(self, started: float, ended: float) -> None:
        """Take an epoch's times, on the clock of its process."""
        self.epoch_seconds += ended - started
        self.first_start, self.last_end = min(self.first_start, started), max(self.last_end, ended)
        self.num_reports += 1

    def add_trial(self) -> None:
        """Take the end of a trial."""
        self.samples.append((time.process_time(), psutil.Process().memory_info().rss))

    def summarize(self) -> dict[str, float]:
        """Idle seconds a trial; driver's milliseconds a trial and memory, early and late."""
        count = len(self.samples)

        def milliseconds(last_index: int) -> float:
            first_index = max(0, last_index - 40)
            spent = self.samples[last_index - 1][0] - self.samples[first_index][0]
            return 1000 * spent / (last_index - 1 - first_index)

        idle_seconds = SLOTS * (self.last_end - self.first_start) - self.epoch_seconds
        return {
            "trials": count,
            "reports": self.num_reports,
            "idle_seconds": idle_seconds / count,
            "early_ms": milliseconds(min(60, count)),
            "late_ms": milliseconds(count),
            "early_mb": self.samples[min(50, count) - 1][1] / 1e6,
            "late_mb": self.samples[-1][1] / 1e6,
        }


def idle_results(epochs: int, lr: float) -> Generator[dict[str, Any], None, None]:
    """Yield results of epochs that only sleep; the accuracy follows from the learning rate."""
    accuracy = 1 / (1 + abs(math.log(lr / 0.03)))
    for epoch in range(1, epochs + 1):
        started = time.time()
        time.sleep(EPOCH_SECONDS)
        yield {
            "epoch": epoch, "validation_accuracy": accuracy, "best_validation_accuracy": accuracy,
            "seconds": EPOCH_SECONDS, "train_loss": started, "validation_loss": time.time(),
            "lr": lr, "train_accuracy": accuracy,
            "losses": dict.fromkeys(("classification", "kd", "at"), accuracy),
            "device": "cpu", "threads": 1,
        }  # fmt: skip


class IdleTrial(TrialProcess):
    """A trial of kdtune that trains nothing."""

    def iter_results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[TrialResult, None, None]:
        """Yield the results of idle epochs."""
        for result in idle_results(config["epochs"], config["lr"]):
            yield EpochReported(metrics=EpochMetrics(**result))


def train_idle(config: dict[str, Any]) -> None:
    """Report the same results from a function."""
    torch.set_num_threads(1)
    for result in idle_results(config["epochs"], config["lr"]):
        tune.report(result)


def make_policy(trials: int, epochs: int, **settings: Any) -> SearchPolicy:
    """Return the policy of a sweep of one cell."""
    fixed = {"method": "at", "model": "A", "epochs": epochs}
    sweep = SweepConfig.parse({
        "name": "n", "data": "d", "methods": ["at"], "models": ["A"], "baselines": False,
        "trials": trials, "epochs": epochs, **settings,
    })  # fmt: skip

    def configure(cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
        return TrainConfig.parse({**settings, **fixed})

    return SearchPolicy(sweep, load_spaces(), configure)


def make_driver(folder: Path, policy: SearchPolicy) -> tuple[Driver, SweepStarted]:
    """Return a driver in a new folder, and the event that opens its log."""
    folder.mkdir()
    sweep_folder = SweepFolder(folder)
    cleanup, screen = CheckpointCleanup(sweep_folder), Screen("quiet")
    driver = Driver(Workplace(sweep_folder, screen), policy, cleanup, "trials")
    data = DataSummary(
        classes=("a", "b"), train_images=2, validation_images=2, test_images=0,
        fingerprint="", test_fingerprint="",
    )  # fmt: skip
    return driver, SweepStarted(
        config=policy.sweep.model_dump(mode="json"), data=data, teacher=None, environment={},
        cache=CachePlan(methods=(), augment_views=0, num_bytes=0), spaces={},
    )  # fmt: skip


def run_kdtune(trials: int, epochs: int, folder: Path, meter: OverheadMeter, sampler: str) -> None:
    """Run one cell as a sweep does, with its log."""
    policy = make_policy(trials, epochs, sampler=sampler)

    def count_event(event: Event) -> None:
        if isinstance(event, EpochFinished):
            meter.add_epoch(event.train_loss, event.validation_loss)
        elif isinstance(event, TrialEnded):
            meter.add_trial()

    with EventLog(folder / "log.jsonl", [*policy.folds, count_event]) as log:
        slots = Slots({"A": ResourceRequest()}, LivingNodes(), SLOTS)
        searcher = LogSearcher(policy, log.append, slots)
        scheduler = LogScheduler(policy, log.append, slots)
        run_trials(IdleTrial, searcher, scheduler, policy.watchdog)


def measure_driver(folder: Path) -> dict[str, float]:
    """Return the constants of kdtune/tuning/planning/driver_costs.py."""
    policy = make_policy(DRIVER_TRIALS, DRIVER_EPOCHS, scheduler="none", sampler="random")
    driver, opening_event = make_driver(folder / "driver", policy)
    samples: list[tuple[Event, float, float]] = []  # with the driver's work and the time
    disk_seconds = 0.0
    with driver.open_log(driver.folder.log_path) as log:

        def append(event: Event) -> None:
            nonlocal disk_seconds
            cpu_before, started_at = time.thread_time(), time.perf_counter()
            log.append(event)
            cpu_seconds = time.thread_time() - cpu_before
            disk_seconds += time.perf_counter() - started_at - cpu_seconds
            samples.append((event, time.thread_time() + disk_seconds, time.perf_counter()))

        log.append(opening_event)
        for tracker_fold in driver.tracker_folds:
            tracker_fold.start_logging()
        slots = Slots({"A": ResourceRequest()}, LivingNodes(), SLOTS)
        searcher, scheduler = (part(policy, append, slots) for part in (LogSearcher, LogScheduler))
        run_trials(IdleTrial, searcher, scheduler, policy.watchdog)
    for tracker_fold in driver.tracker_folds:
        tracker_fold.close()
    driver.workplace.write_results()
    tables_seconds = time.perf_counter() - samples[-1][2]
    times_by_trial, work = defaultdict(list), list[float]()
    for (event, before, _), (following, after, logged_at) in zip(
        samples, samples[1:], strict=False
    ):
        if isinstance(following, EpochFinished):
            times_by_trial[following.trial_id].append(logged_at)
            work += [after - before] * isinstance(event, EpochFinished)
    gaps = [b - a for t in times_by_trial.values() for a, b in zip(t, t[1:], strict=False)]
    event_seconds, num_epochs = statistics.median(work), DRIVER_TRIALS * DRIVER_EPOCHS
    log_lines = driver.folder.log_path.read_bytes().splitlines(keepends=True)
    log_bytes = sum(len(line) for line in log_lines if b'"epoch_finished"' in line)
    trackers = [path for path in driver.folder.tensorboard_folder.rglob("*") if path.is_file()]
    total_work = samples[-1][1] - samples[0][1]
    return {
        "REPORT_SECONDS": statistics.median(gaps) - EPOCH_SECONDS - event_seconds,
        "EVENT_SECONDS": event_seconds,
        "TRIAL_SECONDS": (total_work - event_seconds * num_epochs) / DRIVER_TRIALS,
        "TABLES_SECONDS": tables_seconds,
        "EPOCH_BYTES": (log_bytes + sum(p.stat().st_size for p in trackers)) / num_epochs,
        "TRIAL_BYTES": (sum(map(len, log_lines[1:])) - log_bytes) / DRIVER_TRIALS,
    }


class MeterCallback(tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Gives the meter what Tune sees."""

    def __init__(self, meter: OverheadMeter):
        self.meter = meter

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        """Take an epoch."""
        self.meter.add_epoch(result["train_loss"], result["validation_loss"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Take a trial."""
        self.meter.add_trial()


def run_stock(trials: int, epochs: int, folder: Path, meter: OverheadMeter, reuse: bool) -> None:
    """Run the same search with what Ray Tune brings along."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer reporter prints even when it is silenced
    metric = {"metric": "validation_accuracy", "mode": "max"}
    space = load_spaces()["at"].distributions
    tune.Tuner(
        train_idle,
        param_space={"epochs": epochs},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space=space, seed=0, **metric),
            scheduler=ASHAScheduler(max_t=epochs, **metric),
            num_samples=trials,
            max_concurrent_trials=SLOTS,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder), callbacks=[MeterCallback(meter)], verbose=0
        ),
    ).fit()


KDTUNE, KDTUNE_TPE = "kdtune", "kdtune, tpe"
STOCK, STOCK_REUSED, DRIVER = "stock", "stock, processes used again", "driver"
RUNS = [
    (KDTUNE, 1000, 3),
    (KDTUNE_TPE, 1000, 3),
    (STOCK, 50, 3),
    (STOCK_REUSED, 1000, 3),
    (KDTUNE_TPE, 100, 30),
    (STOCK_REUSED, 100, 30),
]
"""Ways, trials and epochs of each; the second way has stock's sampler, so that the rest shows."""


def run(way: str, trials: int, epochs: int) -> dict[str, float]:
    """Run a sweep, or measure the constants of the driver, in this process."""
    meter = OverheadMeter()
    ray.init(
        "local",
        num_cpus=SLOTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    with tempfile.TemporaryDirectory() as folder:
        if way == DRIVER:
            return measure_driver(Path(folder))
        if way in (KDTUNE, KDTUNE_TPE):
            sampler = "tpe" if way == KDTUNE_TPE else "auto"
            run_kdtune(trials, epochs, Path(folder), meter, sampler)
        else:
            run_stock(trials, epochs, Path(folder), meter, reuse=way == STOCK_REUSED)
    ray.shutdown()
    return meter.summarize()


def run_in_process(way: str, trials: int, epochs: int) -> dict[str, float]:
    """Do the same in a process of its own."""
    command = [sys.executable, __file__, "--one", way, str(trials), str(epochs)]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    return result


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
        row = figures[way, epochs] = run_in_process(way, trials, epochs)
        print(
            f"| {way} | {row['trials']} | {epochs} | {row['idle_seconds']:.3f} "
            f"| {row['early_ms']:.1f} | {row['late_ms']:.1f} "
            f"| {row['early_mb']:.0f} | {row['late_mb']:.0f} |",
            flush=True,
        )
    constants = run_in_process(DRIVER, DRIVER_TRIALS, DRIVER_EPOCHS)
    print("\n".join(f"{name} = {value:.3g}" for name, value in constants.items()))
    for way in (KDTUNE_TPE, STOCK_REUSED):
        short_trials, long_trials = figures[way, 3], figures[way, 30]
        reports = (
            long_trials["reports"] / long_trials["trials"]
            - short_trials["reports"] / short_trials["trials"]
        )
        report_ms = (long_trials["late_ms"] - short_trials["early_ms"]) / reports
        print(f"{way}: {report_ms:.2f} ms of the driver for a report")
    ours = figures[KDTUNE, 3]
    summary = {
        "idle_seconds": round(ours["idle_seconds"], 3),
        "driver_ms_per_trial_50": round(ours["early_ms"], 2),
        "driver_ms_per_trial_1000": round(ours["late_ms"], 2),
        "runs": [{"way": way, "epochs": n, **row} for (way, n), row in figures.items()],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
