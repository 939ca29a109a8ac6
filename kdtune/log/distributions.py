"""Optuna's distributions as a log holds them: plain values."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution


def is_log_scale(distribution: BaseDistribution) -> bool:
    """Return True if logarithms of the values are sampled uniformly."""
    return bool(getattr(distribution, "log", False))


def parse_distributions(serialized: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return distributions by name; they hold only numbers and strings.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    return {name: json_to_distribution(json.dumps(d)) for name, d in serialized.items()}
