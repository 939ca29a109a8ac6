"""Logs that are cut after each of their events: the policy of the search decides the rest again.

Recorded results take the place of training, so every prefix of a log is resumed in a moment.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdtune.log.event_log import EventLog, parse_events
from kdtune.log.events import (
    CacheUpdated,
    CellModelled,
    Completed,
    EpochFinished,
    EpochMetrics,
    Event,
    SweepResumed,
    SweepStarted,
    TrialEnded,
    TrialRestarted,
    TrialState,
)
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.scheduling.scheduler import STOP, LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.trials import results
from kdtune.tuning.trials.results import Failure

NOT_DECIDED = (SweepStarted, SweepResumed, CacheUpdated, CellModelled, Completed)
STAMPS = {"time", "session_seconds"}
FAILURES = {TrialState.DIVERGED: Failure.DIVERGED, TrialState.CRASHED: Failure.CRASHED}


def find_wrong_prefixes(log_path: Path, make_policy: Callable[[], SearchPolicy]) -> list[int]:
    """Return the lengths, in events, at which a cut log is continued otherwise than it was.

    Args:
        log_path: log of a whole search, with one trial at a time; a file beside it is written.
        make_policy: returns the policy of the search, new.
    """
    content, cut_path = log_path.read_bytes(), log_path.with_suffix(".cut")
    lines, (recorded, _) = content.splitlines(keepends=True), parse_events(content, log_path)
    wrong = []
    for length in range(1, len(recorded) + 1):
        cut_path.write_bytes(b"".join(lines[:length]))
        if _decided(_continue_log(cut_path, make_policy(), recorded)) != _decided(recorded):
            wrong.append(length)
    cut_path.unlink()
    return wrong


def _decided(log: Iterable[Event]) -> list[dict[str, Any]]:
    decided = (event for event in log if not isinstance(event, NOT_DECIDED))
    return [event.model_dump(mode="json", exclude=STAMPS) for event in decided]


def _continue_log(path: Path, policy: SearchPolicy, recorded: Sequence[Event]) -> list[Event]:
    """Resume a log to its end, and return all its events."""
    events: list[Event] = []
    slots = Slots(dict.fromkeys(policy.sweep.students, ResourceRequest(1)), lambda: [Node("n", 1)])
    with EventLog(path, [*policy.folds, events.append]) as log:
        started = events[0]
        assert isinstance(started, SweepStarted)
        log.append(SweepResumed(**started.model_dump(exclude={"kind"})))
        searcher = LogSearcher(policy, log.append, slots)
        scheduler = LogScheduler(policy, log.append, slots, lambda node: False)
        while isinstance(config := searcher.suggest(""), dict):
            trial: Any = SimpleNamespace(config=config, error_file=None)
            _answer(scheduler, trial, recorded, events)
    return events


def _answer(
    scheduler: LogScheduler, trial: Any, recorded: Iterable[Event], events: Sequence[Event]
) -> None:
    """Answer for the process of a trial, which repeats its epochs, and dies where one has died."""
    trial_id = trial.config["trial_id"]
    restarts = sum(isinstance(e, TrialRestarted) and e.trial_id == trial_id for e in events)

    def report(result: results.TrialResult) -> bool:
        return scheduler.on_trial_result(None, trial, results.to_ray(result)) == STOP

    if report(results.ProcessStarted(node_id="n", pid=os.getpid())):
        return
    for event in recorded:
        if getattr(event, "trial_id", None) != trial_id:
            continue
        match event:
            case EpochFinished():
                metrics = EpochMetrics(**event.model_dump())
                if report(results.EpochReported(metrics=metrics)):
                    return
            case TrialRestarted() if restarts:
                restarts -= 1
            case TrialRestarted():
                return scheduler.on_trial_error(None, trial)
            case TrialEnded(state=TrialState.DIVERGED | TrialState.CRASHED):
                failure = FAILURES[event.state]
                report(results.TrialFailed(failure=failure, reason=event.reason))
