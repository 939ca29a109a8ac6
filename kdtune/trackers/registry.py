"""The programs that get the figures of every trial: TensorBoard always, others where asked for."""

from collections.abc import Callable, Iterable

from kdtune.config.sweep import SweepConfig
from kdtune.log.folder import SweepFolder
from kdtune.trackers.mlflow import MLflow, load_mlflow
from kdtune.trackers.tensorboard import TensorBoard
from kdtune.trackers.tracker import Tracked, Tracker
from kdtune.trackers.wandb import WandB, load_wandb

LOADS = {"mlflow": load_mlflow, "wandb": load_wandb}
"""What imports the package of a tracker, by the tracker's name among the settings."""


def check_trackers(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        UserError: one is not.
    """
    for name in names:
        LOADS[name]()


def trackers(
    folder: SweepFolder, sweep: SweepConfig, say: Callable[[str], object]
) -> list[Tracked]:
    """Those of a sweep; `say` tells a person what went wrong with one."""
    found: dict[str, Tracker] = {"TensorBoard": TensorBoard(folder.tensorboard)}
    if "mlflow" in sweep.track:
        found["MLflow"] = MLflow(folder.mlflow, sweep.name)
    if "wandb" in sweep.track:
        found["W&B"] = WandB(folder.wandb, sweep.name)
    return [Tracked(name, tracker, say) for name, tracker in found.items()]
