"""Costs of a sweep's driver with a thousand running trials, without a thousand processes.

    python benchmarks/scale.py        # a part of make bench-plan

Ray Tune's loop, searcher, scheduler, log on the disk, folds, display and TensorBoard are those of
a sweep; only Ray's manager of processes is replaced, by one whose trials give their next result at
once. So the driver is always busy, and the time between two results is what it needs for one. Not
included is what Ray adds for each process that it waits for.
"""

import json
import random
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import ray
from overhead import make_driver, make_policy
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution import tune_controller

from kdtune.log.event_log import EventLog
from kdtune.log.events import EpochFinished, EpochMetrics, Event
from kdtune.runtime.environment import describe_environment
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.cluster.session import run_trials
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.trials.results import EpochReported, ProcessStarted, to_ray
from kdtune.tuning.trials.trial_process import TrialProcess

SLOTS = (10, 100, 1000)
TRIALS_PER_SLOT, EPOCHS = 2, 6


class InstantActorManager:
    """Ray's manager of actors as far as Tune needs it; there is no actor behind it."""

    def __init__(self, resource_manager: Any):
        self._events: deque[Callable[[], None]] = deque()
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[Any, Any]] = {}
        self._epochs: dict[TrackedActor, int] = {}
        self._added, self._nothing = 0, ray.put({})
        self._random = random.Random(0)

    def add_actor(
        self, cls: Any, resource_request: Any, kwargs: Any, on_start: Any, on_stop: Any, **_: Any
    ) -> TrackedActor:
        """Start a process."""
        self._added += 1
        actor = TrackedActor(self._added, on_start=on_start, on_stop=on_stop)

        def start() -> None:
            metrics = SimpleNamespace(remote=lambda **_: self._nothing)
            handle = SimpleNamespace(get_auto_filled_metrics=metrics)
            self._live_actors_to_ray_actors_resources[actor] = handle, None
            self._epochs[actor] = 0
            on_start(actor)

        self._events.append(start)
        return actor

    def schedule_actor_task(
        self, tracked_actor: TrackedActor, method_name: str, on_result: Any = None, **_: Any
    ) -> object:
        """Do a process's task at once."""
        if method_name == "reset":
            self._epochs[tracked_actor] = 0
            self._events.append(lambda: on_result(tracked_actor, True))
        elif method_name == "train":
            result = self._train(self._epochs[tracked_actor])
            self._epochs[tracked_actor] += 1
            self._events.append(lambda: on_result(tracked_actor, result))
        return object()

    def _train(self, epoch: int) -> dict[str, Any]:
        ray_fields: dict[str, Any] = {
            "training_iteration": epoch + 1, "time_total_s": 1.0, "pid": 1, "done": False,
            "node_ip": "127.0.0.1", "hostname": "node", "time_this_iter_s": 1.0, "config": {},
        }  # fmt: skip
        if epoch == 0:
            return {**ray_fields, **to_ray(ProcessStarted(node_id="node", pid=1))}
        value = self._random.uniform(0.3, 0.9)
        metrics = EpochMetrics(
            epoch=epoch, lr=value, train_loss=value, train_accuracy=value, validation_loss=value,
            validation_accuracy=value, best_validation_accuracy=value,
            losses=dict.fromkeys(("classification", "kd", "at"), value),
            seconds=1.0, device="cpu", threads=1,
        )  # fmt: skip
        return {**ray_fields, **to_ray(EpochReported(metrics=metrics))}

    def next(self, timeout: float | None = None) -> bool:
        """Take one event."""
        if not self._events:
            return False
        self._events.popleft()()
        return True

    def remove_actor(self, tracked_actor: TrackedActor, **_: Any) -> bool:
        """End a process."""
        known = self._live_actors_to_ray_actors_resources.pop(tracked_actor, None)
        if known is not None and tracked_actor._on_stop:
            self._events.append(lambda: tracked_actor._on_stop(tracked_actor))
        return known is not None

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Return True if it runs."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """None does."""
        return False

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Do nothing: a task is done at once."""

    def cleanup(self) -> None:
        """Nothing is left."""

    @property
    def num_live_actors(self) -> int:
        """Processes."""
        return len(self._live_actors_to_ray_actors_resources)

    num_total_actors = num_live_actors
    num_pending_actors = 0
    num_actor_tasks = 0


class CallTimer:
    """Adds up the time that calls take, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, timed."""

        def timed_call(*arguments: Any, **keywords: Any) -> Any:
            started_at = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[name] += time.perf_counter() - started_at

        return timed_call


