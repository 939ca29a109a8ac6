"""One record per trial of a log: its proposal, epochs, restarts and end."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kdtune.errors import UserError
from kdtune.log import events


@dataclass
class TrialRecord:
    """A trial of a search, or a run of a confirmation, by its events so far."""

    proposed: events.TrialProposed
    epochs: list[events.EpochFinished] = field(default_factory=list)
    restarts: list[events.TrialRestarted] = field(default_factory=list)
    ended: events.TrialEnded | None = None
    tested: events.RunTested | None = None

    @property
    def cell(self) -> events.Cell:
        return self.proposed.cell

    @property
    def state(self) -> events.TrialState:
        return self.ended.state if self.ended else events.TrialState.RUNNING

    @property
    def is_successful(self) -> bool:
        """True if it ended with an accuracy that counts."""
        return bool(self.epochs) and self.state in events.SUCCESSFUL_STATES

    @property
    def best_epoch(self) -> events.EpochFinished | None:
        """The first epoch with the last one's best validation accuracy; None without epochs.

        A better one before it was lost: its process died, and the epoch was worse when repeated.
        """
        best = self.epochs[-1].best_validation_accuracy if self.epochs else None
        return next((e for e in self.epochs if e.best_validation_accuracy == best), None)

    @property
    def device_seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


class TrialHistory:
    """Records of all trials by id, in the order of their proposals; a fold over the log."""

    def __init__(self, first_events: Iterable[events.Event] = ()):
        self.trials: dict[str, TrialRecord] = {}
        for event in first_events:
            self.fold(event)

    def fold(self, event: events.Event) -> None:
        match event:
            case events.TrialProposed():  # a run whose weights were lost is proposed again
                self.trials[event.trial_id] = TrialRecord(event)
            case events.EpochFinished():
                self._record_of(event).epochs.append(event)
            case events.TrialRestarted():
                self._record_of(event).restarts.append(event)
            case events.TrialEnded():
                self._record_of(event).ended = event
            case events.RunTested():
                self._record_of(event).tested = event

    def _record_of(self, event: events.TrialEvent) -> TrialRecord:
        if (record := self.trials.get(event.trial_id)) is None:
            problem = f"it has {event.kind} of {event.trial_id}, which was not proposed"
            raise UserError(f"The log is damaged: {problem}.")
        return record
