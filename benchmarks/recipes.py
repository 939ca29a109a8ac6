"""Ways of searching one cell: ours as a sweep has it, what Ray brings along, and others."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import Cell, EpochFinished, Event, TrialProposed
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.planning.simulation import make_synthetic_metrics
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.search.space import SearchSpace
from kdtune.tuning.search.stopping import rung_epochs
from kdtune.tuning.search.studies import CellStudies
from kdtune.tuning.trials.results import EpochReported, to_ray


@dataclass(eq=False)
class SimulatedTrial:
    """A trial in simulated time.

    Attributes:
        settings: its searched values.
        handle: what its recipe knows it by.
        epoch: how many it has had.
        curve: its accuracies, once it has begun.
        true_best: its noise-free best accuracy.
    """

    settings: dict[str, Any]
    handle: Any = None
    epoch: int = 0
    curve: np.ndarray | None = None
    true_best: float = 0.0


class Recipe(Protocol):
    """A way of searching one cell."""

    def suggest(self) -> SimulatedTrial:
        """Return the next trial; it may be one that continues."""

    def report(self, trial: SimulatedTrial, accuracy: float, best: float) -> bool:
        """Take an epoch's accuracy and the best so far; return True if the trial continues."""


class KdtuneRecipe:
    """The search of a sweep, without Ray's loop and without a file.

    Args:
        cell: whose search it is.
        space: of its method.
        epochs: of a whole trial.
        seed: of the sweep.
        studies: the class of its studies.
        settings: of `SweepConfig`.
    """

    def __init__(
        self,
        cell: Cell,
        space: SearchSpace,
        epochs: int,
        seed: int,
        studies: type[CellStudies] = CellStudies,
        **settings: Any,
    ):
        identity = {"name": "n", "data": "d", "methods": [cell[0]], "models": [cell[1]]}
        limits = {"baselines": False, "epochs": epochs, "seed": seed, "total_epochs": 10**9}
        sweep = SweepConfig.parse({**identity, **limits, **settings})

        def configure(cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
            return TrainConfig.parse({**settings, "method": cell[0], "model": cell[1]})

        policy = SearchPolicy(sweep, {cell[0]: space}, configure)
        policy.studies = studies(sweep, {cell[0]: space})

        def append(event: Event) -> None:
            for fold in policy.folds:
                fold(event)

        slots = Slots(
            {cell[1]: ResourceRequest()}, lambda: [Node("", 1_000_000)]
        )  # as many as it is asked for
        self._searcher = LogSearcher(policy, append, slots)
        self._scheduler = LogScheduler(policy, append, slots)
        self._watchdog = policy.watchdog
        self._names = list(space.distributions)

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        config: Any = self._searcher.suggest("")
        settings = {name: config["config"][name] for name in self._names}
        self._watchdog.add_process(config["trial_id"], config["config"]["model"], 0, "")
        return SimulatedTrial(settings, SimpleNamespace(config=config))

    def report(self, trial: SimulatedTrial, accuracy: float, best: float) -> bool:
        """Take an accuracy; return True if the trial continues."""
        metrics = make_synthetic_metrics(trial.epoch, accuracy, best, seconds=1.0)
        result = to_ray(EpochReported(metrics=metrics))
        decision = self._scheduler.on_trial_result(None, trial.handle, result)
        return bool(decision == TrialScheduler.CONTINUE)


class StockRecipe:
    """`OptunaSearch` and `ASHAScheduler` as their documentation shows them.

    Args:
        cell: of no matter here.
        space: of the cell's method.
        epochs: of a whole trial.
        seed: of Optuna's sampler.
        start: also give it our start points.
        sampler: instead of its own.
    """

    def __init__(
        self,
        cell: Cell,
        space: SearchSpace,
        epochs: int,
        seed: int,
        start: bool = False,
        sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None,
    ):
        sampler_options: dict[str, Any] = {"sampler": sampler(seed)} if sampler else {"seed": seed}
        self._search = OptunaSearch(
            space=space.distributions,
            metric="validation_accuracy",
            mode="max",
            points_to_evaluate=space.start_points if start else None,
            **sampler_options,
        )
        self._asha = ASHAScheduler(metric="validation_accuracy", mode="max", max_t=epochs)
        self._numbers = itertools.count()

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        name = str(next(self._numbers))
        handle = SimpleNamespace(trial_id=name)
        self._asha.on_trial_add(None, handle)
        return SimulatedTrial(self._search.suggest(name), handle)

    def report(self, trial: SimulatedTrial, accuracy: float, best: float) -> bool:
        """Report to the scheduler, then to the searcher, but for the result that ends a trial."""
        result = {"training_iteration": trial.epoch, "validation_accuracy": accuracy}
        decision = self._asha.on_trial_result(None, trial.handle, result)
        if decision == TrialScheduler.CONTINUE:
            self._search.on_trial_result(trial.handle.trial_id, result)
            return True
        self._search.on_trial_complete(trial.handle.trial_id, result)
        return False


class OneEpochRecipe:
    """Train all one epoch and finish the best: of every 30 random settings the best 2.

    Args:
        cell: of no matter here.
        space: of the cell's method.
        epochs: of a whole trial.
        seed: of the settings.
    """

    BATCH_SIZE, NUM_PROMOTED = 30, 2

    def __init__(self, cell: Cell, space: SearchSpace, epochs: int, seed: int):
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._space = space.distributions
        self._finished: list[tuple[float, SimulatedTrial]] = []
        self._promoted: list[SimulatedTrial] = []

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        if self._promoted:
            return self._promoted.pop()
        return SimulatedTrial(self._study.ask(self._space).params)

    def report(self, trial: SimulatedTrial, accuracy: float, best: float) -> bool:
        """Take an accuracy; return True if the trial continues."""
        if trial.epoch > 1:
            return True
        self._finished.append((best, trial))
        if len(self._finished) == self.BATCH_SIZE:
            self._finished.sort(key=lambda entry: entry[0])
            self._promoted = [trial for _, trial in self._finished[-self.NUM_PROMOTED :]]
            self._finished.clear()
        return False


def make_random_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return a sampler that learns nothing."""
    return optuna.samplers.RandomSampler(seed=seed)


class RungAwareStudies(CellStudies):
    """Fits the sampler on the highest epoch of comparison that enough trials have reached.

    A variant that is measured, not one that sweeps have: the others are left out, as in BOHB.
    """

    MIN_TRIALS = 6

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._proposals: dict[str, TrialProposed] = {}
        self._bests_by_epoch: dict[str, dict[int, float]] = {}

    def fold(self, event: Event) -> None:
        """Add an event, and remember proposals and accuracies by epoch."""
        super().fold(event)
        if isinstance(event, TrialProposed):
            self._proposals[event.trial_id] = event
            self._bests_by_epoch[event.trial_id] = {}
        elif isinstance(event, EpochFinished):
            best = event.best_validation_accuracy
            self._bests_by_epoch[event.trial_id][event.epoch] = best

    def _take_start_point(self, cell: Cell) -> dict[str, Any] | None:
        if (point := super()._take_start_point(cell)) is not None:
            return point
        rungs = rung_epochs(
            self.sweep.epochs, self.sweep.grace_period, self.sweep.reduction_factor
        )
        reached = Counter(epoch for bests in self._bests_by_epoch.values() for epoch in bests)
        levels = (self.sweep.epochs, *reversed(rungs))
        level = next((epoch for epoch in levels if reached[epoch] >= self.MIN_TRIALS), None)
        study = optuna.create_study(direction="maximize", sampler=self._make_sampler(cell, 0))
        distributions = self.spaces[cell[0]].distributions
        for name, bests in self._bests_by_epoch.items():
            value = bests.get(level) if level is not None else None
            if value is None and name not in self._active_trials:
                continue
            states = optuna.trial.TrialState
            trial = optuna.trial.create_trial(
                state=states.RUNNING if value is None else states.COMPLETE,
                value=value,
                params=self._proposals[name].params,
                distributions=distributions,
            )
            study.add_trial(trial)
        return study.ask(distributions).params


RECIPES: dict[str, Callable[..., Recipe]] = {
    "kdtune": KdtuneRecipe,
    "stock": StockRecipe,
    "stock + START": partial(StockRecipe, start=True),
    "random + ASHA": partial(StockRecipe, sampler=make_random_sampler),
    "random": partial(KdtuneRecipe, sampler="random", scheduler="none"),
    "one epoch": OneEpochRecipe,
}
"""Recipes that are compared; the first is kdtune's."""

VARIANTS: dict[str, Callable[..., Recipe]] = {
    "gp": partial(KdtuneRecipe, sampler="gp"),
    "tpe": partial(KdtuneRecipe, sampler="tpe"),
    "tpe, rung-aware": partial(KdtuneRecipe, studies=RungAwareStudies, sampler="tpe"),
    "cmaes": partial(KdtuneRecipe, sampler="cmaes"),
    "qmc": partial(KdtuneRecipe, sampler="qmc"),
    "hyperband": partial(KdtuneRecipe, scheduler="hyperband"),
    "median": partial(KdtuneRecipe, scheduler="median"),
    "no stopping": partial(KdtuneRecipe, scheduler="none"),
    **{
        f"grace {grace}, 1 in {factor}": partial(
            KdtuneRecipe, grace_period=grace, reduction_factor=factor
        )
        for grace, factor in ((1, 2), (1, 4), (2, 2), (4, 2), (4, 4), (7, 2), (8, 4))
    },
}
"""Other settings of ours, from which the defaults were chosen."""
