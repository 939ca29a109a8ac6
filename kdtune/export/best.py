"""The best of each cell, and its settings as YAML with what was reached with them and how."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdtune.config.train import settings_hash
from kdtune.log.events import SOUND, Cell
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import load_model
from kdtune.reports.tables.leaderboard import SweepTables
from kdtune.reports.tables.statistics import share_interval
from kdtune.storage.files import write_yaml


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
        test_accuracy: share of 1, of this very run; None where test was not read.
        over_seeds: of a confirmed cell, what the same settings reach with all seeds: columns of
            the leaderboard.
    """

    name: str
    trial_id: str
    settings: dict[str, Any]
    validation_accuracy: float
    epoch: int
    device: str
    threads: int
    test_accuracy: float | None = None
    over_seeds: dict[str, Any] = field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """Whether it is a run of a confirmation."""
        return self.name != self.trial_id


OVER_SEEDS = (
    "seeds_ok",
    "seeds_diverged",
    "validation_accuracy_percent",
    "validation_seed_sd_points",
    "test_accuracy_percent",
    "test_half_width_points",
    "test_seed_sd_points",
)
"""Columns of the leaderboard that say what settings reach with all seeds."""


def best_of_cells(tables: SweepTables) -> dict[Cell, Best]:
    """What stands for each cell that has a sound trial."""
    return {cell: found[0] for cell, found in top_of_cells(tables, 1).items()}


def top_of_cells(tables: SweepTables, top: int) -> dict[Cell, list[Best]]:
    """What stands for each cell that has a sound trial, and after it the next trials.

    Args:
        tables: of the sweep.
        top: at most so many of each cell; those after the first are trials of the search, by
            their score there.
    """
    trials = tables.trials.assign(name=tables.trials["trial_id"], test_accuracy=None)
    sound = trials[trials["state"].isin(SOUND)].dropna(subset="best_validation_accuracy")
    sound = sound.sort_values("best_validation_accuracy", ascending=False, kind="stable")
    runs = tables.runs[tables.runs["chosen"] & (tables.runs["status"] == "ok")]
    runs = runs.assign(name=runs["run_id"])
    found = {}
    for cell in tables.leaderboard.dropna(subset="trial_id").itertuples():
        own = runs[runs["trial_id"] == cell.trial_id]
        first = own if len(own) else trials[trials["trial_id"] == cell.trial_id]
        rows = [first.loc[first["best_validation_accuracy"].idxmax()]]
        others = sound[(sound["method"] == cell.method) & (sound["model"] == cell.model)]
        others = others[others["trial_id"] != cell.trial_id].head(top - 1)
        rows += [row for _, row in others.iterrows()]
        found[cell.method, cell.model] = [_best(row) for row in rows]
        if len(own):
            whole = {key: getattr(cell, key) for key in OVER_SEEDS}
            found[cell.method, cell.model][0].over_seeds.update(
                {key: _plain(value) for key, value in whole.items() if pd.notna(value)}
            )
    return found


def _plain(value: Any) -> int | float:
    """A number of a table as YAML takes it."""
    return int(value) if float(value).is_integer() else float(value)


def _best(row: pd.Series) -> Best:
    return Best(
        name=row["name"],
        trial_id=row["trial_id"],
        settings=json.loads(row["configuration"]),
        validation_accuracy=float(row["best_validation_accuracy"]),
        epoch=int(row["best_epoch"]),
        device=row["device"],
        threads=int(row["threads"]),
        test_accuracy=None if pd.isna(row["test_accuracy"]) else float(row["test_accuracy"]),
    )


def configuration(folder: SweepFolder, found: Best) -> dict[str, Any]:
    """Complete settings, for ``kdtune train``, and under ``provenance`` what was reached with
    them and how, so that a second run can be compared.

    Intervals are `share_interval`'s. Those of validation accuracies are too high on the whole:
    epoch and trial were chosen by them.
    """
    sweep = folder.settings()
    # A sweep that was resumed elsewhere has data and teacher there.
    settings = found.settings | {"data_dir": sweep.data, "data_root": sweep.data_root}
    if settings.get("teacher_model") is not None:
        settings["teacher_model"] = sweep.teacher
    opened = folder.opened()[-1]
    if found.confirmed:
        opened = [e for e in folder.confirm_events() if e["event"] == "confirm"][-1]
    data, teacher = opened["data"], opened.get("teacher") or {}
    provenance = {
        "sweep": folder.path.resolve().name,
        "trial_id": found.trial_id,
        **({"run_id": found.name} if found.confirmed else {}),
        "best_validation_accuracy": found.validation_accuracy,
        **_interval("validation", found.validation_accuracy, data),
        "best_epoch": found.epoch,
        "test_accuracy": found.test_accuracy,
        **_interval("test", found.test_accuracy, data),
        "over_seeds": found.over_seeds or None,
        "device": found.device,
        "threads": found.threads,
        "sweep_seed": sweep.seed,
        "data_fingerprint": data.get("fingerprint"),
        "test_fingerprint": data.get("test_fingerprint") or None,
        "plugins": _plugins(opened, settings, teacher.get("model")) or None,
        "teacher_sha256": teacher.get("sha256") if settings.get("teacher_model") else None,
        "environment": opened.get("environment"),
        "settings_sha256": settings_hash(settings),
    }
    known = {key: value for key, value in provenance.items() if value is not None}
    return {**settings, "provenance": known}


def _plugins(
    opened: Mapping[str, Any], settings: Mapping[str, Any], teacher: str | None
) -> list[dict[str, Any]]:
    """The plug-ins that a run needs, of those of its sweep."""
    names = {settings.get(key) for key in ("method", "model", "data_dir")}
    names |= {teacher} if settings.get("teacher_model") else set()
    return [record for record in opened.get("plugins", ()) if names & set(record["gives"])]


def _interval(split: str, accuracy: float | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """How many images an accuracy is of, and its interval."""
    images = data.get(f"{split}_images")
    if accuracy is None or not images:
        return {}
    interval = share_interval(round(accuracy * images), images)
    return {f"{split}_images": images, f"{split}_interval": list(interval)}


def network_of(folder: SweepFolder, cell: Cell, found: Best) -> dict[str, Any] | None:
    """The network of a trial or run, as `load_model` gives it; None if the sweep keeps none."""
    for path in (folder.network(found.name), folder.best(*cell, ".pth")):
        if path.is_file():
            loaded = load_model(path)
            if loaded.get("trial_id") == found.name:
                return loaded
    return None


def write_best(folder: SweepFolder, best: dict[Cell, Best]) -> None:
    """Write `best/<method>-<model>.yaml` of every cell that has one, see `configuration`."""
    for cell, found in best.items():
        write_yaml(folder.best(*cell), configuration(folder, found))
