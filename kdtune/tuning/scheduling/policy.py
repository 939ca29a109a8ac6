"""The policy that a search and a confirmation share: which trial starts, and when one ends."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from kdtune.config.sweep import SweepConfig
from kdtune.errors import DiskFullError
from kdtune.log.events import Cell, Event, SpaceExhausted, TrialProposed, TrialState
from kdtune.runtime.signals import InterruptHandler
from kdtune.tuning.scheduling.trial_state import ActiveTrial, ActiveTrials
from kdtune.tuning.scheduling.watchdog import Watchdog
from kdtune.tuning.search.stopping import EarlyStopping


class SchedulingPolicy(ABC):
    """Folds over a log that decide about trials, with their signals and a monotonic clock."""

    sweep: SweepConfig
    clock: Callable[[], float]
    say: Callable[[str], None]
    failure_restarts = 0  # of a trial that failed by itself, at most
    failure: DiskFullError | None = None  # the error of a trial that stops the sweep

    def __post_init__(self) -> None:
        self.stopping, self.active_trials = EarlyStopping(self.sweep), ActiveTrials()
        active = self.active_trials.by_id
        self.interrupts = InterruptHandler(
            self.sweep.shutdown_grace,
            self.say,
            has_progress=lambda: any(trial.has_progress for trial in active.values()),
        )
        self.watchdog = Watchdog(self.sweep.stall_timeout, self.interrupts, self.clock)

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        """Functions that take every event of the log."""
        return [component.fold for component in (self.active_trials, self.stopping, self.watchdog)]

    @property
    def stop_requested(self) -> bool:
        """True if no trial may start, and running ones are to end after their epoch."""
        return self.interrupts.stop_requested or self.failure is not None

    @abstractmethod
    def next_cells(self) -> list[Cell]:
        """Return the cells of which a trial may start, the next one first."""

    @abstractmethod
    def propose(self, cell: Cell) -> TrialProposed | SpaceExhausted:
        """Return the next trial of such a cell, or that its space is exhausted."""

    @abstractmethod
    def exhausted_reason(self, cell: Cell) -> str | None:
        """Return why a trial of the cell may not train another epoch; None if it may."""

    @property
    def finished(self) -> bool:
        """True if no trial is active and none is to start."""
        return not self.active_trials.by_id and not self.next_cells()

    def end_of(self, trial: ActiveTrial) -> tuple[TrialState, str] | None:
        """Return state and reason of a trial that ends now; None if it continues."""
        if trial.last_epoch and (end := self.stopping.decide(trial.last_epoch)) is not None:
            return end
        reason = self.exhausted_reason(trial.proposal.cell)
        return (TrialState.STOPPED, reason) if reason is not None else None
