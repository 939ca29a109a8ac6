"""Optuna's distributions as a log holds them, and Optuna without its messages."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import create_trial


def is_log_scale(distribution: BaseDistribution) -> bool:
    """Return True if logarithms of the values are sampled uniformly."""
    return bool(getattr(distribution, "log", False))


def parse_distributions(serialized: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return distributions by name; damaged ones raise a KeyError, TypeError or ValueError."""
    return {name: json_to_distribution(json.dumps(d)) for name, d in serialized.items()}


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return True if a value can be drawn from a distribution.

    Args:
        distribution: the distribution.
        value: any value.
    """
    try:
        create_trial(value=0.0, params={"": value}, distributions={"": distribution})
    except (TypeError, ValueError):
        return False
    return True


def on_grid(distribution: BaseDistribution | None, value: Any) -> Any:
    """Return a value without the rounding error of a stepped range.

    Args:
        distribution: of the value; None if it is not known.
        value: as Optuna draws it, such as 0.1 + 2 * 0.1.

    >>> from optuna.distributions import FloatDistribution
    >>> on_grid(FloatDistribution(0.1, 0.5, step=0.1), 0.1 + 2 * 0.1)
    0.3
    """
    has_step = isinstance(value, float) and getattr(distribution, "step", None) is not None
    return float(f"{value:.12g}") if has_step else value


@contextmanager
def quiet_optuna(level: int = optuna.logging.WARNING) -> Iterator[None]:
    """Hide Optuna's messages below a level, such as the line about each new study."""
    previous_verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(previous_verbosity)
