"""What decides while trials run, whatever they are for: a search, or the confirmation of one."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Cell, Event, cell_of
from kdtune.runtime.console import say
from kdtune.runtime.signals import Interrupts
from kdtune.tuning.scheduling.trial_state import Trial, UnderWay
from kdtune.tuning.scheduling.watchdog import Watch
from kdtune.tuning.search.stopping import Stopping


class Decisions(ABC):
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
        stopping: Stopping,
        repeats: int,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = say,
    ):
        self.sweep, self.stopping, self.repeats = sweep, stopping, repeats
        self.under_way = UnderWay()
        self.interrupts = Interrupts(sweep.term_limit, say)
        self.watch = Watch(sweep.stall_time, self.interrupts, clock)

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        """What takes every event of the log."""
        return [part.fold for part in (self.under_way, self.stopping, self.watch)]

    @abstractmethod
    def turns(self) -> list[Cell]:
        """The cells of which a trial may begin, the one whose turn it is first."""

    @abstractmethod
    def propose(self, cell: Cell) -> Event:
        """The event that begins a trial of such a cell, or says why it has none."""

    @abstractmethod
    def spent(self, cell: Cell) -> str | None:
        """Why a trial of the cell may not train another epoch; None if it may."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no trial is under way and none is to be started."""

    def end(self, trial: Trial) -> tuple[str, str] | None:
        """State and reason of a trial that is at its end; None if it goes on."""
        if trial.last and (end := self.stopping.verdict(trial.last)) is not None:
            return end
        reason = self.spent(cell_of(trial.asked))
        return ("stopped", reason) if reason is not None else None
