"""The best trials as files that others load: so far, the configuration of each cell as YAML."""

import json

import pandas as pd

from kdtune.config import settings_hash
from kdtune.files import write_yaml
from kdtune.results import SweepFolder


def write_best(folder: SweepFolder, leaderboard: pd.DataFrame, trials: pd.DataFrame) -> None:
    """Write `best/<method>-<model>.yaml` for every cell that has a trained trial.

    The file holds the complete settings of the cell's best trial, for ``kdtune train``, and under
    ``provenance`` what that trial reached and how, so that a second run can be compared.

    Args:
        folder: where to.
        leaderboard: as `kdtune.reports.tables.leaderboard_table` makes it.
        trials: as `kdtune.reports.tables.trials_table` makes it.
    """
    sweep = folder.opened()[-1]["config"]
    by_id = trials.set_index("trial_id")
    for cell in leaderboard.dropna(subset="trial_id").itertuples():
        trial = by_id.loc[cell.trial_id]
        # A sweep that was resumed elsewhere has data and teacher there.
        settings = json.loads(trial.configuration) | {"data_dir": sweep["data"]}
        if settings["teacher_model"] is not None:
            settings["teacher_model"] = sweep["teacher"]
        provenance = {
            "sweep": folder.path.name,
            "trial_id": cell.trial_id,
            "best_validation_accuracy": float(trial.best_validation_accuracy),
            "best_epoch": int(trial.best_epoch),
            "device": trial.device,
            "threads": int(trial.threads),
            "settings_sha256": settings_hash(settings),
        }
        write_yaml(folder.best(cell.method, cell.model), {**settings, "provenance": provenance})
