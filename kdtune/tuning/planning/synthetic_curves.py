"""Learning curves that nobody trained, where a sweep is planned before anything was.

What a trial reaches depends on how far its settings are from a good point that is drawn for each
cell, and on luck; how fast, on luck alone. That good settings are near one another, and that early
epochs say a good deal about late ones, is true of recorded curves; how much so is a guess here. So
is what stopping saves by them: rules that stop the worse half do so on any curves, but which
trials come in which order, and so how many are stopped, depends on them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from kdtune.log.distributions import parse_distributions
from kdtune.log.events import TrialProposed
from kdtune.runtime.seeds import derive_seed

CHANCE_ACCURACY, TOP_ACCURACY = 0.1, 0.9
"""Accuracies before training, and at the best point of a space after all epochs."""

FAR_POINT_LOSS = 0.5
"""How much lower the far end of a space is, as a share of what can be learned."""

TRIAL_SD, EPOCH_SD = 0.02, 0.01
"""Standard deviations: of a trial as a whole, and of each of its epochs."""

LEARNING_SPEEDS = (3.0, 9.0)
"""In so many times its length a trial would come nearer to its end by the factor e, at random."""


class SyntheticCurves:
    """Curves that follow from a trial's settings and a seed.

    Args:
        epochs: of a trial that is not stopped.
        seed: fixes all curves.
    """

    def __init__(self, epochs: int, seed: int):
        self.epochs, self.seed = epochs, seed

    def draw_curve(self, proposal: TrialProposed) -> Sequence[float]:
        """Validation accuracies of a trial by epoch, from the event that asked for it."""
        point = to_unit_interval(proposal.params, parse_distributions(proposal.distributions))
        cell_rng = np.random.default_rng(derive_seed(self.seed, *proposal.cell))
        optimum = {name: cell_rng.uniform() for name in sorted(point)}
        distances = [(point[name] - optimum[name]) ** 2 for name in point]
        distance = float(np.sqrt(np.mean(distances))) if distances else 0.0
        trial_rng = np.random.default_rng(derive_seed(self.seed, proposal.trial_id))
        gain = (TOP_ACCURACY - CHANCE_ACCURACY) * (
            1 - FAR_POINT_LOSS * distance
        ) + TRIAL_SD * trial_rng.standard_normal()
        progress = np.arange(1, self.epochs + 1) / self.epochs
        curve = CHANCE_ACCURACY + gain * (
            1 - np.exp(-trial_rng.uniform(*LEARNING_SPEEDS) * progress)
        )
        noise = EPOCH_SD * trial_rng.standard_normal(self.epochs)
        return np.clip(curve + noise, 0, 1).tolist()


def to_unit_interval(
    params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    """Where values lie in what they were drawn from, from 0 to 1, by name; choices by number."""
    return {name: _scale_to_unit(value, distributions[name]) for name, value in params.items()}


def _scale_to_unit(value: Any, distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        count = len(distribution.choices)
        return distribution.to_internal_repr(value) / (count - 1) if count > 1 else 0.0
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    if low == high:
        return 0.0
    if distribution.log:  # type: ignore[attr-defined]
        return float(np.log(value / low) / np.log(high / low))
    return (value - low) / (high - low)
