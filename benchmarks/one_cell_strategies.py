"""Ways of searching that know one cell: Ray Tune's with Optuna, and a single epoch for most."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import optuna
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
        start: also give it our start points.
        sampler: instead of its own.
    """

    def __init__(
        self,
        spaces: Mapping[Cell, SearchSpace],
        epochs: int,
        seed: int,
        start: bool = False,
        sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None,
    ):
        [(self._cell, self.space)] = spaces.items()
        sampler_options: dict[str, Any] = {"sampler": sampler(seed)} if sampler else {"seed": seed}
        self.search = OptunaSearch(
            space=self.space.distributions,
            metric="validation_accuracy",
            mode="max",
            points_to_evaluate=self.space.start_points if start else None,
            **sampler_options,
        )
        self._asha = ASHAScheduler(metric="validation_accuracy", mode="max", max_t=epochs)
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


class OneEpochStrategy:
    """Train all settings of one cell for an epoch and finish the best 2 of every 30.

    Args:
        spaces: of the cell.
        epochs: of a whole trial.
        seed: of the settings.
    """

    BATCH_SIZE, NUM_PROMOTED = 30, 2

    def __init__(self, spaces: Mapping[Cell, SearchSpace], epochs: int, seed: int):
        [(self._cell, self._space)] = spaces.items()
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._finished: list[tuple[float, SimulatedTrial]] = []
        self._promoted: list[SimulatedTrial] = []

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        if self._promoted:
            return self._promoted.pop()
        return SimulatedTrial(self._cell, self._study.ask(self._space.distributions).params)

    def report(self, trial: SimulatedTrial) -> bool:
        """Take an accuracy; return True if the trial continues."""
        if trial.epoch > 1:
            return True
        self._finished.append((trial.best, trial))
        if len(self._finished) == self.BATCH_SIZE:
            self._finished.sort(key=lambda entry: entry[0])
            self._promoted = [trial for _, trial in self._finished[-self.NUM_PROMOTED :]]
            self._finished.clear()
        return False

    def rank(self, cell: Cell, finished: list[SimulatedTrial]) -> list[SimulatedTrial]:
        """Return the luckiest trials first."""
        return rank_by_luck(finished)


def make_random_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return a sampler that learns nothing."""
    return optuna.samplers.RandomSampler(seed=seed)


ONE_CELL_STRATEGIES: dict[str, StrategyBuilder] = {
    "stock": StockStrategy,
    "stock + START": partial(StockStrategy, start=True),
    "random + ASHA": partial(StockStrategy, sampler=make_random_sampler),
    "one epoch": OneEpochStrategy,
}
"""Strategies that know one cell only."""
