"""What each cell has had of the budget, whose turn it is, and when all is spent.

A fold over the log. Every cell gets the same number of trials, epochs or device seconds, as the
user wishes; all three are counted. Limits are kept exactly: trials and epochs to the last one, the
time to the epochs that are under way when it is over.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Cell, Event, cell_of
from kdtune.log.stopwatch import Stopwatch
from kdtune.units import duration


@dataclass
class _Spent:
    """What a trial, or the ended trials of a cell together, had."""

    trials: int = 0
    epochs: int = 0
    seconds: float = 0.0

    def add(self, other: "_Spent") -> None:
        self.trials += other.trials
        self.epochs += other.epochs
        self.seconds += other.seconds


@dataclass
class _Account:
    """What a cell had: its ended trials, and those under way."""

    ended: _Spent = field(default_factory=_Spent)
    open: dict[str, _Spent] = field(default_factory=dict)
    epochs: int = 0
    exhausted: bool = False

    @property
    def trials(self) -> int:
        return self.ended.trials + len(self.open)

    def committed(self, unit: str, whole: int) -> float:
        """What the cell has had, if its trials under way will have as much as those before.

        A cell of which no trial has ended is taken to need all `whole` epochs for each.
        """
        if unit == "trials":
            return self.trials
        had = getattr(self.ended, unit)
        likely = had / self.ended.trials if self.ended.trials else 0.0
        for trial in self.open.values():
            so_far = getattr(trial, unit)
            if not self.ended.trials and trial.epochs:
                likely = so_far * whole / trial.epochs
            had += max(so_far, likely)
        return had


class Budget:
    """The budget of a sweep.

    Args:
        sweep: gives cells and limits.
        clock: seconds since some moment, which nobody sets.
    """

    def __init__(self, sweep: SweepConfig, clock: Callable[[], float] = time.monotonic):
        self.sweep, self._stopwatch = sweep, Stopwatch(clock)
        self._accounts = {cell: _Account() for cell in sweep.cells()}

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        self._stopwatch.fold(event)
        if event["event"] not in ("asked", "epoch", "ended", "exhausted"):
            return
        account = self._accounts[cell_of(event)]
        if event["event"] == "asked":
            account.open[event["trial_id"]] = _Spent(trials=1)
        elif event["event"] == "epoch":
            account.open[event["trial_id"]].add(_Spent(epochs=1, seconds=event["seconds"]))
            account.epochs += 1
        elif event["event"] == "ended":
            account.ended.add(account.open.pop(event["trial_id"]))
        else:
            account.exhausted = True

    def turns(self) -> list[Cell]:
        """The cells that may start a trial, the one that has had least first."""

        def had(cell: Cell) -> tuple[float, int]:
            account = self._accounts[cell]
            return account.committed(self.sweep.equal, self.sweep.epochs), account.trials

        return sorted((cell for cell in self._accounts if self._may_start(cell)), key=had)

    def _may_start(self, cell: Cell) -> bool:
        account, trials = self._accounts[cell], self.sweep.trials
        room = trials is None or account.trials < trials
        return room and not account.exhausted and self.spent(cell, more=1) is None

    def spent(self, cell: Cell, more: int = 0) -> str | None:
        """Why a trial of the cell may not train another epoch; None if it may.

        Every trial under way trains an epoch that is not counted yet.

        Args:
            cell: the trial's cell.
            more: trials that are not under way yet.
        """
        limit, seconds = self.sweep.epochs_total, self.sweep.time_budget
        if seconds is not None and self.seconds >= seconds:
            return f"the time budget of {duration(seconds)} is spent"
        if limit is None:
            return None
        accounts = list(self._accounts.values())
        if self.sweep.equal == "epochs":
            limit //= len(accounts)
            accounts = [self._accounts[cell]]
        if sum(account.epochs + len(account.open) for account in accounts) + more <= limit:
            return None
        share = "the cell's share" if self.sweep.equal == "epochs" else "the budget"
        return f"{share} of {limit} epochs is spent"

    @property
    def seconds(self) -> float:
        """How long the sweep ran, in all sessions."""
        return self._stopwatch.seconds

    @property
    def finished(self) -> bool:
        """Whether no trial is under way and none may start."""
        under_way = any(account.open for account in self._accounts.values())
        return not under_way and not self.turns()
