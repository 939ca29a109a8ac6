"""Comparison of the settings of runs: what differs, and a hash of those that count."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kdtune.config.train import METHOD_DEFAULTS, OUTPUT_FIELDS, TrainConfig

LOCATION_FIELDS = {
    "data_dir", "data_root", "image_column", "label_column", "teacher_model", "num_workers",
    "cache_gb", "device",
}  # fmt: skip
"""Settings that depend on the machine and do not change what is learned."""


def changed_settings(saved: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the saved values of settings that differ; one that is not saved had its default.

    Args:
        saved: settings of a run, maybe of an older version, which had fewer.
        config: settings of a run now.
    """
    defaults = {key: field.default for key, field in TrainConfig.model_fields.items()}
    was = {**defaults, **(METHOD_DEFAULTS.find(config.method) or {}), **saved}
    return {
        key: was.get(key) for key, value in config.model_dump().items() if was.get(key) != value
    }


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings without locations and outputs, whatever their order."""
    excluded = LOCATION_FIELDS | OUTPUT_FIELDS
    relevant = {key: value for key, value in settings.items() if key not in excluded}
    relevant["taught"] = settings.get("teacher_model") is not None
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
