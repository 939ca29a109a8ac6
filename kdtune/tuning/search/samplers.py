"""Who proposes settings: Optuna's samplers by name, and any other by its import path."""

import inspect
import itertools
import math
import random
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from kdtune.errors import UserError, did_you_mean
from kdtune.tuning.search.space import SearchSpace

GRID_SAMPLER = "grid"
"""The points of a grid, in random order; they are known beforehand, so no sampler is needed."""

AUTO_SAMPLER = "auto"
"""`gp` or `tpe`, see `choose_sampler`."""

AUTO_GP_MAX_TRIALS = 200
"""Trials of a cell up to which `gp` proposes; then it takes longer than `tpe` gains from it."""

STATELESS_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "gp": partial(GPSampler, warn_independent_sampling=False),
}
"""Samplers whose proposals follow from the trials alone: each proposal has one of its own."""

STATEFUL_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "qmc": partial(QMCSampler, scramble=True, warn_independent_sampling=False),
    "cmaes": partial(CmaEsSampler, warn_independent_sampling=False),
}
"""Samplers that go on from what they proposed before: a cell has one, from beginning to end."""


def choose_sampler(space: SearchSpace, num_trials: int) -> str:
    """What `AUTO` stands for: Gaussian processes for few trials of a space with fixed settings.

    benchmarks/README.md has what they gain, and what a proposal costs.
    """
    return "gp" if space.define_by_run is None and num_trials <= AUTO_GP_MAX_TRIALS else "tpe"


def describe_sampler(name: str) -> str:
    """Say who proposes."""
    return (
        f"gp (tpe after {AUTO_GP_MAX_TRIALS} trials of a cell)" if name == AUTO_SAMPLER else name
    )


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Make a sampler.

    Args:
        name: a key of `STATELESS` or `STATEFUL`, or the import path of a sampler's class, or of a
            function that gives one, as ``package.module.Name``.
        seed: given to what takes a ``seed``.

    Raises:
        UserError: there is no sampler of that name.
    """
    factory = (STATELESS_SAMPLERS | STATEFUL_SAMPLERS).get(name) or _import_sampler(name)
    seed_kwargs = {"seed": seed} if "seed" in inspect.signature(factory).parameters else {}
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        sampler = factory(**seed_kwargs)
    if not isinstance(sampler, BaseSampler):
        raise UserError(f"'{name}' gives no sampler of Optuna's, but a {type(sampler).__name__}.")
    return sampler


def _import_sampler(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise UserError(
            f"There is no sampler '{name}'; {did_you_mean(name, [AUTO_SAMPLER, *STATELESS_SAMPLERS, *STATEFUL_SAMPLERS, GRID_SAMPLER])}; "
            "one of your own is given as package.module.Name."
        )
    try:
        return getattr(import_module(module_name), attribute)
    except Exception as error:  # whatever importing a user's module may raise
        raise UserError(f"The sampler '{name}' cannot be imported: {error}.") from None


def make_grid_points(space: SearchSpace, trials: int | None, seed: int) -> list[dict[str, Any]]:
    """All points of a grid over a space, in random order.

    Lists and stepped ranges give all their values; the others are divided evenly on their scale,
    into as many values as make about `trials` points, at least 2 and at most 10.

    Args:
        space: what is searched; no function.
        trials: of the cell; None if they are not limited.
        seed: fixes the order.

    Raises:
        UserError: the space is a function, so that its points are not known beforehand.
    """
    if space.define_by_run is not None:
        raise UserError(
            f"The sampler 'grid' needs a SPACE that is a dict; {space.path} has a function."
        )
    values = {name: _list_values(d) for name, d in space.distributions.items()}
    continuous = [name for name, choices in values.items() if not choices]
    if continuous:
        listed_points = math.prod(len(choices) for choices in values.values() if choices)
        values_per_range = round(((trials or 100) / listed_points) ** (1 / len(continuous)))
        for name in continuous:
            values[name] = _divide_range(
                space.distributions[name], min(max(values_per_range, 2), 10)
            )
    points = [
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    ]
    random.Random(seed).shuffle(points)
    return points


def _list_values(distribution: BaseDistribution) -> list[Any]:
    """All values, if they are few enough to be listed; else none."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]
    if step is None or (isinstance(low, int) and (high - low) / step > 10):
        return []
    return [low + step * i for i in range(round((high - low) / step) + 1)]


def _divide_range(distribution: BaseDistribution, count: int) -> list[Any]:
    """Values from the lowest to the highest, evenly on the distribution's scale."""
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    spacing = np.geomspace if distribution.log else np.linspace  # type: ignore[attr-defined]
    values = spacing(low, high, count)
    is_integer = isinstance(low, int)
    return [round(v) if is_integer else float(np.clip(v, low, high)) for v in values.tolist()]
