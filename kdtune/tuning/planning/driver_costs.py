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

from kdtune.log.event_log import EventLog
from kdtune.log.events import (
    EpochFinished,
    EpochMetrics,
    Event,
    Observation,
    TrialEnded,
    TrialState,
    WarmStart,
)
from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import run_trials
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, Workplace
from kdtune.tuning.driver.preflight import PreparedSweep
from kdtune.tuning.driver.write_results import write_results
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.search.space import serialize_distributions
from kdtune.tuning.search.studies import CellStudies
from kdtune.tuning.trials.best_weights import CheckpointCleanup
from kdtune.tuning.trials.results import EpochReported, TrialResult
from kdtune.tuning.trials.trainable import TrialProcess

TRIALS_PER_SLOT, EPOCHS_PER_TRIAL, EPOCH_SECONDS = 4, 15, 0.03
"""Empty trials of each slot, their epochs, and the seconds of each of these."""

TRIAL_COUNTS = (0, 11, 25, 50, 100, 150, 200, 201, 500, 1000, 2000, 5000)
"""Trials of a cell after which a proposal is timed."""

MAX_PROPOSAL_SECONDS = 12.0
"""Seconds for that, at most but for one proposal; for more trials it is taken to grow alike."""

NUM_PENDING_RESULTS = 400
"""Results that Ray waits for at once where it is measured what each of them costs."""


@dataclass(frozen=True)
class DriverCosts:
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

    start_seconds: float
    report_seconds: float
    event_seconds: float
    trial_seconds: float
    event_seconds_per_trial: float
    tables_seconds: float
    memory_bytes: float
    epoch_bytes: float
    trial_bytes: float


class _IdleTrial(TrialProcess):
    """A trial whose epochs are short sleeps."""

    def iter_results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[TrialResult, None, None]:
        """What a trial gives."""
        for epoch in range(1, EPOCHS_PER_TRIAL + 1):
            time.sleep(EPOCH_SECONDS)
            accuracy = 0.123456789012345 + epoch / 1000
            metrics = EpochMetrics(
                epoch=epoch,
                lr=accuracy,
                train_loss=accuracy,
                train_accuracy=accuracy,
                validation_loss=accuracy,
                validation_accuracy=accuracy,
                best_validation_accuracy=accuracy,
                losses=dict.fromkeys(("classification", "kd", "feature"), accuracy),
                seconds=EPOCH_SECONDS,
                device="cpu",
                threads=1,
            )
            yield EpochReported(metrics=metrics)


class _DriverMeter:
    """What came when, and what the driver had worked until then.

    It works when its thread computes, and when it waits for the disk while it writes the log.
    """

    def __init__(self, log: EventLog):
        self.log = log
        self.samples: list[tuple[Event, float, float]] = []
        self._disk_seconds = 0.0

    def append(self, event: Event) -> None:
        """Write an event to the log and fold it."""
        cpu_before, started_at = time.thread_time(), time.perf_counter()
        self.log.append(event)
        self._disk_seconds += time.perf_counter() - started_at - (time.thread_time() - cpu_before)
        busy_seconds = time.thread_time() + self._disk_seconds
        self.samples.append((event, busy_seconds, time.perf_counter()))

    def epoch_seconds(self) -> float:
        """Of the driver, for an epoch."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return statistics.median(
            b[1] - a[1]
            for a, b in pairs
            if isinstance(a[0], EpochFinished) and isinstance(b[0], EpochFinished)
        )

    def trial_seconds(self) -> float:
        """Of the driver, for a trial without its epochs."""
        num_epochs = sum(isinstance(event, EpochFinished) for event, *_ in self.samples)
        epochs_seconds = self.epoch_seconds() * num_epochs
        num_trials = sum(isinstance(event, TrialEnded) for event, *_ in self.samples)
        busy_seconds = self.samples[-1][1] - self.samples[0][1]
        return max(0.0, busy_seconds - epochs_seconds) / num_trials

    def report_seconds(self) -> float:
        """Between two epochs of a trial, without the driver's part."""
        times: dict[str, list[float]] = defaultdict(list)
        for event, _, logged_at in self.samples:
            if isinstance(event, EpochFinished):
                times[event.trial_id].append(logged_at)
        gaps = [
            b - a
            for trial_times in times.values()
            for a, b in zip(trial_times, trial_times[1:], strict=False)
        ]
        return max(0.0, statistics.median(gaps) - EPOCH_SECONDS - self.epoch_seconds())


