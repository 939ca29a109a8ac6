"""What a sweep's driver costs, measured for `kdtune plan` with trials that train nothing.

They run as a sweep's do, with its log, its folds, TensorBoard and Ray Tune, but in no results
folder. W&B and MLflow, if they are wanted, are left out, and so are what they cost.
"""

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import ray

from kdtune.log.events import Event, Log
from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import run_trials
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver
from kdtune.tuning.driver.outputs import write_outputs
from kdtune.tuning.driver.preflight import Checked
from kdtune.tuning.scheduling.scheduler import Schedule
from kdtune.tuning.scheduling.search_policy import Search
from kdtune.tuning.scheduling.searcher import Queue
from kdtune.tuning.search.space import distributions_of
from kdtune.tuning.search.studies import Studies
from kdtune.tuning.trials.best_networks import Leftovers
from kdtune.tuning.trials.trainable import TrialProcess

TRIALS, EPOCHS, EPOCH = 4, 15, 0.03
"""Empty trials of each slot, their epochs, and the seconds of each of these."""

COUNTS = (0, 11, 25, 50, 100, 150, 200, 201, 500, 1000, 2000, 5000)
"""Trials of a cell after which a proposal is timed."""

ASKING = 12.0
"""Seconds for that, at most but for one proposal; for more trials it is taken to grow alike."""

WAITING = 400
"""Results that Ray waits for at once where it is measured what each of them costs."""


@dataclass(frozen=True)
class DriverMeasured:
    """What the driver costs, in seconds; and bytes of files.

    Attributes:
        start: until the first process is ready for a trial.
        report: between two epochs of a trial, without what the driver works for its result.
        event: of the driver for an epoch.
        trial: of the driver for all else of a trial, but its proposal.
        of_slot: of the driver, more for each event and trial at work.
        tables: at the end, until processes have ended and tables are written.
        memory: bytes of the driver.
        epoch_bytes: of the log and of TensorBoard for an epoch.
        trial_bytes: for all else of a trial.
    """

    start: float
    report: float
    event: float
    trial: float
    of_slot: float
    tables: float
    memory: float
    epoch_bytes: float
    trial_bytes: float


class _Empty(TrialProcess):
    """A trial whose epochs are short sleeps."""

    def results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[dict[str, Any], None, None]:
        """What a trial gives."""
        for epoch in range(1, EPOCHS + 1):
            time.sleep(EPOCH)
            accuracy = 0.123456789012345 + epoch / 1000
            parts = dict.fromkeys(("loss_classification", "loss_kd", "loss_feature"), accuracy)
            means = dict.fromkeys(("lr", "train_loss", "train_accuracy"), accuracy)
            measured = {"validation_loss": accuracy, "validation_accuracy": accuracy}
            best = {"best_validation_accuracy": accuracy, "seconds": EPOCH}
            where = {"epoch": epoch, "device": "cpu", "threads": 1}
            yield {**where, **means, **measured, **best, **parts}


class _Meter:
    """What came when, and what the driver had worked until then.

    It works when its thread computes, and when it waits for the disk while it writes the log.
    """

    def __init__(self, log: Log):
        self.log = log
        self.events: list[tuple[str, str, float, float]] = []
        self._writing = 0.0

    def append(self, event: Event) -> None:
        """Write an event to the log and fold it."""
        computed, started = time.thread_time(), time.perf_counter()
        self.log.append(event)
        self._writing += time.perf_counter() - started - (time.thread_time() - computed)
        spent = time.thread_time() + self._writing
        self.events.append((event["event"], event["trial_id"], spent, time.perf_counter()))

    def epoch_seconds(self) -> float:
        """Of the driver, for an epoch."""
        pairs = zip(self.events, self.events[1:], strict=False)
        return statistics.median(b[2] - a[2] for a, b in pairs if a[0] == b[0] == "epoch")

    def trial_seconds(self) -> float:
        """Of the driver, for a trial without its epochs."""
        of_epochs = self.epoch_seconds() * sum(event[0] == "epoch" for event in self.events)
        trials = sum(event[0] == "ended" for event in self.events)
        spent = self.events[-1][2] - self.events[0][2]
        return max(0.0, spent - of_epochs) / trials

    def report_seconds(self) -> float:
        """Between two epochs of a trial, without the driver's part."""
        times: dict[str, list[float]] = defaultdict(list)
        for kind, trial_id, _, now in self.events:
            if kind == "epoch":
                times[trial_id].append(now)
        between = [b - a for own in times.values() for a, b in zip(own, own[1:], strict=False)]
        return max(0.0, statistics.median(between) - EPOCH - self.epoch_seconds())


