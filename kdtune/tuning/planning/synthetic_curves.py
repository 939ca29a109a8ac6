"""Synthetic learning curves for planning.

The accuracy that a trial reaches depends on luck and on the distance of its settings from a good
point, which is drawn for each cell; its speed depends on luck alone. How much is a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import distributions as kinds

from kdtune.log.distributions import parse_distributions
from kdtune.log.events import TrialProposed
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.planning.simulation import LearningCurves

CHANCE_ACCURACY, TOP_ACCURACY = 0.1, 0.9
"""Accuracies before training, and at the best point of a space after all epochs."""

FAR_POINT_LOSS = 0.5
"""Share of the possible gain that is lost at the far end of a space."""

TRIAL_SD, EPOCH_SD = 0.02, 0.01
"""Standard deviations of the accuracy between trials, and between epochs of a trial."""

LEARNING_SPEEDS = (3.0, 9.0)
"""Range of the number of time constants in a trial's length."""


@dataclass(frozen=True)
class SyntheticCurves(LearningCurves):
    """Learning curves that follow from a trial's settings and a seed."""

    epochs: int
    seed: int

    def draw_curve(self, proposal: TrialProposed) -> Sequence[float]:
        point = to_unit_interval(proposal.params, parse_distributions(proposal.distributions))
        cell_rng = np.random.default_rng(derive_seed(self.seed, *proposal.cell))
        optimum = {name: cell_rng.uniform() for name in sorted(point)}
        distances = [(point[name] - optimum[name]) ** 2 for name in point]
        distance = float(np.sqrt(np.mean(distances))) if distances else 0.0
        trial_rng = np.random.default_rng(derive_seed(self.seed, proposal.trial_id))
        mean_gain = (TOP_ACCURACY - CHANCE_ACCURACY) * (1 - FAR_POINT_LOSS * distance)
        gain = mean_gain + TRIAL_SD * trial_rng.standard_normal()
        progress = np.arange(1, self.epochs + 1) / self.epochs
        learned = 1 - np.exp(-trial_rng.uniform(*LEARNING_SPEEDS) * progress)
        noise = EPOCH_SD * trial_rng.standard_normal(self.epochs)
        curve: list[float] = np.clip(CHANCE_ACCURACY + gain * learned + noise, 0, 1).tolist()
        return curve


def to_unit_interval(
    params: Mapping[str, Any], distributions: Mapping[str, kinds.BaseDistribution]
) -> dict[str, float]:
    """Scale values to the range 0 to 1 of what they were drawn from; choices by their number.

    Args:
        params: values by name.
        distributions: by the same names.
    """
    return {name: _scale_to_unit(value, distributions[name]) for name, value in params.items()}


def _scale_to_unit(value: Any, distribution: kinds.BaseDistribution) -> float:
    if distribution.single():
        return 0.0
    if isinstance(distribution, kinds.CategoricalDistribution):
        return distribution.to_internal_repr(value) / (len(distribution.choices) - 1)
    assert isinstance(distribution, kinds.FloatDistribution | kinds.IntDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return float(np.log(value / low) / np.log(high / low))
    return float((value - low) / (high - low))
