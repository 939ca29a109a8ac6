"""The sampler `gp`: Gaussian processes that know noise, failures and other cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from kdtune.tuning.search.cell_model import CellModel
from kdtune.tuning.search.optuna_private import ProcessSampler

STARTUP_TRIALS = 6
"""Completed trials of a cell up to which points are drawn without its own model."""

NUM_RANDOM_POINTS = 64
"""Random points of which the one with the best prior mean is proposed before that."""


class GaussianProcessSampler(ProcessSampler):
    """Optuna's `GPSampler` on warped accuracies, with the models of other cells as prior mean.

    Its first trials are drawn at random; where other cells give a prior mean, every other one is
    the best of some random points by that mean.

    Args:
        seed: of its random numbers.
        space: the searched settings, if they are known before the first trial.
        sources: models of other cells.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        space: Mapping[str, BaseDistribution] | None = None,
        sources: Sequence[CellModel] = (),
    ):
        super().__init__(seed=seed, warn_independent_sampling=False)
        self.space, self.sources = space, sources

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the settings that the model proposes."""
        if self.space is None:
            return super().infer_relative_search_space(study, trial)
        return {name: d for name, d in self.space.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values that the model proposes; none are drawn at random."""
        if not search_space:
            return {}
        completed = _trials_with(study, TrialState.COMPLETE, search_space)
        model = CellModel(completed, search_space, self.sources)
        with torch.device("cpu"):
            if len(completed) < STARTUP_TRIALS:
                point = self._draw_by_prior(model) if trial.number % 2 else None
            else:
                running = _trials_with(study, TrialState.RUNNING, search_space)
                point = self._improve(model, model.normalized.get_normalized_params(running))
        return {} if point is None else model.normalized.get_unnormalized_param(point)

    def _draw_by_prior(self, model: CellModel) -> np.ndarray | None:
        if model.prior_mean is None:
            return None
        points = model.normalized.sample_normalized_params(NUM_RANDOM_POINTS, self._rng.rng)
        best: np.ndarray = points[int(model.prior_mean(torch.from_numpy(points)).argmax())]
        return best

    def _improve(self, model: CellModel, running: np.ndarray) -> np.ndarray:
        mean, _ = model.posterior()
        best = model.points[int(np.argmax(mean))]
        return self.best_point(model.process, model.normalized, model.points, best, running)


def _trials_with(
    study: Study, state: TrialState, space: dict[str, BaseDistribution]
) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(state,))
    return [trial for trial in trials if space.keys() <= trial.params.keys()]
