"""Samplers: Optuna's by name, and any other by its import path."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from optuna import samplers
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from kdtune.config.names import require_sampler_name
from kdtune.errors import UserError, first_line
from kdtune.tuning.search.gp_sampler import GaussianProcessSampler
from kdtune.tuning.search.space import SearchSpace

GRID_SAMPLER = "grid"  # tries every point of a space once, in random order
GP_SAMPLER = "gp"  # also learns from the other cells
AUTO_SAMPLER = "auto"  # `gp` or `tpe`; see `choose_sampler`


class _GridSampler(samplers.BruteForceSampler):
    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Optuna would stop the study, which only works inside its own loop."""


STATELESS_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "random": samplers.RandomSampler,
    GP_SAMPLER: GaussianProcessSampler,
    GRID_SAMPLER: _GridSampler,
}
"""Samplers whose proposals depend only on the trials: a new one makes each proposal."""

STATEFUL_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "qmc": partial(samplers.QMCSampler, scramble=True, warn_independent_sampling=False),
    "cmaes": partial(samplers.CmaEsSampler, warn_independent_sampling=False),
}
"""Samplers whose proposals depend on their earlier ones: a cell keeps one."""


def choose_sampler(space: SearchSpace) -> str:
    """Return the sampler that `AUTO_SAMPLER` stands for; benchmarks/README.md compares them."""
    return GP_SAMPLER if space.define_by_run is None else "tpe"


def describe_sampler(name: str) -> str:
    """Return the name of a sampler for the user."""
    return f"{GP_SAMPLER} (tpe for a space that is a function)" if name == AUTO_SAMPLER else name


def make_sampler(name: str, seed: int, **options: Any) -> BaseSampler:
    """Return a new sampler.

    Args:
        name: a key of `STATELESS_SAMPLERS` or `STATEFUL_SAMPLERS`, or the import path of a class
            or function that returns a sampler, as ``package.module.Name``.
        seed: passed to it if it takes a ``seed``.
        options: passed to it as well.
    """
    factory = (STATELESS_SAMPLERS | STATEFUL_SAMPLERS).get(name) or _import_sampler(name)
    try:
        takes_seed = "seed" in inspect.signature(factory).parameters
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            sampler = factory(**({"seed": seed} if takes_seed else {}), **options)
    except Exception as error:  # whatever a class or function may raise
        raise UserError(
            f"The sampler '{name}' cannot be created: {first_line(error)}; "
            "give a function of your own that creates it."
        ) from None
    if not isinstance(sampler, BaseSampler):
        returned = type(sampler).__name__
        raise UserError(f"'{name}' returns a {returned}, not an Optuna sampler.")
    return sampler


def _import_sampler(name: str) -> Callable[..., Any]:
    require_sampler_name(name)
    module_name, _, attribute = name.rpartition(".")
    try:
        factory: Callable[..., Any] = getattr(import_module(module_name), attribute)
    except Exception as error:  # whatever importing a user's module may raise
        raise UserError(f"The sampler '{name}' cannot be imported: {error}.") from None
    return factory


def require_enumerable(space: SearchSpace) -> None:
    """Refuse a space whose points cannot be listed, as `GRID_SAMPLER` does."""
    for trial, _ in space.probe_points():
        for key, distribution in trial.distributions.items():
            if isinstance(distribution, FloatDistribution) and distribution.step is None:
                raise UserError(
                    f"The sampler 'grid' tries every point, but '{key}' of {space.path} has a "
                    "continuous range: give it as tune.choice or tune.quniform, or use another "
                    "sampler."
                )
