"""Ways of searching: ours, all cells together as a sweep does, with other ideas; and others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from one_cell_strategies import ONE_CELL_STRATEGIES
from ray.tune.schedulers import TrialScheduler
from simulated_trial import SimulatedTrial, Strategy, rank_by_luck

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import Cell, Event, TrialProposed
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.planning.simulation import make_synthetic_metrics
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.search import cell_model, gp_sampler, optuna_private, stopping
from kdtune.tuning.search.cell_model import CellModel
from kdtune.tuning.search.gp_sampler import GaussianProcessSampler
from kdtune.tuning.search.space import SearchSpace
from kdtune.tuning.search.studies import CellStudies
from kdtune.tuning.trials.results import EpochReported, to_ray


class KdtuneStrategy:
    """The search of a sweep, without Ray's loop and without a file.

    Args:
        spaces: of the cells, which are all pairs of their methods and models.
        epochs: of a whole trial.
        seed: of the sweep.
        settings: of `SweepConfig`.
    """

    def __init__(
        self, spaces: Mapping[Cell, SearchSpace], epochs: int, seed: int, **settings: Any
    ):
        methods, models = (list(dict.fromkeys(names)) for names in zip(*spaces, strict=True))
        cells = {"methods": methods, "models": models, "baselines": False}
        budget = {"epochs": epochs, "total_epochs": 10**9, "balance_by": "epochs"}
        sweep = SweepConfig.parse(
            {"name": "n", "data": "d", **cells, **budget, "seed": seed, **settings}
        )
        configs = {
            cell: TrainConfig.parse({"method": cell[0], "model": cell[1]}) for cell in spaces
        }
        policy = SearchPolicy(
            sweep,
            {method: space for (method, _), space in spaces.items()},
            lambda cell, number, settings: configs[cell],  # nothing is trained with them
        )
        self.epochs = epochs
        self._proposals: dict[str, TrialProposed] = {}
        self.trials: dict[str, SimulatedTrial] = {}

        def append(event: Event) -> None:
            if isinstance(event, TrialProposed):
                self._proposals[event.trial_id] = event
            for fold in policy.folds:
                fold(event)

        requests = dict.fromkeys(models, ResourceRequest())
        slots = Slots(requests, lambda: [Node("", 1_000_000)])  # as many as it is asked for
        self._searcher = LogSearcher(policy, append, slots)
        self._scheduler = LogScheduler(policy, append, slots)
        self.policy = policy

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        config: Any = self._searcher.suggest("")
        proposal = self._proposals[trial_id := config["trial_id"]]
        self.policy.watchdog.add_process(trial_id, proposal.model, 0, "")
        handle = SimpleNamespace(config=config)
        trial = SimulatedTrial(proposal.cell, proposal.params, handle)
        self.trials[trial_id] = trial
        return trial

    def report(self, trial: SimulatedTrial) -> bool:
        """Take an accuracy; return True if the trial continues."""
        metrics = make_synthetic_metrics(trial.epoch, trial.accuracy, trial.best, seconds=1.0)
        result = to_ray(EpochReported(metrics=metrics))
        decision = self._scheduler.on_trial_result(None, trial.handle, result)
        return bool(decision == TrialScheduler.CONTINUE)

    def rank(self, cell: Cell, finished: list[SimulatedTrial]) -> list[SimulatedTrial]:
        """Return trials by the searcher's own estimates, if it has any."""
        ranked = self.policy.studies.rank(cell)
        return [self.trials[trial_id] for trial_id in ranked] or rank_by_luck(finished)


class PatchedStrategy(KdtuneStrategy):
    """The search of a sweep with other constants.

    Args:
        spaces: of the cells.
        epochs: of a whole trial.
        seed: of the sweep.
        constants: owner, name and value of each.
        start: also try our start points.
        settings: of `SweepConfig`.
    """

    def __init__(
        self,
        spaces: Mapping[Cell, SearchSpace],
        epochs: int,
        seed: int,
        constants: Sequence[tuple[Any, str, Any]] = (),
        start: bool = True,
        **settings: Any,
    ):
        if not start:
            spaces = {cell: replace(space, start_points=[]) for cell, space in spaces.items()}
        super().__init__(spaces, epochs, seed, **settings)
        self._constants = constants

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with ExitStack() as stack:
            for constant in self._constants:
                stack.enter_context(patch.object(*constant))
            yield

    def suggest(self) -> SimulatedTrial:
        """Return the next trial."""
        with self._patched():
            return super().suggest()

    def report(self, trial: SimulatedTrial) -> bool:
        """Take an accuracy; return True if the trial continues."""
        with self._patched():
            return super().report(trial)

    def rank(self, cell: Cell, finished: list[SimulatedTrial]) -> list[SimulatedTrial]:
        """Return trials by the searcher's own estimates."""
        with self._patched():
            return super().rank(cell, finished)


