"""Figures of every trial for other programs that show them: what these have in common.

All are folds over the log, and none is a callback of Ray's (`ray.air.integrations`), although Ray
has them for MLflow and W&B. To Ray, a trial that goes on in another process or after a resume is
a new one, so it would be two runs; a run's settings would be Ray's, its steps Ray's count instead
of epochs, and a trial that was stopped or crashed one that has finished; the callback for W&B also
wants an account, and starts two processes a trial. In the log a trial is one, with its end.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from kdtune.config.train import FOLLOW, HAVE_FLAGS, OF_A_RUNS_FILES, TrainConfig
from kdtune.log.events import Event

OF_MACHINES = {"num_workers", "device", "precision", "compile", "cache_targets"}
"""Settings of how a run computes, not of what it learns."""

HYPERPARAMETERS = (
    "method",
    "model",
    *(
        field
        for field in TrainConfig.model_fields
        if field not in HAVE_FLAGS | OF_A_RUNS_FILES | FOLLOW.keys() | OF_MACHINES
    ),
)
"""Settings that are shown of a trial, searched and fixed ones, the same of all trials."""

ENDED = "ended"
"""An empty file in the folder of a trial of which everything is written."""

FINAL = ("epochs", "device_seconds")
"""Figures that a trial has at its end, beside those of its last epoch."""


def hyperparameters(asked: Event) -> dict[str, Any]:
    """The settings that are shown of a trial, by name; last those that its method alone has."""
    config = asked["config"]
    own = [key for key in config if key not in TrainConfig.model_fields]
    return {key: config[key] for key in (*HYPERPARAMETERS, *own) if key in config}


def figures(epoch: Event) -> dict[str, float]:
    """The figures that are shown of an epoch, by name."""
    passed = ("time", "session_seconds")
    return {k: v for k, v in epoch.items() if isinstance(v, float) and k not in passed}


class Tracker(Protocol):
    """A program's side: of a trial come its start, its epochs and its end, in this order.

    A trial that had not ended when its driver did, or of which something is missing, comes from
    its start once more; what there is of it must not be there twice then.
    """

    def begin(self, opened: Event) -> None:
        """Get ready; `opened` is the first event of the log."""

    def has(self, asked: Event) -> bool:
        """Whether there is all of a trial that has ended."""

    def start(self, asked: Event) -> None:
        """A trial was asked for."""

    def log(self, epoch: Event) -> None:
        """A trial finished an epoch."""

    def end(self, ended: Event) -> None:
        """A trial ended; the event has its `FINAL` figures, too."""

    def close(self) -> None:
        """Nothing more comes."""


class Tracked:
    """Tells a tracker of every trial; a fold over the log.

    A failure of the tracker is said, and ends it, but not the sweep.

    Args:
        name: the tracker's, for people.
        tracker: is told nothing before `begin`.
        say: tells a person what went wrong.
    """

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], object]):
        self.name, self.tracker, self.say = name, tracker, say
        self._opened: Event = {}
        self._known: dict[str, list[Event]] = {}
        self._seconds: dict[str, float] = {}
        self._live = self._failed = False

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        self._opened = self._opened or event
        kind = event["event"]
        if self._failed or kind not in ("asked", "epoch", "ended"):
            return
        trial_id = event["trial_id"]
        if kind == "asked":
            self._known[trial_id] = []
            self._seconds[trial_id] = 0.0
        elif kind == "epoch":
            self._seconds[trial_id] += event["seconds"]
        else:
            event = {**event, "device_seconds": round(self._seconds[trial_id], 3)}
        if self._live:
            with self._spared():
                self._tell(event)
        else:
            self._known[trial_id].append(event)

    def begin(self) -> None:
        """Tell what is missing of what is known, and from now on what comes."""
        self._live = True
        with self._spared():
            self.tracker.begin(self._opened)
            for events in self._known.values():
                if events[-1]["event"] != "ended" or not self.tracker.has(events[0]):
                    for event in events:
                        self._tell(event)
        self._known.clear()

    def close(self) -> None:
        """Tell that nothing more comes."""
        if self._live and not self._failed:
            with self._spared():
                self.tracker.close()

    def _tell(self, event: Event) -> None:
        kinds = {"asked": self.tracker.start, "epoch": self.tracker.log, "ended": self.tracker.end}
        kinds[event["event"]](event)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Spare the sweep a failure of the tracker."""
        try:
            yield
        except Exception as error:  # of any kind
            self._failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.say(f"{self.name}: {reason}; it gets no more figures until the sweep is resumed")
            with suppress(Exception):
                self.tracker.close()
