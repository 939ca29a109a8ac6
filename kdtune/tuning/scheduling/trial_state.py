"""The trials that were asked for and have not ended, and how often each was begun again.

A fold over the log. A trial is under way from its proposal to its end, whether a process works on
it or none: one whose process died, or whose driver did, waits here until it is handed out again.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kdtune.log.events import Event

PROCESS_DIED, STALLED, DEVICE_MEMORY, TRIAL_ERROR = "died", "stalled", "memory", "failed"
"""Causes of a restart: its process died; it made no progress; its device had too little memory; it
failed by itself."""

NODE_LOST, MISPLACED = "lost", "misplaced"
"""Further ones: its node was lost; it came to a node that gets no trials."""


@dataclass
class ActiveTrial:
    """A trial under way: how it was asked for, its last epoch, its restarts by cause.

    The loss of a node does not count where the trial had finished an epoch since it was begun.
    """

    proposal: Event
    last_epoch_event: Event = field(default_factory=dict)
    restarts: Counter[str] = field(default_factory=Counter)
    epoch_at_start: int = 0

    @property
    def epoch(self) -> int:
        """Its last finished epoch, 0 before the first."""
        return self.last_epoch_event.get("epoch", 0)

    @property
    def exclusive(self) -> bool:
        """Whether it gets a device to itself."""
        return self.restarts[DEVICE_MEMORY] > 0

    def count_restart(self, cause: str) -> None:
        """Count a restart."""
        if cause != NODE_LOST or self.epoch == self.epoch_at_start:
            self.restarts[cause] += 1
        self.epoch_at_start = self.epoch

    def make_event(self, kind: str, **fields: Any) -> Event:
        """An event about this trial."""
        identity = {key: self.proposal[key] for key in ("trial_id", "method", "model")}
        return {"event": kind, **identity, **fields}

    def make_end_event(self, state: str, reason: str) -> Event:
        """The event of its end."""
        best = self.last_epoch_event.get("best_validation_accuracy")
        figures = {"epochs": self.epoch, "best_validation_accuracy": best}
        return self.make_event("ended", state=state, reason=reason, **figures)


class ActiveTrials:
    """All trials under way, by id."""

    def __init__(self) -> None:
        self.by_id: dict[str, ActiveTrial] = {}
        self._pending: dict[str, None] = {}  # a set that keeps its order

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        kind = event["event"]
        if kind == "asked":
            self.by_id[event["trial_id"]] = ActiveTrial(event)
            self._pending[event["trial_id"]] = None
        elif kind == "epoch":
            trial = self.by_id[event["trial_id"]]
            if event["epoch"] != trial.epoch + 1:
                raise ValueError(f"epoch {event['epoch']} after {trial.epoch}")
            trial.last_epoch_event = event
        elif kind == "restarted":
            self.by_id[event["trial_id"]].count_restart(event["cause"])
            self._pending[event["trial_id"]] = None
        elif kind == "ended":
            del self.by_id[event["trial_id"]]
            self._pending.pop(event["trial_id"], None)

    @property
    def running(self) -> set[str]:
        """Those that have a process."""
        return self.by_id.keys() - self._pending.keys()

    @property
    def pending(self) -> list[ActiveTrial]:
        """Those that have none."""
        return [self.by_id[trial_id] for trial_id in self._pending]

    def mark_running(self, trial_id: str) -> ActiveTrial:
        """A process begins to work on a trial that has none."""
        del self._pending[trial_id]
        return self.by_id[trial_id]
