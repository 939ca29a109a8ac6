"""FitNets in a notebook: the settings, and one training run."""

from typing import Any

from kdtune.config import TrainConfig
from kdtune.run import Loader, run_training


def create_fitnets_config(**kwargs: Any) -> dict[str, Any]:
    """Complete settings of a FitNets run.

    Args:
        kwargs: settings that differ from the defaults, see `TrainConfig`.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    return TrainConfig.of_method("fitnets", kwargs).model_dump()


def train_fitnets(
    config: dict[str, Any] | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
) -> dict[str, Any]:
    """Train a student with FitNets; see `kdtune.run.run_training`."""
    settings = TrainConfig.of_method("fitnets", config or {})
    return run_training(settings, train_loader, val_loader, test_loader)
