"""The best of each cell, and its settings as YAML with what was reached with them and how."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdtune.config.train import hash_settings
from kdtune.log.events import SUCCESSFUL_STATES, Cell, LogOpening
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import load_model
from kdtune.reports.tables.leaderboard import SweepTables
from kdtune.reports.tables.statistics import wilson_interval
from kdtune.storage.files import write_yaml


@dataclass(frozen=True)
class SelectedRun:
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
    seed_summary: dict[str, Any] = field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """Whether it is a run of a confirmation."""
        return self.name != self.trial_id


SEED_SUMMARY_COLUMNS = (
    "seeds_ok",
    "seeds_diverged",
    "validation_accuracy_percent",
    "validation_seed_sd_points",
    "test_accuracy_percent",
    "test_half_width_points",
    "test_seed_sd_points",
)
"""Columns of the leaderboard that say what settings reach with all seeds."""


def select_best_runs(tables: SweepTables) -> dict[Cell, SelectedRun]:
    """What stands for each cell that has a sound trial."""
    return {cell: runs[0] for cell, runs in select_top_runs(tables, 1).items()}


def select_top_runs(tables: SweepTables, top: int) -> dict[Cell, list[SelectedRun]]:
    """What stands for each cell that has a sound trial, and after it the next trials.

    Args:
        tables: of the sweep.
        top: at most so many of each cell; those after the first are trials of the search, by
            their score there.
    """
    trials = tables.trials.assign(name=tables.trials["trial_id"], test_accuracy=None)
    successful = trials[trials["state"].isin(SUCCESSFUL_STATES)].dropna(
        subset="best_validation_accuracy"
    )
    successful = successful.sort_values("best_validation_accuracy", ascending=False, kind="stable")
    runs = tables.runs[tables.runs["chosen"] & (tables.runs["status"] == "ok")]
    runs = runs.assign(name=runs["run_id"])
    selected = {}
    for cell in tables.leaderboard.dropna(subset="trial_id").itertuples():
        cell_runs = runs[runs["trial_id"] == cell.trial_id]
        candidates = cell_runs if len(cell_runs) else trials[trials["trial_id"] == cell.trial_id]
        rows = [candidates.loc[candidates["best_validation_accuracy"].idxmax()]]
        next_trials = successful[
            (successful["method"] == cell.method) & (successful["model"] == cell.model)
        ]
        next_trials = next_trials[next_trials["trial_id"] != cell.trial_id].head(top - 1)
        rows += [row for _, row in next_trials.iterrows()]
        selected[cell.method, cell.model] = [_selected_run(row) for row in rows]
        if len(cell_runs):
            seed_values = {key: getattr(cell, key) for key in SEED_SUMMARY_COLUMNS}
            selected[cell.method, cell.model][0].seed_summary.update(
                {
                    key: _plain_number(value)
                    for key, value in seed_values.items()
                    if pd.notna(value)
                }
            )
    return selected


def _plain_number(value: Any) -> int | float:
    """A number of a table as YAML takes it."""
    return int(value) if float(value).is_integer() else float(value)


def _selected_run(row: pd.Series) -> SelectedRun:
    return SelectedRun(
        name=row["name"],
        trial_id=row["trial_id"],
        settings=json.loads(row["configuration"]),
        validation_accuracy=float(row["best_validation_accuracy"]),
        epoch=int(row["best_epoch"]),
        device=row["device"],
        threads=int(row["threads"]),
        test_accuracy=None if pd.isna(row["test_accuracy"]) else float(row["test_accuracy"]),
    )


def config_with_provenance(folder: SweepFolder, selected: SelectedRun) -> dict[str, Any]:
    """Complete settings, for ``kdtune train``, and under ``provenance`` what was reached with
    them and how, so that a second run can be compared.

    Intervals are `wilson_interval`'s. Those of validation accuracies are too high on the whole:
    epoch and trial were chosen by them.
    """
    sweep = folder.load_config()
    uses_teacher = selected.settings.get("teacher_model") is not None
    settings = selected.settings | sweep.locations(uses_teacher)
    opening: LogOpening = folder.load_opening_events()[-1]
    if selected.confirmed:
        opening = folder.load_confirm_openings()[-1]
    data, teacher = opening.data, opening.teacher
    test_images, validation_images = data.test_images, data.validation_images
    provenance = {
        "sweep": folder.path.resolve().name,
        "trial_id": selected.trial_id,
        **({"run_id": selected.name} if selected.confirmed else {}),
        "best_validation_accuracy": selected.validation_accuracy,
        **_accuracy_interval("validation", selected.validation_accuracy, validation_images),
        "best_epoch": selected.epoch,
        "test_accuracy": selected.test_accuracy,
        **_accuracy_interval("test", selected.test_accuracy, test_images),
        "seed_summary": selected.seed_summary or None,
        "device": selected.device,
        "threads": selected.threads,
        "sweep_seed": sweep.seed,
        "data_fingerprint": data.fingerprint,
        "test_fingerprint": data.test_fingerprint or None,
        "plugins": _required_plugins(opening, settings) or None,
        "teacher_sha256": teacher.sha256 if teacher and settings.get("teacher_model") else None,
        "environment": opening.environment,
        "settings_sha256": hash_settings(settings),
    }
    recorded = {key: value for key, value in provenance.items() if value is not None}
    return {**settings, "provenance": recorded}


def _required_plugins(opening: LogOpening, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plug-ins of a sweep that one of its runs needs."""
    names = {settings.get(key) for key in ("method", "model", "data_dir")}
    if opening.teacher and settings.get("teacher_model"):
        names.add(opening.teacher.model)
    return [plugin.model_dump() for plugin in opening.plugins if names & set(plugin.provides)]


def _accuracy_interval(split: str, accuracy: float | None, images: int) -> dict[str, Any]:
    """Return the number of images of a split, and the interval of an accuracy on them."""
    if accuracy is None or not images:
        return {}
    interval = wilson_interval(round(accuracy * images), images)
    return {f"{split}_images": images, f"{split}_interval": list(interval)}


def load_run_network(
    folder: SweepFolder, cell: Cell, selected: SelectedRun
) -> dict[str, Any] | None:
    """The network of a trial or run, as `load_model` gives it; None if the sweep keeps none."""
    for path in (folder.network_path(selected.name), folder.best_path(*cell, ".pth")):
        if path.is_file():
            loaded = load_model(path)
            if loaded.get("trial_id") == selected.name:
                return loaded
    return None


def write_best_configs(folder: SweepFolder, selected_runs: dict[Cell, SelectedRun]) -> None:
    """Write `best/<method>-<model>.yaml` of every cell that has one, see `configuration`."""
    for cell, selected in selected_runs.items():
        write_yaml(folder.best_path(*cell), config_with_provenance(folder, selected))
