"""The trackers of a sweep: TensorBoard always, MLflow and W&B on request."""

from collections.abc import Callable, Iterable

from kdtune.config.sweep import SweepConfig
from kdtune.log.folder import SweepFolder
from kdtune.trackers.mlflow import MLflowTracker, import_mlflow
from kdtune.trackers.tensorboard import TensorBoardTracker
from kdtune.trackers.tracker import Tracker, TrackerFold
from kdtune.trackers.wandb import WandbTracker, import_wandb


def require_tracker_packages(names: Iterable[str]) -> None:
    """Raise a `UserError` if the package of a tracker is not installed."""
    for name in names:
        {"mlflow": import_mlflow, "wandb": import_wandb}[name]()


def create_trackers(
    folder: SweepFolder, config: SweepConfig, warn: Callable[[str], object]
) -> list[TrackerFold]:
    """Return the trackers of a sweep.

    Args:
        folder: the sweep's folder.
        config: settings of the sweep.
        warn: prints a warning.
    """
    by_name: dict[str, Tracker] = {"TensorBoard": TensorBoardTracker(folder.tensorboard_folder)}
    if "mlflow" in config.trackers:
        by_name["MLflow"] = MLflowTracker(folder.mlflow_folder, config.name)
    if "wandb" in config.trackers:
        by_name["W&B"] = WandbTracker(folder.wandb_folder, config.name)
    return [TrackerFold(name, tracker, warn) for name, tracker in by_name.items()]
