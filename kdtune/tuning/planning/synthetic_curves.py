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

from kdtune.log.distributions import read_distributions
from kdtune.log.events import Event
from kdtune.runtime.seeds import derive_seed

CHANCE, TOP = 0.1, 0.9
"""Accuracies before training, and at the best point of a space after all epochs."""

SPREAD = 0.5
"""How much lower the far end of a space is, as a share of what can be learned."""

LUCK, NOISE = 0.02, 0.01
"""Standard deviations: of a trial as a whole, and of each of its epochs."""

SPEEDS = (3.0, 9.0)
"""In so many times its length a trial would come nearer to its end by the factor e, at random."""


class Imagined:
    """Curves that follow from a trial's settings and a seed.

    Args:
        epochs: of a trial that is not stopped.
        seed: fixes all curves.
    """

    def __init__(self, epochs: int, seed: int):
        self.epochs, self.seed = epochs, seed

    def draw(self, asked: Event) -> Sequence[float]:
        """Validation accuracies of a trial by epoch, from the event that asked for it."""
        place = units(asked["parameters"], read_distributions(asked["distributions"]))
        cell = np.random.default_rng(derive_seed(self.seed, asked["method"], asked["model"]))
        best = {name: cell.uniform() for name in sorted(place)}
        distances = [(place[name] - best[name]) ** 2 for name in place]
        far = float(np.sqrt(np.mean(distances))) if distances else 0.0
        own = np.random.default_rng(derive_seed(self.seed, asked["trial_id"]))
        end = (TOP - CHANCE) * (1 - SPREAD * far) + LUCK * own.standard_normal()
        done = np.arange(1, self.epochs + 1) / self.epochs
        reached = CHANCE + end * (1 - np.exp(-own.uniform(*SPEEDS) * done))
        noise = NOISE * own.standard_normal(self.epochs)
        return np.clip(reached + noise, 0, 1).tolist()


def units(
    parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    """Where values lie in what they were drawn from, from 0 to 1, by name; choices by number."""
    return {name: _unit(value, distributions[name]) for name, value in parameters.items()}


def _unit(value: Any, drawn_from: BaseDistribution) -> float:
    if isinstance(drawn_from, CategoricalDistribution):
        count = len(drawn_from.choices)
        return drawn_from.to_internal_repr(value) / (count - 1) if count > 1 else 0.0
    low, high = drawn_from.low, drawn_from.high  # type: ignore[attr-defined]
    if low == high:
        return 0.0
    if drawn_from.log:  # type: ignore[attr-defined]
        return float(np.log(value / low) / np.log(high / low))
    return (value - low) / (high - low)
