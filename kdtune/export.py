"""The best of each cell as files that others load: so far, its configuration as YAML."""

import json
from dataclasses import dataclass
from typing import Any

from kdtune.config import settings_hash
from kdtune.files import write_yaml
from kdtune.reports.leaderboard import SweepTables
from kdtune.results import Cell, SweepFolder


@dataclass(frozen=True)
class Best:
    """What stands for a cell: of a confirmed one the best run of what was chosen, judged by
    validation images; else the best trial of the search.

    Attributes:
        name: the run's, or the trial's.
        trial_id: the trial's.
        settings: complete.
        validation_accuracy: share of 1, at the best epoch.
        epoch: that one.
        device, threads: where it ran.
    """

    name: str
    trial_id: str
    settings: dict[str, Any]
    validation_accuracy: float
    epoch: int
    device: str
    threads: int

    @property
    def confirmed(self) -> bool:
        """Whether it is a run of a confirmation."""
        return self.name != self.trial_id


def best_of_cells(tables: SweepTables) -> dict[Cell, Best]:
    """What stands for each cell that has a sound trial."""
    trials = tables.trials.assign(name=tables.trials["trial_id"])
    runs = tables.runs[tables.runs["chosen"] & (tables.runs["status"] == "ok")]
    runs = runs.assign(name=runs["run_id"])
    best = {}
    for cell in tables.leaderboard.dropna(subset="trial_id").itertuples():
        own = runs[runs["trial_id"] == cell.trial_id]
        found = own if len(own) else trials[trials["trial_id"] == cell.trial_id]
        row = found.loc[found["best_validation_accuracy"].idxmax()]
        best[cell.method, cell.model] = Best(
            name=row["name"],
            trial_id=cell.trial_id,
            settings=json.loads(row["configuration"]),
            validation_accuracy=float(row["best_validation_accuracy"]),
            epoch=int(row["best_epoch"]),
            device=row["device"],
            threads=int(row["threads"]),
        )
    return best


def write_best(folder: SweepFolder, best: dict[Cell, Best]) -> None:
    """Write `best/<method>-<model>.yaml` of every cell that has one.

    The file holds complete settings, for ``kdtune train``, and under ``provenance`` what was
    reached with them and how, so that a second run can be compared.
    """
    sweep = folder.settings()
    for cell, found in best.items():
        # A sweep that was resumed elsewhere has data and teacher there.
        settings = found.settings | {"data_dir": sweep.data}
        if settings["teacher_model"] is not None:
            settings["teacher_model"] = sweep.teacher
        provenance = {
            "sweep": folder.path.name,
            "trial_id": found.trial_id,
            **({"run_id": found.name} if found.confirmed else {}),
            "best_validation_accuracy": found.validation_accuracy,
            "best_epoch": found.epoch,
            "device": found.device,
            "threads": found.threads,
            "settings_sha256": settings_hash(settings),
        }
        write_yaml(folder.best(*cell), {**settings, "provenance": provenance})
