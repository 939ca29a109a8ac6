"""Ray Tune's way of searching with Optuna, which knows one cell."""

import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from simulated_trial import SimulatedTrial, StrategyBuilder, rank_by_luck

from kdtune.log.events import Cell
from kdtune.tuning.search.space import SearchSpace


class StockStrategy:
    """`OptunaSearch` and `ASHAScheduler` as their documentation shows them, for one cell.

    Args:
        spaces: of the cell.
        epochs: of a whole trial.
        seed: of Optuna's sampler.
    """

    def __init__(self, spaces: Mapping[Cell, SearchSpace], epochs: int, seed: int):
        [(self._cell, self.space)] = spaces.items()
        goal = {"metric": "validation_accuracy", "mode": "max"}
        self.search = OptunaSearch(space=self.space.distributions, seed=seed, **goal)
        self._asha = ASHAScheduler(max_t=epochs, **goal)
        self._numbers = itertools.count()

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        name = str(next(self._numbers))
        handle = SimpleNamespace(trial_id=name)
        self._asha.on_trial_add(None, handle)
        return SimulatedTrial(self._cell, self.propose(name), handle)

    def propose(self, name: str) -> dict[str, Any]:
        """Return the settings of a new trial."""
        settings: dict[str, Any] = self.search.suggest(name)
        return settings

    def report(self, trial: SimulatedTrial) -> bool:
        """Report to the scheduler, then to the searcher, but for the result that ends a trial."""
        result = {"training_iteration": trial.epoch, "validation_accuracy": trial.accuracy}
        decision = self._asha.on_trial_result(None, trial.handle, result)
        if decision == TrialScheduler.CONTINUE:
            self.search.on_trial_result(trial.handle.trial_id, result)
            return True
        self.search.on_trial_complete(trial.handle.trial_id, result)
        return False

    def rank(self, cell: Cell, finished: list[SimulatedTrial]) -> list[SimulatedTrial]:
        """Return the luckiest trials first."""
        return rank_by_luck(finished)


ONE_CELL_STRATEGIES: dict[str, StrategyBuilder] = {"stock": StockStrategy}
"""Strategies that know one cell only."""
