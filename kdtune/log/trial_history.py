"""One record per trial of a log: how it was proposed, its epochs, its restarts, and its end."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kdtune.errors import UserError
from kdtune.log.events import (
    SUCCESSFUL_STATES,
    Cell,
    EpochFinished,
    Event,
    RunTested,
    TrialEnded,
    TrialProposed,
    TrialRestarted,
    TrialState,
)


@dataclass
class TrialRecord:
    """A trial of a search, or a run of a confirmation.

    Attributes:
        proposed: how it was proposed.
        epochs: those that it finished, in order.
        restarts: why it continued in another process, each time.
        ended: how it ended; None while it has not.
        tested: of a run, how it classified the test images; None before.
    """

    proposed: TrialProposed
    epochs: list[EpochFinished] = field(default_factory=list)
    restarts: list[TrialRestarted] = field(default_factory=list)
    ended: TrialEnded | None = None
    tested: RunTested | None = None

    @property
    def cell(self) -> Cell:
        """The cell of the trial."""
        return self.proposed.cell

    @property
    def state(self) -> TrialState:
        """The state in which it ended, or `TrialState.RUNNING`."""
        return self.ended.state if self.ended else TrialState.RUNNING

    @property
    def is_successful(self) -> bool:
        """True if it ended with an accuracy that counts."""
        return bool(self.epochs) and self.state in SUCCESSFUL_STATES

    @property
    def best_epoch(self) -> EpochFinished | None:
        """The first epoch with the best validation accuracy; None without epochs."""
        return max(self.epochs, key=lambda epoch: epoch.validation_accuracy, default=None)

    @property
    def device_seconds(self) -> float:
        """Seconds that its epochs took on its device."""
        return sum(epoch.seconds for epoch in self.epochs)


class TrialHistory:
    """Records of all trials by id, in the order in which they were proposed; a fold over a log.

    A run that was proposed again, because its weights were lost, has the record of the last time.

    Args:
        events: events to start with.

    Raises:
        UserError: the log is damaged: an event is about a trial that was not proposed.
    """

    def __init__(self, events: Iterable[Event] = ()):
        self.trials: dict[str, TrialRecord] = {}
        for event in events:
            self.fold(event)

    def fold(self, event: Event) -> None:
        """Add an event of the log.

        Raises:
            UserError: as for the class.
        """
        match event:
            case TrialProposed():
                self.trials[event.trial_id] = TrialRecord(event)
            case EpochFinished():
                self._record(event).epochs.append(event)
            case TrialRestarted():
                self._record(event).restarts.append(event)
            case TrialEnded():
                self._record(event).ended = event
            case RunTested():
                self._record(event).tested = event

    def _record(
        self, event: EpochFinished | TrialRestarted | TrialEnded | RunTested
    ) -> TrialRecord:
        if event.trial_id not in self.trials:
            raise UserError(
                f"The log is damaged: it has {event.kind} of {event.trial_id}, which was not proposed."
            )
        return self.trials[event.trial_id]
