"""Limits of a sweep's students: those with too many parameters, or too slow, are left out."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.models import build_model
from kdtune.models.costs import count_parameters, measure_network_costs
from kdtune.reports.tables.ship import ShipLimits


def drop_large_students(
    sweep: SweepConfig, num_classes: int, image_size: int, kept: Collection[str] = ()
) -> tuple[SweepConfig, list[str]]:
    """Return a sweep without the students above its limits, and a sentence about each of them.

    A latency is measured in this process, on the device of the sweep's runs.

    Args:
        sweep: the settings; a `UserError` if no student is left.
        num_classes: K.
        image_size: in pixels.
        kept: students that have trials already, and stay.
    """
    limits = ShipLimits(sweep.max_parameters, sweep.max_latency_ms)
    new_models = [model for model in dict.fromkeys(sweep.models) if model not in kept]
    if limits == ShipLimits() or not new_models:
        return sweep, []
    rows = [_measure(sweep, model, num_classes, image_size) for model in new_models]
    reasons = {row["model"]: reason for row in rows if (reason := _excess(row, limits))}
    if not kept and len(reasons) == len(new_models):
        limits.select(pd.DataFrame(rows))  # raises, and names the least
    update: dict[str, Any] = {"models": tuple(m for m in sweep.models if m not in reasons)}
    for setting in ("cpus_per_trial", "gpus_per_trial"):
        if isinstance(per_model := getattr(sweep, setting), Mapping):
            update[setting] = {m: value for m, value in per_model.items() if m not in reasons}
    return sweep.model_copy(update=update), list(reasons.values())


def _measure(sweep: SweepConfig, model: str, num_classes: int, image_size: int) -> dict[str, Any]:
    """Return the costs that the limits ask for: columns of `ShipLimits.select`."""
    if sweep.max_latency_ms is None:
        parameters = count_parameters(build_model(model, num_classes, image_size))
        return {"model": model, "parameters": parameters, "latency_ms": None}
    settings: dict[str, Any] = {"model": model, "image_size": image_size}
    for key in sweep.settings.keys() & {"device", "precision"}:
        settings[key] = sweep.settings[key]
    config = TrainConfig.parse(settings)
    return {"model": model, **measure_network_costs(config, num_classes)}


def _excess(costs: Mapping[str, Any], limits: ShipLimits) -> str | None:
    """Return a sentence on a student above the limits; None if it is within them."""
    name, parameters, latency = costs["model"], costs["parameters"], costs["latency_ms"]
    if limits.max_parameters is not None and parameters > limits.max_parameters:
        limit = f"{limits.max_parameters:,} are allowed"
        return f"{name} is left out: it has {parameters:,} parameters, where {limit}"
    if limits.max_latency_ms is not None and latency > limits.max_latency_ms:
        limit = f"{limits.max_latency_ms:g} ms are allowed on {costs['latency_device']}"
        return f"{name} is left out: an image takes {latency:.3g} ms, where {limit}"
    return None
