"""Every trial as a run of W&B, in a project that is called as the sweep; a group is a cell.

Runs are written into the sweep's folder, for `wandb sync`. They go to W&B while the sweep runs if
WANDB_API_KEY or WANDB_MODE says so.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from kdtune.log.events import (
    SUCCESSFUL_STATES,
    EpochFinished,
    LogOpening,
    TrialEnded,
    TrialProposed,
)
from kdtune.runtime.optional_imports import import_optional
from kdtune.storage.files import make_folder
from kdtune.trackers.tracker import COMPLETE_MARKER, select_hyperparameters, select_metrics


def import_wandb() -> Any:
    """Import W&B, which then reports its errors to nobody.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return import_optional("wandb", "wandb")


class WandbTracker:
    """Tells W&B of trials, as `kdtune.trackers.tracker.Tracker` has it.

    Args:
        folder: for runs; W&B wants it to be called ``wandb``.
        project: the sweep's name.
    """

    def __init__(self, folder: Path, project: str):
        self.folder, self.project = folder, project
        self._runs: dict[str, Any] = {}

    def setup(self, opening: LogOpening) -> None:
        """Name what runs of this log are known by."""
        self._wandb = import_wandb()
        self._log_id = round(1000 * opening.time)
        is_configured = os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY")
        self._mode = None if is_configured else "offline"
        make_folder(self.folder)

    def _run_id(self, trial_id: str) -> str:
        return f"{trial_id}-{self._log_id}"

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        """Whether the folder of a run is complete."""
        return any(
            (path / COMPLETE_MARKER).exists() for path in self._run_folders(proposed.trial_id)
        )

    def _run_folders(self, trial_id: str) -> list[Path]:
        """The folders of a run: ``run-<date>-<id>``, with ``offline-`` before it or without."""
        candidates = self.folder.glob("*run-*-*")
        name_parts = ["run", self._run_id(trial_id)]
        return [
            path
            for path in candidates
            if path.name.removeprefix("offline-").split("-", 2)[::2] == name_parts
        ]

    def log_trial_start(self, proposed: TrialProposed) -> None:
        """Begin a run, in place of what an earlier driver wrote; W&B itself passes over steps
        that it has."""
        run_id = self._run_id(proposed.trial_id)
        for path in self._run_folders(proposed.trial_id):
            shutil.rmtree(path)
        cell = proposed.cell_name
        self._runs[proposed.trial_id] = self._wandb.init(
            project=self.project,
            group=cell,
            name=proposed.trial_id,
            id=run_id,
            resume="allow",
            config=select_hyperparameters(proposed),
            tags=[cell, proposed.origin],
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

    def log_epoch(self, epoch: EpochFinished) -> None:
        """Tell the figures of an epoch."""
        self._runs[epoch.trial_id].log(select_metrics(epoch), step=epoch.epoch)

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        """End a run."""
        run = self._runs.pop(ended.trial_id)
        summary = {"state": str(ended.state), "reason": ended.reason, "epochs": ended.epochs}
        run.summary.update({**summary, "device_seconds": device_seconds})
        run.finish(exit_code=int(ended.state not in SUCCESSFUL_STATES))
        (Path(run.dir).parent / COMPLETE_MARKER).touch()

    def close(self) -> None:
        """End the runs of trials under way, as failed until these go on."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)
