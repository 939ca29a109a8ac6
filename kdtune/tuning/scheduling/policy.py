"""What decides while trials run, whatever they are for: a search, or the confirmation of one."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Cell, Event, SpaceExhausted, TrialProposed, TrialState
from kdtune.runtime.console import say
from kdtune.runtime.signals import InterruptHandler
from kdtune.tuning.scheduling.trial_state import ActiveTrial, ActiveTrials
from kdtune.tuning.scheduling.watchdog import Watchdog
from kdtune.tuning.search.stopping import EarlyStopping


class SchedulingPolicy(ABC):
    """Folds over a log, and what listens to signals and clocks beside them.

    Args:
        sweep: complete settings.
        stopping: the rule by which trials are stopped early.
        repeats: times that a trial which failed by itself is begun again.
        clock: seconds, which nobody sets.
        say: takes what a signal has to say to people.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        stopping: EarlyStopping,
        failure_restarts: int,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = say,
    ):
        self.sweep, self.stopping, self.failure_restarts = sweep, stopping, failure_restarts
        self.active_trials = ActiveTrials()
        self.interrupts = InterruptHandler(sweep.shutdown_grace, say)
        self.watchdog = Watchdog(sweep.stall_timeout, self.interrupts, clock)

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        """What takes every event of the log."""
        return [component.fold for component in (self.active_trials, self.stopping, self.watchdog)]

    @abstractmethod
    def next_cells(self) -> list[Cell]:
        """The cells of which a trial may begin, the one whose turn it is first."""

    @abstractmethod
    def propose(self, cell: Cell) -> TrialProposed | SpaceExhausted:
        """The event that begins a trial of such a cell, or says why it has none."""

    @abstractmethod
    def exhausted_reason(self, cell: Cell) -> str | None:
        """Why a trial of the cell may not train another epoch; None if it may."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no trial is under way and none is to be started."""

    def end_of(self, trial: ActiveTrial) -> tuple[TrialState, str] | None:
        """Return state and reason of a trial that ends now; None if it continues."""
        if trial.last_epoch and (end := self.stopping.decide(trial.last_epoch)) is not None:
            return end
        reason = self.exhausted_reason(trial.proposal.cell)
        return (TrialState.STOPPED, reason) if reason is not None else None