class RevivingStrategy(KdtuneStrategy):
    """The search of a sweep in which a stopped trial resumes in place of every other repeat.

    It is the best one by the model, and resumes from its checkpoint: only its further epochs
    count. The model then has two values of it.
    """

    def suggest(self) -> SimulatedTrial:
        """Return the next trial, which may be a stopped one."""
        choose_candidate = CellStudies._choose_candidate

        def choose(studies: CellStudies, cell: Cell) -> optuna.trial.FrozenTrial | None:
            candidate = choose_candidate(studies, cell)
            is_turn = studies._repeats[cell] % 2 == 0
            return candidate and is_turn and self._choose_stopped(cell) or candidate

        with patch.object(CellStudies, "_choose_candidate", choose):
            trial = super().suggest()
        candidate = self._proposals[trial_id := trial.handle.config["trial_id"]].candidate
        if candidate is None or (stopped := self.trials[candidate]).epoch == self.epochs:
            return trial
        self.trials[trial_id], stopped.handle, last_epoch = stopped, trial.handle, stopped.epoch
        for stopped.epoch in range(1, last_epoch + 1):
            self.report(stopped)
        return stopped

    def _choose_stopped(self, cell: Cell) -> optuna.trial.FrozenTrial | None:
        model = self.policy.studies._models.with_prior_mean(cell)
        if model is None:
            return None
        means = zip(model.posterior()[0], model.trials, strict=True)
        stopped = [
            (mean, trial)
            for mean, trial in means
            if self.trials[trial.user_attrs["trial_id"]].epoch < self.epochs
        ]
        return max(stopped, key=lambda pair: float(pair[0]), default=(0, None))[1]


JOINT_STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "kdtune": KdtuneStrategy,
    "random": partial(KdtuneStrategy, sampler="random", scheduler="none"),
}
"""Strategies that search several cells together, as one sweep."""


def improve_on_luckiest(
    sampler: GaussianProcessSampler, model: CellModel, running: np.ndarray
) -> np.ndarray:
    """Return the point that improves most on the settings with the luckiest run.

    Args:
        sampler: proposes.
        model: of the cell.
        running: points whose values are not known yet.
    """
    best = model.points[int(np.argmax(model.warp.values))]
    return sampler.best_point(model.process, model.normalized, model.points, best, running)


def _patched(*constants: tuple[Any, str, Any]) -> Callable[..., Strategy]:
    return partial(PatchedStrategy, constants=constants)


IDEAS: dict[str, Callable[..., Strategy]] = {
    "no warp": _patched((cell_model, "TOP_MARGIN", 1e4)),
    "Optuna's noise prior": _patched(
        (optuna_private, "NOISE_CONCENTRATION", 1.1),
        (optuna_private, "NOISE_RATE", 30.0),
        (optuna_private, "MIN_NOISE_VARIANCE", 1e-6),
    ),
    "improves on the luckiest": _patched(
        (GaussianProcessSampler, "_improve", improve_on_luckiest)
    ),
    "10 random trials": _patched((gp_sampler, "STARTUP_TRIALS", 10)),
    "cells apart": _patched((cell_model, "MIN_SOURCE_TRIALS", 10**9)),
    "proposes what was tried": _patched((optuna_private, "MIN_DISTANCE", 0.0)),
    "no repeats": partial(KdtuneStrategy, repeat_share=0),
    "no START": partial(PatchedStrategy, start=False),
    "no early check": _patched((stopping, "_HOPELESS_SHARE", 0.0)),
    "grace 4, 1 in 2": partial(KdtuneStrategy, grace_period=4),
    "revives stopped trials": RevivingStrategy,
}
"""Ours without one of its ideas, or with another: what ``--ablations`` compares."""

VARIANTS: dict[str, Callable[..., Strategy]] = {
    "tpe": partial(KdtuneStrategy, sampler="tpe"),
    "cmaes": partial(KdtuneStrategy, sampler="cmaes"),
    "qmc": partial(KdtuneStrategy, sampler="qmc"),
    "hyperband": partial(KdtuneStrategy, scheduler="hyperband"),
    "median": partial(KdtuneStrategy, scheduler="median"),
    "no stopping": partial(KdtuneStrategy, scheduler="none"),
    **{
        f"grace {grace}, 1 in {factor}": partial(
            KdtuneStrategy, grace_period=grace, reduction_factor=factor
        )
        for grace, factor in ((1, 2), (1, 4), (2, 2), (4, 4), (7, 2), (8, 4))
    },
}
"""Ours with one thing else, all cells together."""

STRATEGIES = JOINT_STRATEGIES | ONE_CELL_STRATEGIES | IDEAS | VARIANTS