def measure_driver_load(num_slots: int, folder: Path) -> dict[str, Any]:
    """Run a sweep in so many slots; milliseconds of the driver.

    Returns:
        ``epoch_ms``, between two epochs while all slots are at work and none ends; ``trial_ms``,
        for all else of a trial; ``parts``, milliseconds of named parts for an event of the log.
    """
    tune_controller.RayActorManager = InstantActorManager
    num_trials = TRIALS_PER_SLOT * num_slots
    policy, timer = make_policy(num_trials, EPOCHS, sampler="random"), CallTimer()
    driver, opening_event = make_driver(folder / str(num_slots), policy)
    for number in range(num_slots):  # as running trials have them
        (driver.folder.checkpoints_folder / f"at-A-{number:03d}").mkdir(parents=True)
    all_folds = [*policy.folds, driver.file_keeper.fold]
    all_folds += [tracker_fold.fold for tracker_fold in driver.tracker_folds]
    all_folds += [driver.progress.fold, driver.display.fold]
    all_slots = Slots({"A": ResourceRequest(1)}, lambda: [Node("node", num_slots)])
    folds = [timer.wrap(_fold_name(fold), fold) for fold in all_folds]
    times: list[tuple[type[Event], float]] = []
    with EventLog(driver.folder.log_path, folds) as log:
        log.append(opening_event)
        driver.file_keeper.activate()
        for tracker_fold in driver.tracker_folds:
            tracker_fold.start_logging()
        goal = Goal(dict.fromkeys(policy.sweep.cells(), num_trials))
        driver.display.start(goal, all_slots)
        log._write_line = timer.wrap("log on the disk", log._write_line)  # type: ignore[method-assign]
        policy.studies.propose = timer.wrap("ask", policy.studies.propose)  # type: ignore[method-assign]
        policy.watchdog.check_timeouts = timer.wrap("Watch", policy.watchdog.check_timeouts)  # type: ignore[method-assign]

        def append(event: Event) -> None:
            log.append(event)
            times.append((type(event), time.perf_counter()))

        scheduler = LogScheduler(policy, append, all_slots)
        timed_choose = timer.wrap("what is started next", scheduler.choose_trial_to_run)
        scheduler.choose_trial_to_run = timed_choose  # type: ignore[method-assign]
        started_at = time.perf_counter()
        run_trials(
            TrialProcess, LogSearcher(policy, append, all_slots), scheduler, policy.watchdog
        )
        total_seconds = time.perf_counter() - started_at
    for tracker_fold in driver.tracker_folds:
        tracker_fold.close()
    pairs = zip(times, times[1:], strict=False)
    gaps = sorted(b[1] - a[1] for a, b in pairs if a[0] is b[0] is EpochFinished)
    epoch_seconds, epochs = gaps[len(gaps) // 2], sum(kind is EpochFinished for kind, _ in times)
    parts = {
        name: 1000 * part_seconds / len(times) for name, part_seconds in timer.seconds.items()
    }
    return {
        "slots": num_slots,
        "trials": num_trials,
        "epoch_ms": 1000 * epoch_seconds,
        "trial_ms": 1000 * (total_seconds - epoch_seconds * epochs) / num_trials,
        "parts": {
            **parts,
            "Ray Tune and the rest": 1000 * total_seconds / len(times) - sum(parts.values()),
        },
    }


def _fold_name(fold: Any) -> str:
    owner = fold.__self__
    return getattr(owner, "name", type(owner).__name__)


def main() -> None:
    """Measure 10, 100 and 1,000 slots, and print a table and a JSON line."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ray.init(
        "local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = [measure_driver_load(slots, Path(folder)) for slots in SLOTS]
    ray.shutdown()
    print("| slots | trials | ms for an epoch | ms for a trial |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['slots']:,} | {row['trials']:,} | {row['epoch_ms']:.2f} "
              f"| {row['trial_ms']:.1f} |")  # fmt: skip
    print("\nms for an event of the log, by part:\n")
    print("| part | " + " | ".join(f"{row['slots']:,} slots" for row in rows) + " |")
    print("|---" * (1 + len(rows)) + "|")
    for part in sorted(rows[-1]["parts"], key=rows[-1]["parts"].get, reverse=True):
        shown = (f"{row['parts'].get(part, 0):.3f}" for row in rows)
        print(f"| {part} | {' | '.join(shown)} |")
    print(json.dumps({"driver": rows, "environment": describe_environment()}))


if __name__ == "__main__":
    main()