def measure_driver(checked: Checked, slots: Slots, folder: Path) -> DriverMeasured:
    """Run empty trials in all slots; `folder` is for what they leave."""
    trials = TRIALS * slots.count
    [cell, *_] = checked.sweep.cells()
    settings = {"epochs": EPOCHS, "scheduler": "none", "sampler": "random", "track": ()}
    alone = {"methods": cell[:1], "models": cell[1:], "baselines": False, "warm_start": ()}
    budget = {"trials": trials, "epochs_total": None, "time_budget": None, "equal": "trials"}
    sweep = checked.sweep.model_copy(
        update={**settings, **alone, **budget, "grace_period": EPOCHS, "repeats": True}
    )
    own = SweepFolder(folder / "sweep")
    own.path.mkdir()
    search = Search(sweep, checked.spaces, checked.configure)
    screen = Screen("quiet")
    driver = Driver(own, own.log, search, Leftovers(own), "trials", "", screen)
    opened = {**checked.opened, "config": sweep.model_dump(mode="json")}
    with driver.open_log() as log:
        log.append(opened)
        for tracked in driver.tracked:
            tracked.begin()
        meter, before, began = _Meter(log), own.log.stat().st_size, time.perf_counter()
        queue = Queue(search, meter.append, slots, lambda line: None)
        schedule = Schedule(search, meter.append, slots)
        run_trials(_Empty, queue, schedule, search.watch)
        closing = time.perf_counter() - meter.events[-1][3]
    for tracked in driver.tracked:
        tracked.close()
    first = next(event for event in meter.events if event[0] == "epoch")
    logged = own.log.read_bytes()[before:].splitlines()
    epochs = [len(line) + 1 for line in logged if b'"event": "epoch"' in line]
    of_trials = sum(len(line) + 1 for line in logged) - sum(epochs)
    started = time.perf_counter()
    write_outputs(own, "")
    return DriverMeasured(
        start=first[3] - began - EPOCH,
        report=meter.report_seconds(),
        event=meter.epoch_seconds(),
        trial=meter.trial_seconds(),
        of_slot=_of_slot(),
        tables=closing + time.perf_counter() - started,
        memory=psutil.Process().memory_info().rss,
        epoch_bytes=statistics.fmean(epochs) + _size(own.tensorboard) / len(epochs),
        trial_bytes=of_trials / trials,
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@ray.remote(num_cpus=0, max_concurrency=2 * WAITING)
class _Later:
    """Gives results of which many are waited for at once, as those of many trials are."""

    async def give(self, seconds: float) -> None:
        """Give one after some time."""
        await asyncio.sleep(seconds)


def _of_slot() -> float:
    """What Ray needs for each result that it waits for, whenever one of them is there."""
    later = _Later.remote()  # type: ignore[attr-defined]
    pending = {later.give.remote(600.0) for _ in range(WAITING)}
    ready = later.give.remote(0.0)
    ray.get(ready)

    def wait(others: set[Any]) -> float:
        started = time.perf_counter()
        futures = list(others)
        random.shuffle(futures)
        ray.wait([ready, *futures], num_returns=1, timeout=0.1)
        return time.perf_counter() - started

    few, many = (statistics.median(wait(o) for _ in range(30)) for o in (set(), pending))
    ray.kill(later)
    return max(0.0, many - few) / WAITING


def measure_proposals(checked: Checked, most: int) -> list[tuple[int, float]]:
    """Ask for proposals.

    Args:
        checked: the sweep.
        most: trials of a cell, as far as is known.

    Returns:
        Numbers of trials of a cell, and the seconds of the driver for a proposal after these: of
        the first cell, in a history of random points.
    """
    [cell, *_] = checked.sweep.cells()
    space = replace(checked.spaces[cell[0]], start=[])
    alone = {"methods": cell[:1], "models": cell[1:], "baselines": False, "repeats": True}
    random_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: list[dict[str, Any]] = []
    found: list[tuple[int, float]] = []
    began = time.perf_counter()
    for count in COUNTS:
        while len(seen) < count:
            trial, _ = space.ask(random_study)
            seen.append(
                {
                    "trial_id": f"seen-{len(seen)}",
                    "parameters": trial.params,
                    "distributions": distributions_of(trial),
                    "state": "finished",
                    "best_validation_accuracies": [random.Random(len(seen)).random()],
                }
            )
        studies = Studies(checked.sweep.model_copy(update=alone), {cell[0]: space})
        identity = {"event": "warm_start", "method": cell[0], "model": cell[1]}
        studies.fold({**identity, "observations": seen, "start": []})
        times = []
        for number in range(2):  # the first one imports what it needs
            started = time.perf_counter()
            studies.ask(cell, f"asked-{number}")
            times.append(time.perf_counter() - started)
        found.append((count, min(times)))
        if count >= most or time.perf_counter() - began > ASKING:
            break
    return found
