"""One record per trial of a log: its proposal, epochs, restarts and end."""

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
        epochs: finished epochs, in order.
        restarts: why it continued in another process, each time.
        ended: how it ended; None before.
        tested: how a run classified the test images; None before.
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
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


class TrialHistory:
    """Records of all trials by id, in the order of their proposals; a fold over the log.

    A run that was proposed again, because its weights were lost, has a record of the last time.

    Args:
        events: events to start with.
    """

    def __init__(self, events: Iterable[Event] = ()):
        self.trials: dict[str, TrialRecord] = {}
        for event in events:
            self.fold(event)

    def fold(self, event: Event) -> None:
        """Add an event of the log.

        Raises:
            UserError: it is about a trial that was not proposed.
        """
        if isinstance(event, TrialProposed):
            self.trials[event.trial_id] = TrialRecord(event)
        elif isinstance(event, EpochFinished | TrialRestarted | TrialEnded | RunTested):
            if (record := self.trials.get(event.trial_id)) is None:
                raise UserError(
                    f"The log is damaged: it has {event.kind} of {event.trial_id}, which was not "
                    "proposed."
                )
            match event:
                case EpochFinished():
                    record.epochs.append(event)
                case TrialRestarted():
                    record.restarts.append(event)
                case TrialEnded():
                    record.ended = event
                case RunTested():
                    record.tested = event
