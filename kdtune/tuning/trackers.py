"""The programs that get the figures of every trial: TensorBoard always, others where asked for."""

from collections.abc import Iterable

from kdtune.config import SweepConfig
from kdtune.results import SweepFolder
from kdtune.tuning.mlflow import MLflow, load_mlflow
from kdtune.tuning.tensorboard import TensorBoard
from kdtune.tuning.tracked import Tracked
from kdtune.tuning.wandb import WandB, load_wandb

LOADS = {"mlflow": load_mlflow, "wandb": load_wandb}
"""What imports the package of a tracker, by the tracker's name among the settings."""


def check_trackers(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        UserError: one is not.
    """
    for name in names:
        LOADS[name]()


def trackers(folder: SweepFolder, sweep: SweepConfig) -> list[Tracked]:
    """Those of a sweep."""
    tracked = [Tracked("TensorBoard", TensorBoard(folder.tensorboard))]
    if "mlflow" in sweep.track:
        tracked.append(Tracked("MLflow", MLflow(folder.mlflow, sweep.name)))
    if "wandb" in sweep.track:
        tracked.append(Tracked("W&B", WandB(folder.wandb, sweep.name)))
    return tracked
