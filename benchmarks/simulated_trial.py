"""A trial in simulated time, and what a way of searching does with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kdtune.log.events import Cell
from kdtune.tuning.search.space import SearchSpace


@dataclass(eq=False)
class SimulatedTrial:
    """A trial in simulated time.

    Attributes:
        cell: what it belongs to.
        settings: its searched values.
        handle: what its strategy knows it by.
        epoch: how many it has finished.
        curve: its accuracies, once it has started.
        durations: of its epochs.
        true_best: its noise-free best accuracy.
    """

    cell: Cell
    settings: dict[str, Any]
    handle: Any = None
    epoch: int = 0
    curve: np.ndarray = field(default_factory=lambda: np.empty(0))
    durations: np.ndarray = field(default_factory=lambda: np.empty(0))
    true_best: float = 0.0

    @property
    def accuracy(self) -> float:
        """Accuracy after the last finished epoch."""
        return float(self.curve[self.epoch - 1])

    @property
    def best(self) -> float:
        """The highest accuracy so far."""
        return float(self.curve[: self.epoch].max())


class Strategy(Protocol):
    """A way of searching; it is built from the spaces of its cells, a trial's epochs, a seed."""

    def suggest(self) -> SimulatedTrial:
        """Return the next trial; it may be one that continues."""

    def report(self, trial: SimulatedTrial) -> bool:
        """Take the accuracy of a trial's last epoch; return True if the trial continues."""

    def rank(self, cell: Cell, finished: list[SimulatedTrial]) -> list[SimulatedTrial]:
        """Return trials of a cell, the incumbent first."""


StrategyBuilder = Callable[[Mapping[Cell, SearchSpace], int, int], Strategy]


def rank_by_luck(finished: list[SimulatedTrial]) -> list[SimulatedTrial]:
    """Return trials by the accuracy that was seen, the highest first."""
    return sorted(finished, key=lambda trial: -trial.best)
