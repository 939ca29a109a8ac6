"""All that decides in a sweep: what is tried, stopped, begun again, and when all is over."""

import time
from collections.abc import Callable, Mapping

from kdtune.config import SweepConfig
from kdtune.results import Event
from kdtune.run_files import say
from kdtune.tuning.budget import Budget
from kdtune.tuning.interrupts import Interrupts
from kdtune.tuning.space import Space
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.studies import Studies
from kdtune.tuning.under_way import UnderWay
from kdtune.tuning.watch import Watch


class Decisions:
    """Folds over the log, and what listens to signals and clocks beside them.

    Args:
        sweep: complete settings.
        spaces: the search space of each method.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        spaces: Mapping[str, Space],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.sweep = sweep
        self.studies = Studies(sweep, spaces)
        self.stopping = Stopping(
            sweep.scheduler, sweep.epochs, sweep.grace_period, sweep.reduction_factor
        )
        self.budget = Budget(sweep, clock)
        self.under_way = UnderWay()
        self.interrupts = Interrupts(sweep.term_limit, say)
        self.watch = Watch(sweep.stall_time, self.interrupts, clock)

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        """What takes every event of the log."""
        parts = (self.under_way, self.studies, self.stopping, self.budget, self.watch)
        return [part.fold for part in parts]
