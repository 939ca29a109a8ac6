"""Strengths: weights of terms, said as multiples of the classification loss at the start."""

from collections.abc import Collection, Mapping
from typing import Any

from kdtune.errors import UserError

STRENGTHS = {"alpha_strength": "alpha", "beta_strength": "beta"}
"""Weights by the names of their strengths.

The strength of a term is its weighted value over the classification loss, both of the untrained
student on a few batches of training images.
"""

COUNTERPARTS = STRENGTHS | {weight: strength for strength, weight in STRENGTHS.items()}
"""Weights by strengths, and strengths by weights: of both, a run has one."""


def override_settings(
    settings: Mapping[str, Any], replacements: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings with others in their place; a weight also replaces its strength.

    Args:
        settings: weights, strengths and other settings by name.
        replacements: likewise.

    >>> override_settings({"beta_strength": 1.0, "lr": 0.1}, {"beta": 5.0})
    {'lr': 0.1, 'beta': 5.0}
    """
    return {**without_settings(settings, replacements), **replacements}


def without_settings(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return settings without some of them; without a weight, its strength is missing, too.

    Args:
        settings: weights, strengths and other settings by name.
        names: of settings.
    """
    return {k: v for k, v in settings.items() if not {k, COUNTERPARTS.get(k)} & set(names)}


def require_one_of_each(names: Collection[str]) -> None:
    """Raise a `UserError` if a weight and its strength are both among the names of settings."""
    for strength, weight in STRENGTHS.items():
        if strength in names and weight in names:
            raise UserError(f"'{strength}' decides '{weight}': give only one of them.")


def strengths_to_weights(
    settings: Mapping[str, Any], loss_scales: Mapping[str, float]
) -> dict[str, Any]:
    """Return settings with weights, to six digits, in place of strengths.

    Args:
        settings: weights, strengths and other settings by name.
        loss_scales: by weight, its term over the classification loss if the weight is 1; without
            its scale, a strength is the weight itself.

    >>> strengths_to_weights({"lr": 0.1, "beta_strength": 2.0}, {"beta": 0.003})
    {'lr': 0.1, 'beta': 666.667}
    """
    weights = dict(settings)
    for strength, weight in STRENGTHS.items():
        if strength in weights:
            value = weights.pop(strength)
            scale = loss_scales.get(weight)
            weights[weight] = float(f"{value / scale:.6g}") if scale else value
    return weights


def trained_values(params: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return searched values with the weights that were trained in place of strengths.

    Args:
        params: searched values of a trial.
        config: its complete settings.
    """
    return {
        STRENGTHS.get(name, name): config[STRENGTHS[name]] if name in STRENGTHS else value
        for name, value in params.items()
    }
