"""Hyperparameter search for knowledge distillation, built on Ray Tune and Optuna."""

import os
from importlib import import_module
from typing import Any

# Threads of torch that wait for each other soon sleep, instead of using cores that others want.
# GNU's OpenMP reads this when torch is loaded; its default is 300,000.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_MODULES_BY_NAME = {
    "evaluate_model": "kdtune.notebook.steps",
    "load_model": "kdtune.models.checkpoints",
    "load_plugins": "kdtune.plugins",
    "load_sweep": "kdtune.notebook.sweeps",
    "prepare_dataloaders": "kdtune.data.loaders",
    "run_sweep": "kdtune.tuning.sweep",
    "trainable": "kdtune.tuning.trainable",
}

__all__ = list(_MODULES_BY_NAME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``kdtune --help`` loads no torch."""
    if name not in _MODULES_BY_NAME:
        raise AttributeError(f"module 'kdtune' has no attribute '{name}'")
    return getattr(import_module(_MODULES_BY_NAME[name]), name)


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return __all__
