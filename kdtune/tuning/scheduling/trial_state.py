"""The trials that were asked for and have not ended, and how often each was begun again.

A fold over the log. A trial is under way from its proposal to its end, whether a process works on
it or none: one whose process died, or whose driver did, waits here until it is handed out again.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kdtune.log.events import Event

DIED, STALLED, MEMORY, FAILED = "died", "stalled", "memory", "failed"
"""Causes of a restart: its process died; it made no progress; its device had too little memory; it
failed by itself."""

LOST, MISPLACED = "lost", "misplaced"
"""Further ones: its node was lost; it came to a node that gets no trials."""


@dataclass
class Trial:
    """A trial under way: how it was asked for, its last epoch, its restarts by cause.

    The loss of a node does not count where the trial had finished an epoch since it was begun.
    """

    asked: Event
    last: Event = field(default_factory=dict)
    restarts: Counter[str] = field(default_factory=Counter)
    begun_after: int = 0

    @property
    def epoch(self) -> int:
        """Its last finished epoch, 0 before the first."""
        return self.last.get("epoch", 0)

    @property
    def alone(self) -> bool:
        """Whether it gets a device to itself."""
        return self.restarts[MEMORY] > 0

    def restarted(self, cause: str) -> None:
        """Count a restart."""
        if cause != LOST or self.epoch == self.begun_after:
            self.restarts[cause] += 1
        self.begun_after = self.epoch

    def event(self, kind: str, **about: Any) -> Event:
        """An event about this trial."""
        identity = {key: self.asked[key] for key in ("trial_id", "method", "model")}
        return {"event": kind, **identity, **about}

    def ended(self, state: str, reason: str) -> Event:
        """The event of its end."""
        best = self.last.get("best_validation_accuracy")
        figures = {"epochs": self.epoch, "best_validation_accuracy": best}
        return self.event("ended", state=state, reason=reason, **figures)


class UnderWay:
    """All trials under way, by id."""

    def __init__(self) -> None:
        self.trials: dict[str, Trial] = {}
        self._waiting: dict[str, None] = {}  # a set that keeps its order

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        kind = event["event"]
        if kind == "asked":
            self.trials[event["trial_id"]] = Trial(event)
            self._waiting[event["trial_id"]] = None
        elif kind == "epoch":
            trial = self.trials[event["trial_id"]]
            if event["epoch"] != trial.epoch + 1:
                raise ValueError(f"epoch {event['epoch']} after {trial.epoch}")
            trial.last = event
        elif kind == "restarted":
            self.trials[event["trial_id"]].restarted(event["cause"])
            self._waiting[event["trial_id"]] = None
        elif kind == "ended":
            del self.trials[event["trial_id"]]
            self._waiting.pop(event["trial_id"], None)

    @property
    def at_work(self) -> set[str]:
        """Those that have a process."""
        return self.trials.keys() - self._waiting.keys()

    @property
    def waiting(self) -> list[Trial]:
        """Those that have none."""
        return [self.trials[trial_id] for trial_id in self._waiting]

    def take(self, trial_id: str) -> Trial:
        """A process begins to work on a trial that has none."""
        del self._waiting[trial_id]
        return self.trials[trial_id]
