"""Trials that have not ended, as a fold over the log.

Without a process, because it or its driver died, a trial is pending until it is handed out again.
"""

from collections import Counter
from dataclasses import dataclass, field

from kdtune.log import events
from kdtune.log.events import EpochFinished, RestartCause, TrialEnded, TrialProposed, TrialState


@dataclass
class ActiveTrial:
    """A trial that has not ended; `restarts` leaves out nodes that were lost after progress."""

    proposal: TrialProposed
    last_epoch: EpochFinished | None = None
    restarts: Counter[RestartCause] = field(default_factory=Counter)
    epoch_at_start: int = 0  # the last one that it had finished when its process started

    @property
    def trial_id(self) -> str:
        """The id of the trial."""
        return self.proposal.trial_id

    @property
    def epoch(self) -> int:
        """Number of its last finished epoch, 0 before the first."""
        return self.last_epoch.epoch if self.last_epoch else 0

    @property
    def has_progress(self) -> bool:
        """True if it finished an epoch since its process started."""
        return self.epoch > self.epoch_at_start

    @property
    def exclusive(self) -> bool:
        """True if it gets a device to itself."""
        return self.restarts[RestartCause.DEVICE_MEMORY] > 0

    def make_end_event(self, state: TrialState, reason: str) -> TrialEnded:
        """Return the event of its end.

        Args:
            state: how it ended.
            reason: why, in a sentence.
        """
        best = self.last_epoch.best_validation_accuracy if self.last_epoch else None
        end = {**self.proposal.identity, "state": state, "reason": reason, "epochs": self.epoch}
        return TrialEnded(**end, best_validation_accuracy=best)


@dataclass
class ActiveTrials:
    """All active trials by id; a fold over the log."""

    by_id: dict[str, ActiveTrial] = field(default_factory=dict)
    _pending: dict[str, None] = field(default_factory=dict)  # a set that keeps its order

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        match event:
            case TrialProposed():
                self.by_id[event.trial_id] = ActiveTrial(event)
                self._pending[event.trial_id] = None
            case EpochFinished():
                trial = self.by_id[event.trial_id]
                if event.epoch != trial.epoch + 1:
                    raise ValueError(f"epoch {event.epoch} after {trial.epoch}")
                trial.last_epoch = event
            case events.TrialRestarted():
                trial = self.by_id[event.trial_id]
                if event.cause is not RestartCause.NODE_LOST or not trial.has_progress:
                    trial.restarts[event.cause] += 1
                trial.epoch_at_start = trial.epoch
                self._pending[event.trial_id] = None
            case TrialEnded():
                del self.by_id[event.trial_id]
                self._pending.pop(event.trial_id, None)

    @property
    def running(self) -> set[str]:
        """Ids of the trials that have a process."""
        return self.by_id.keys() - self._pending.keys()

    @property
    def pending(self) -> list[ActiveTrial]:
        """Trials without a process, in the order in which they lost or never had one."""
        return [self.by_id[trial_id] for trial_id in self._pending]

    def mark_running(self, trial_id: str) -> ActiveTrial:
        """Return a pending trial, which has a process from now on."""
        del self._pending[trial_id]
        return self.by_id[trial_id]
