"""The budget: what each cell has used, which cell is next, and when it is spent.

Every cell gets the same number of trials, epochs or device seconds. Limits of trials and epochs
are kept exactly; when the time is over, running epochs are finished.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kdtune.config.sweep import SweepConfig
from kdtune.log import events
from kdtune.log.events import Cell
from kdtune.log.stopwatch import Stopwatch
from kdtune.units import format_duration


@dataclass
class _Usage:
    trials: int = 0
    epochs: int = 0
    seconds: float = 0.0

    def add(self, other: "_Usage") -> None:
        self.trials += other.trials
        self.epochs += other.epochs
        self.seconds += other.seconds


@dataclass
class _CellUsage:
    """The use of a cell: by its ended trials, and by each active one."""

    ended: _Usage = field(default_factory=_Usage)
    active: dict[str, _Usage] = field(default_factory=dict)
    epochs: int = 0
    space_exhausted: bool = False

    @property
    def trials(self) -> int:
        return self.ended.trials + len(self.active)

    def projected_use(self, unit: str, max_epochs: int) -> float:
        """Return the use if active trials need as much as ended ones did, else all epochs."""
        if unit == "trials":
            return self.trials
        used: float = getattr(self.ended, unit)
        expected = used / self.ended.trials if self.ended.trials else 0.0
        for trial in self.active.values():
            so_far = getattr(trial, unit)
            if not self.ended.trials and trial.epochs:
                expected = so_far * max_epochs / trial.epochs
            used += max(so_far, expected)
        return used


@dataclass
class Budget:
    """The budget of a sweep, by a monotonic clock; a fold over the log."""

    sweep: SweepConfig
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.clock)
        self._usage_by_cell = {cell: _CellUsage() for cell in self.sweep.cells()}
        self._added_trials: dict[Cell, int] = {}  # limits of cells that got more

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        self.stopwatch.fold(event)
        match event:
            case events.TrialProposed():
                self._usage_by_cell[event.cell].active[event.trial_id] = _Usage(trials=1)
            case events.EpochFinished():
                usage = self._usage_by_cell[event.cell]
                usage.active[event.trial_id].add(_Usage(epochs=1, seconds=event.seconds))
                usage.epochs += 1
            case events.TrialEnded():
                usage = self._usage_by_cell[event.cell]
                usage.ended.add(usage.active.pop(event.trial_id))
            case events.TrialsAdded():
                self._added_trials |= dict.fromkeys(event.cells, event.trials)
            case events.SpaceExhausted():
                self._usage_by_cell[event.cell].space_exhausted = True

    def next_cells(self) -> list[Cell]:
        """Return the cells that may start a trial, the one with least use first."""
        sweep, uses = self.sweep, {}
        for cell, usage in self._usage_by_cell.items():
            limit = self.trial_limit(cell)
            has_trials = limit is None or usage.trials < limit
            if has_trials and not usage.space_exhausted and not self.exhausted_reason(cell, 1):
                uses[cell] = usage.projected_use(sweep.balance_by, sweep.epochs), usage.trials
        return sorted(uses, key=uses.__getitem__)

    def trial_limit(self, cell: Cell) -> int | None:
        """Return the most trials of a cell; None if other limits count."""
        planned = self.sweep.trials
        return None if planned is None else max(planned, self._added_trials.get(cell, 0))

    def exhausted_reason(self, cell: Cell, extra_trials: int = 0) -> str | None:
        """Return why a trial of the cell may not train another epoch; None if it may.

        Every active trial counts with one epoch more, which it is training.

        Args:
            cell: the trial's cell.
            extra_trials: trials that are not active yet.
        """
        limit, seconds = self.sweep.total_epochs, self.sweep.time_budget
        if seconds is not None and self.stopwatch.elapsed_seconds >= seconds:
            return f"the time budget of {format_duration(seconds)} is spent"
        if limit is None:
            return None
        usages, share = list(self._usage_by_cell.values()), "the budget"
        if self.sweep.balance_by == "epochs":
            limit //= len(usages)
            usages, share = [self._usage_by_cell[cell]], "the cell's share"
        if sum(usage.epochs + len(usage.active) for usage in usages) + extra_trials <= limit:
            return None
        return f"{share} of {limit} epochs is spent"
