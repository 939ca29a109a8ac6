"""Interface of experiment trackers, and the fold that logs a sweep's trials to one.

They are no callbacks of Ray, which treats a trial that restarts or resumes as a new one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kdtune.config.train import CLI_FIELDS, DERIVED_FIELDS, SINGLE_RUN_FIELDS, TrainConfig
from kdtune.errors import first_line
from kdtune.log.events import EpochFinished, Event, LogOpening, TrialEnded, TrialProposed
from kdtune.log.trial_history import TrialHistory

_SPEED_SETTINGS = {"num_workers", "device", "precision", "compile", "cache_targets"}
_OMITTED = CLI_FIELDS | SINGLE_RUN_FIELDS | DERIVED_FIELDS.keys() | _SPEED_SETTINGS

HYPERPARAMETERS = ("method", "model", *(f for f in TrainConfig.model_fields if f not in _OMITTED))
END_MARKER = "ended"  # empty file in the folder of a trial that is logged completely
LoggedEvent = TrialProposed | EpochFinished | TrialEnded


def select_hyperparameters(proposed: TrialProposed) -> dict[str, Any]:
    """Return the settings that are logged for a trial; those of its method are the last."""
    config = proposed.config
    method_settings = [key for key in config if key not in TrainConfig.model_fields]
    return {key: config[key] for key in (*HYPERPARAMETERS, *method_settings) if key in config}


def select_metrics(epoch: EpochFinished) -> dict[str, float]:
    return {name: value for name, value in epoch.as_row().items() if isinstance(value, float)}


class Tracker(ABC):
    """Client of a tracking program; each trial is logged as start, epochs, end.

    A trial that a former driver did not log completely is logged again, and must not appear twice.
    """

    def setup(self, opening: LogOpening) -> None: ...  # noqa: B027
    def close(self) -> None: ...  # noqa: B027

    @abstractmethod
    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        """Return True if a trial that has ended is logged completely."""

    @abstractmethod
    def log_trial_start(self, proposed: TrialProposed) -> None: ...
    @abstractmethod
    def log_epoch(self, epoch: EpochFinished) -> None: ...
    @abstractmethod
    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        """Log the end of a trial.

        Args:
            ended: state and reason.
            device_seconds: sum over all epochs of the trial.
        """


@dataclass(eq=False)
class TrackerFold:
    """Logs trials to a tracker until it fails, of which it warns; a fold over the log."""

    name: str
    tracker: Tracker
    warn: Callable[[str], object]

    def __post_init__(self) -> None:
        self._opening: LogOpening | None = None
        self._history, self._is_live, self._has_failed = TrialHistory(), False, False

    def fold(self, event: Event) -> None:
        if self._opening is None and isinstance(event, LogOpening):
            self._opening = event
        if isinstance(event, LoggedEvent) and not self._has_failed:
            self._history.fold(event)
            if self._is_live:
                with self._failures_warned():
                    self._log_event(event)

    def start_logging(self) -> None:
        """Log what the tracker lacks of the events so far, and from now on every event."""
        self._is_live = True
        with self._failures_warned():
            assert self._opening is not None
            self.tracker.setup(self._opening)
            for trial_id, record in list(self._history.trials.items()):
                if record.ended is not None and self.tracker.is_trial_logged(record.proposed):
                    del self._history.trials[trial_id]
                    continue
                for event in (record.proposed, *record.epochs, record.ended):
                    self._log_event(event)

    def close(self) -> None:
        if self._is_live and not self._has_failed:
            with self._failures_warned():
                self.tracker.close()

    def _log_event(self, event: LoggedEvent | None) -> None:
        match event:
            case TrialProposed():
                self.tracker.log_trial_start(event)
            case EpochFinished():
                self.tracker.log_epoch(event)
            case TrialEnded():
                record = self._history.trials.pop(event.trial_id)
                self.tracker.log_trial_end(event, round(record.device_seconds, 3))

    @contextmanager
    def _failures_warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # trackers raise exceptions of many kinds
            self._has_failed = True
            consequence = "it gets no more metrics until the sweep is resumed"
            self.warn(f"{self.name}: {first_line(error)}; {consequence}")
            with suppress(Exception):
                self.tracker.close()
