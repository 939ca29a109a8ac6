"""Every trial as a run of W&B, in a project that is called as the sweep; a group is a cell.

Runs are written into the sweep's folder, for `wandb sync`. They go to W&B while the sweep runs if
WANDB_API_KEY or WANDB_MODE says so.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from kdtune.log.events import SOUND, Event
from kdtune.runtime.optional_imports import extra
from kdtune.storage.files import make_folder
from kdtune.trackers.tracker import ENDED, FINAL, figures, hyperparameters


def load_wandb() -> Any:
    """Import W&B, which then reports its errors to nobody.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return extra("wandb", "wandb")


class WandB:
    """Tells W&B of trials, as `kdtune.trackers.tracker.Tracker` has it.

    Args:
        folder: for runs; W&B wants it to be called ``wandb``.
        project: the sweep's name.
    """

    def __init__(self, folder: Path, project: str):
        self.folder, self.project = folder, project
        self._runs: dict[str, Any] = {}

    def begin(self, opened: Event) -> None:
        """Name what runs of this log are known by."""
        self._wandb = load_wandb()
        self._log = round(1000 * opened["time"])
        told = os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY")
        self._mode = None if told else "offline"
        make_folder(self.folder)

    def _id(self, trial_id: str) -> str:
        return f"{trial_id}-{self._log}"

    def has(self, asked: Event) -> bool:
        """Whether the folder of a run is complete."""
        return any((path / ENDED).exists() for path in self._folders(asked["trial_id"]))

    def _folders(self, trial_id: str) -> list[Path]:
        """The folders of a run: ``run-<date>-<id>``, with ``offline-`` before it or without."""
        found = self.folder.glob("*run-*-*")
        own = ["run", self._id(trial_id)]
        return [
            path for path in found if path.name.removeprefix("offline-").split("-", 2)[::2] == own
        ]

    def start(self, asked: Event) -> None:
        """Begin a run, in place of what an earlier driver wrote; W&B itself passes over steps
        that it has."""
        run_id = self._id(asked["trial_id"])
        for path in self._folders(asked["trial_id"]):
            shutil.rmtree(path)
        cell = f"{asked['method']}-{asked['model']}"
        self._runs[asked["trial_id"]] = self._wandb.init(
            project=self.project,
            group=cell,
            name=asked["trial_id"],
            id=run_id,
            resume="allow",
            config=hyperparameters(asked),
            tags=[cell, asked["origin"]],
            dir=self.folder.parent,
            mode=self._mode,
            reinit="create_new",  # trials run side by side
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )

    def log(self, epoch: Event) -> None:
        """Tell the figures of an epoch."""
        self._runs[epoch["trial_id"]].log(figures(epoch), step=epoch["epoch"])

    def end(self, ended: Event) -> None:
        """End a run."""
        run = self._runs.pop(ended["trial_id"])
        run.summary.update({key: ended[key] for key in ("state", "reason", *FINAL)})
        run.finish(exit_code=int(ended["state"] not in SOUND))
        (Path(run.dir).parent / ENDED).touch()

    def close(self) -> None:
        """End the runs of trials under way, as failed until these go on."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)
