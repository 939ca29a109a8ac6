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

from kdtune.errors import UserError, nearest
from kdtune.tuning.search.space import Space

GRID = "grid"
"""The points of a grid, in random order; they are known beforehand, so no sampler is needed."""

AUTO = "auto"
"""`gp` or `tpe`, see `choose_sampler`."""

AUTO_TRIALS = 200
"""Trials of a cell up to which `gp` proposes; then it takes longer than `tpe` gains from it."""

STATELESS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "gp": partial(GPSampler, warn_independent_sampling=False),
}
"""Samplers whose proposals follow from the trials alone: each proposal has one of its own."""

STATEFUL: dict[str, Callable[..., BaseSampler]] = {
    "qmc": partial(QMCSampler, scramble=True, warn_independent_sampling=False),
    "cmaes": partial(CmaEsSampler, warn_independent_sampling=False),
}
"""Samplers that go on from what they proposed before: a cell has one, from beginning to end."""


def choose_sampler(space: Space, trials: int) -> str:
    """What `AUTO` stands for: Gaussian processes for few trials of a space with fixed settings.

    benchmarks/README.md has what they gain, and what a proposal costs.
    """
    return "gp" if space.define is None and trials <= AUTO_TRIALS else "tpe"


def describe_sampler(name: str) -> str:
    """Say who proposes."""
    return f"gp (tpe after {AUTO_TRIALS} trials of a cell)" if name == AUTO else name


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Make a sampler.

    Args:
        name: a key of `STATELESS` or `STATEFUL`, or the import path of a sampler's class, or of a
            function that gives one, as ``package.module.Name``.
        seed: given to what takes a ``seed``.

    Raises:
        UserError: there is no sampler of that name.
    """
    maker = (STATELESS | STATEFUL).get(name) or _import(name)
    seeded = {"seed": seed} if "seed" in inspect.signature(maker).parameters else {}
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        sampler = maker(**seeded)
    if not isinstance(sampler, BaseSampler):
        raise UserError(f"'{name}' gives no sampler of Optuna's, but a {type(sampler).__name__}.")
    return sampler


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise UserError(
            f"There is no sampler '{name}'; {nearest(name, [AUTO, *STATELESS, *STATEFUL, GRID])}; "
            "one of your own is given as package.module.Name."
        )
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever importing a user's module may raise
        raise UserError(f"The sampler '{name}' cannot be imported: {error}.") from None


def grid_points(space: Space, trials: int | None, seed: int) -> list[dict[str, Any]]:
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
    if space.define is not None:
        raise UserError(
            f"The sampler 'grid' needs a SPACE that is a dict; {space.path} has a function."
        )
    values = {name: _values(d) for name, d in space.distributions.items()}
    continuous = [name for name, known in values.items() if not known]
    if continuous:
        listed = math.prod(len(known) for known in values.values() if known)
        count = round(((trials or 100) / listed) ** (1 / len(continuous)))
        for name in continuous:
            values[name] = _divide(space.distributions[name], min(max(count, 2), 10))
    points = [
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    ]
    random.Random(seed).shuffle(points)
    return points


def _values(distribution: BaseDistribution) -> list[Any]:
    """All values, if they are few enough to be listed; else none."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]
    if step is None or (isinstance(low, int) and (high - low) / step > 10):
        return []
    return [low + step * i for i in range(round((high - low) / step) + 1)]


def _divide(distribution: BaseDistribution, count: int) -> list[Any]:
    """Values from the lowest to the highest, evenly on the distribution's scale."""
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    spread = np.geomspace if distribution.log else np.linspace  # type: ignore[attr-defined]
    values = spread(low, high, count)
    whole = isinstance(low, int)
    return [round(v) if whole else float(np.clip(v, low, high)) for v in values.tolist()]
