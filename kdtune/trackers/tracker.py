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

from kdtune.config.train import CLI_FIELDS, DERIVED_FIELDS, OUTPUT_FIELDS, TrainConfig
from kdtune.errors import first_line
from kdtune.log.events import EpochFinished, Event, LogOpening, TrialEnded, TrialProposed

COMPUTE_SETTINGS = {"num_workers", "device", "precision", "compile", "cache_targets"}
"""Settings of how a run computes, not of what it learns."""

HYPERPARAMETERS = (
    "method",
    "model",
    *(
        field
        for field in TrainConfig.model_fields
        if field not in CLI_FIELDS | OUTPUT_FIELDS | DERIVED_FIELDS.keys() | COMPUTE_SETTINGS
    ),
)
"""Settings that are shown of a trial, searched and fixed ones, the same of all trials."""

COMPLETE_MARKER = "ended"
"""An empty file in the folder of a trial of which everything is written."""

FINAL_METRICS = ("epochs", "device_seconds")
"""Figures that a trial has at its end, beside those of its last epoch."""


def select_hyperparameters(proposed: TrialProposed) -> dict[str, Any]:
    """The settings that are shown of a trial, by name; last those that its method alone has."""
    config = proposed.config
    method_settings = [key for key in config if key not in TrainConfig.model_fields]
    return {key: config[key] for key in (*HYPERPARAMETERS, *method_settings) if key in config}


def select_metrics(epoch: EpochFinished) -> dict[str, float]:
    """Return the metrics that are logged of an epoch, by name."""
    return {name: value for name, value in epoch.as_row().items() if isinstance(value, float)}


class Tracker(Protocol):
    """A program's side: of a trial come its start, its epochs and its end, in this order.

    A trial that had not ended when its driver did, or of which something is missing, comes from
    its start once more; what there is of it must not be there twice then.
    """

    def setup(self, opening: LogOpening) -> None:
        """Get ready; `opening` is the first event of the log."""

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        """Whether there is all of a trial that has ended."""

    def log_trial_start(self, proposed: TrialProposed) -> None:
        """A trial was asked for."""

    def log_epoch(self, epoch: EpochFinished) -> None:
        """A trial finished an epoch."""

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        """A trial ended, after so many seconds of its device."""

    def close(self) -> None:
        """Nothing more comes."""


class TrackerFold:
    """Tells a tracker of every trial; a fold over the log.

    A failure of the tracker is said, and ends it, but not the sweep.

    Args:
        name: the tracker's, for people.
        tracker: is told nothing before `start_logging`.
        warn: tells a person what went wrong.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], object]):
        self.name, self.tracker, self.warn = name, tracker, warn
        self._opening: LogOpening | None = None
        self._buffered: dict[str, list[TrialProposed | EpochFinished | TrialEnded]] = {}
        self._device_seconds: dict[str, float] = {}
        self._is_live = self._has_failed = False

    def fold(self, event: Event) -> None:
        """Add an event of the log."""
        if self._opening is None and isinstance(event, LogOpening):
            self._opening = event
        if self._has_failed or not isinstance(event, TrialProposed | EpochFinished | TrialEnded):
            return
        if isinstance(event, TrialProposed):
            self._buffered[event.trial_id] = []
            self._device_seconds[event.trial_id] = 0.0
        elif isinstance(event, EpochFinished):
            self._device_seconds[event.trial_id] += event.seconds
        if self._is_live:
            with self._failures_logged():
                self._log_event(event)
        else:
            self._buffered[event.trial_id].append(event)

    def start_logging(self) -> None:
        """Log what the tracker lacks of the events so far, and from now on every event."""
        self._is_live = True
        with self._failures_logged():
            assert self._opening is not None
            self.tracker.setup(self._opening)
            for proposed, *others in self._buffered.values():
                has_ended = bool(others) and isinstance(others[-1], TrialEnded)
                assert isinstance(proposed, TrialProposed)
                if not has_ended or not self.tracker.is_trial_logged(proposed):
                    for event in (proposed, *others):
                        self._log_event(event)
        self._buffered.clear()

    def close(self) -> None:
        """Tell that nothing more comes."""
        if self._is_live and not self._has_failed:
            with self._failures_logged():
                self.tracker.close()

    def _log_event(self, event: TrialProposed | EpochFinished | TrialEnded) -> None:
        match event:
            case TrialProposed():
                self.tracker.log_trial_start(event)
            case EpochFinished():
                self.tracker.log_epoch(event)
            case TrialEnded():
                device_seconds = round(self._device_seconds[event.trial_id], 3)
                self.tracker.log_trial_end(event, device_seconds)

    @contextmanager
    def _failures_logged(self) -> Iterator[None]:
        """Spare the sweep a failure of the tracker."""
        try:
            yield
        except Exception as error:  # of any kind
            self._has_failed = True
            reason = first_line(error)
            self.warn(f"{self.name}: {reason}; it gets no more figures until the sweep is resumed")
            with suppress(Exception):
                self.tracker.close()
