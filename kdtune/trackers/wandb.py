"""W&B tracker: one run per trial, in a project named after the sweep."""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtune.log.events import EpochFinished, LogOpening, TrialEnded, TrialProposed
from kdtune.runtime.optional_imports import import_optional
from kdtune.storage.files import make_folder
from kdtune.trackers.tracker import END_MARKER, Tracker, select_hyperparameters, select_metrics


def import_wandb() -> Any:
    """Import W&B, if it is installed, without its error reporting."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return import_optional("wandb", "wandb")


@dataclass(eq=False)
class WandbTracker(Tracker):
    folder: Path  # its name is "wandb", which W&B requires
    project: str
    _runs: dict[str, Any] = field(default_factory=dict, init=False)

    def setup(self, opening: LogOpening) -> None:
        self._wandb = import_wandb()
        self._log_id = round(1000 * opening.time)
        is_configured = os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY")
        self._mode = None if is_configured else "offline"  # for `wandb sync`
        make_folder(self.folder)

    def _run_folders(self, trial_id: str) -> list[Path]:
        pattern = rf"(offline-)?run-[^-]*-{re.escape(f'{trial_id}-{self._log_id}')}"
        return [path for path in self.folder.iterdir() if re.fullmatch(pattern, path.name)]

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        folders = self._run_folders(proposed.trial_id)
        return any((path / END_MARKER).exists() for path in folders)

    def log_trial_start(self, proposed: TrialProposed) -> None:
        trial_id, cell = proposed.trial_id, proposed.cell_name
        for path in self._run_folders(trial_id):
            shutil.rmtree(path)
        flags = dict.fromkeys(("silent", "disable_git", "disable_code", "x_disable_stats"), True)
        self._runs[trial_id] = self._wandb.init(
            project=self.project,
            group=cell,
            name=trial_id,
            id=f"{trial_id}-{self._log_id}",
            resume="allow",  # W&B skips the steps that it has
            config=select_hyperparameters(proposed),
            tags=[cell, proposed.origin],
            notes=proposed.describe_origin(),
            dir=self.folder.parent,
            mode=self._mode,
            reinit="create_new",  # several runs are active at once
            settings=self._wandb.Settings(console="off", **flags),
        )

    def log_epoch(self, epoch: EpochFinished) -> None:
        self._runs[epoch.trial_id].log(select_metrics(epoch), step=epoch.epoch)

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        run = self._runs.pop(ended.trial_id)
        summary = {"state": str(ended.state), "reason": ended.reason, "epochs": ended.epochs}
        run.summary.update({**summary, "device_seconds": device_seconds})
        run.finish(exit_code=int(not ended.is_successful))
        (Path(run.dir).parent / END_MARKER).touch()

    def close(self) -> None:
        """Finish the runs of trials that have not ended, as failed until they are resumed."""
        while self._runs:
            self._runs.popitem()[1].finish(exit_code=1)