def measure_driver_costs(prepared: PreparedSweep, slots: Slots, folder: Path) -> DriverCosts:
    """Run empty trials in all slots; `folder` is for what they leave."""
    num_trials = TRIALS_PER_SLOT * slots.count
    [cell, *_] = prepared.sweep.cells()
    settings = {
        "epochs": EPOCHS_PER_TRIAL,
        "scheduler": "none",
        "sampler": "random",
        "trackers": (),
    }
    one_cell = {"methods": cell[:1], "models": cell[1:], "baselines": False, "warm_start": ()}
    budget = {
        "trials": num_trials,
        "total_epochs": None,
        "time_budget": None,
        "balance_by": "trials",
    }
    sweep = prepared.sweep.model_copy(
        update={
            **settings,
            **one_cell,
            **budget,
            "grace_period": EPOCHS_PER_TRIAL,
            "allow_duplicates": True,
        }
    )
    sweep_folder = SweepFolder(folder / "sweep")
    sweep_folder.path.mkdir()
    policy = SearchPolicy(sweep, prepared.spaces, prepared.configure_trial)
    screen = Screen("quiet")
    workplace = Workplace(sweep_folder, screen)
    driver = Driver(workplace, policy, CheckpointCleanup(sweep_folder), "trials")
    opening_event = prepared.opening_event.model_copy(
        update={"config": sweep.model_dump(mode="json")}
    )
    with driver.open_log(sweep_folder.log_path) as log:
        log.append(opening_event)
        for tracker_fold in driver.tracker_folds:
            tracker_fold.start_logging()
        meter, size_before, started_at = (
            _DriverMeter(log),
            sweep_folder.log_path.stat().st_size,
            time.perf_counter(),
        )
        searcher = LogSearcher(policy, meter.append, slots, lambda line: None)
        scheduler = LogScheduler(policy, meter.append, slots)
        run_trials(_IdleTrial, searcher, scheduler, policy.watchdog)
        closing_seconds = time.perf_counter() - meter.samples[-1][2]
    for tracker_fold in driver.tracker_folds:
        tracker_fold.close()
    first_epoch = next(s for s in meter.samples if isinstance(s[0], EpochFinished))
    log_lines = sweep_folder.log_path.read_bytes()[size_before:].splitlines()
    epoch_line_bytes = [len(line) + 1 for line in log_lines if b'"epoch_finished"' in line]
    trial_line_bytes = sum(len(line) + 1 for line in log_lines) - sum(epoch_line_bytes)
    tables_started_at = time.perf_counter()
    write_results(sweep_folder, "")
    return DriverCosts(
        start_seconds=first_epoch[2] - started_at - EPOCH_SECONDS,
        report_seconds=meter.report_seconds(),
        event_seconds=meter.epoch_seconds(),
        trial_seconds=meter.trial_seconds(),
        event_seconds_per_trial=_measure_pending_cost(),
        tables_seconds=closing_seconds + time.perf_counter() - tables_started_at,
        memory_bytes=psutil.Process().memory_info().rss,
        epoch_bytes=statistics.fmean(epoch_line_bytes)
        + _folder_bytes(sweep_folder.tensorboard_folder) / len(epoch_line_bytes),
        trial_bytes=trial_line_bytes / num_trials,
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@ray.remote(num_cpus=0, max_concurrency=2 * NUM_PENDING_RESULTS)
class _SleepActor:
    """Gives results of which many are waited for at once, as those of many trials are."""

    async def sleep(self, seconds: float) -> None:
        """Give one after some time."""
        await asyncio.sleep(seconds)


def _measure_pending_cost() -> float:
    """What Ray needs for each result that it waits for, whenever one of them is there."""
    actor = _SleepActor.remote()  # type: ignore[attr-defined]
    pending = {actor.sleep.remote(600.0) for _ in range(NUM_PENDING_RESULTS)}
    ready = actor.sleep.remote(0.0)
    ray.get(ready)

    def time_wait(other_refs: set[Any]) -> float:
        started_at = time.perf_counter()
        futures = list(other_refs)
        random.shuffle(futures)
        ray.wait([ready, *futures], num_returns=1, timeout=0.1)
        return time.perf_counter() - started_at

    few_pending, many_pending = (
        statistics.median(time_wait(o) for _ in range(30)) for o in (set(), pending)
    )
    ray.kill(actor)
    return max(0.0, many_pending - few_pending) / NUM_PENDING_RESULTS


def measure_proposal_times(prepared: PreparedSweep, max_trials: int) -> list[tuple[int, float]]:
    """Ask for proposals.

    Args:
        checked: the sweep.
        most: trials of a cell, as far as is known.

    Returns:
        Numbers of trials of a cell, and the seconds of the driver for a proposal after these: of
        the first cell, in a history of random points.
    """
    [cell, *_] = prepared.sweep.cells()
    space = replace(prepared.spaces[cell[0]], start_points=[])
    one_cell = {
        "methods": cell[:1],
        "models": cell[1:],
        "baselines": False,
        "allow_duplicates": True,
    }
    random_study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    observations: list[Observation] = []
    timings: list[tuple[int, float]] = []
    started_at = time.perf_counter()
    for count in TRIAL_COUNTS:
        while len(observations) < count:
            trial, _ = space.ask_study(random_study)
            observations.append(
                Observation(
                    trial_id=f"seen-{len(observations)}",
                    params=trial.params,
                    distributions=serialize_distributions(trial),
                    state=TrialState.FINISHED,
                    best_validation_accuracies=(random.Random(len(observations)).random(),),
                )
            )
        studies = CellStudies(prepared.sweep.model_copy(update=one_cell), {cell[0]: space})
        studies.fold(
            WarmStart(
                method=cell[0],
                model=cell[1],
                source="",
                observations=tuple(observations),
                start=(),
                reason="",
            )
        )
        seconds = []
        for number in range(2):  # the first one imports what it needs
            proposal_started_at = time.perf_counter()
            studies.propose(cell, f"asked-{number}")
            seconds.append(time.perf_counter() - proposal_started_at)
        timings.append((count, min(seconds)))
        if count >= max_trials or time.perf_counter() - started_at > MAX_PROPOSAL_SECONDS:
            break
    return timings
