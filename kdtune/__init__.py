"""Hyperparameter search for knowledge distillation, built on Ray Tune and Optuna."""

from typing import Any

__all__ = ["load_model", "run_sweep"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``kdtune --help`` needs no torch."""
    if name == "load_model":
        from kdtune.checkpoints import load_model

        return load_model
    if name == "run_sweep":
        from kdtune.tuning.sweep import run_sweep

        return run_sweep
    raise AttributeError(f"module 'kdtune' has no attribute '{name}'")
