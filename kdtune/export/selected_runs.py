"""The best run or trial of each cell, and its settings as YAML with their provenance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kdtune.config.same_settings import hash_settings
from kdtune.log.events import Cell, LogOpening
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import load_model
from kdtune.reports.tables.leaderboard import SweepTables
from kdtune.reports.tables.statistics import wilson_interval
from kdtune.storage.files import write_yaml

SEED_SUMMARY_COLUMNS = (
    "seeds_finished", "seeds_diverged", "validation_accuracy_percent", "validation_seed_sd_points",
    "test_accuracy_percent", "test_half_width_points", "test_seed_sd_points",
)  # fmt: skip
"""Columns of the leaderboard about all seeds of the chosen settings."""


@dataclass(frozen=True)
class SelectedRun:
    """The run or trial that represents a cell.

    It is the best run of the chosen candidate by validation images, or, if the cell is not
    confirmed, the first trial with the best settings of the search. Its epoch is the best one.
    """

    name: str
    trial_id: str
    cell: Cell
    settings: dict[str, Any]
    validation_accuracy: float
    epoch: int
    device: str
    threads: int
    test_accuracy: float | None = None
    seed_summary: dict[str, float] = field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """True for a run of a confirmation."""
        return self.name != self.trial_id


def select_best_runs(tables: SweepTables) -> dict[Cell, SelectedRun]:
    """Return the run or trial that represents each cell; failed cells are left out."""
    return {cell: runs[0] for cell, runs in select_top_runs(tables, 1).items()}


def select_top_runs(tables: SweepTables, top: int) -> dict[Cell, list[SelectedRun]]:
    """Return the run or trial that represents each cell, and after it the next best trials.

    Args:
        tables: the sweep's tables.
        top: at most this many per cell.
    """
    trials, accuracy = tables.trials, "best_validation_accuracy"
    trials = trials.assign(name=trials["trial_id"], test_accuracy=None)
    ranked = trials.dropna(subset="rank_in_cell").sort_values("rank_in_cell")
    runs = tables.runs[tables.runs["chosen"] & (tables.runs["state"] == "finished")]
    runs = runs.assign(name=runs["run_id"])
    selected = {}
    for cell in tables.leaderboard.dropna(subset="trial_id").to_dict("records"):
        cell_runs = runs[runs["trial_id"] == cell["trial_id"]]
        seeds = {key: cell[key] for key in SEED_SUMMARY_COLUMNS if pd.notna(cell[key])}
        if cell_runs.empty:
            cell_runs, seeds = trials[trials["trial_id"] == cell["trial_id"]], {}
        best = cell_runs.loc[cell_runs[accuracy].idxmax()]
        in_cell = (ranked["method"] == cell["method"]) & (ranked["model"] == cell["model"])
        others = ranked[in_cell & (ranked["trial_id"] != cell["trial_id"])].head(top - 1)
        next_best = (_selected_run(row, {}) for _, row in others.iterrows())
        selected[cell["method"], cell["model"]] = [_selected_run(best, seeds), *next_best]
    return selected


def _selected_run(row: pd.Series, seeds: Mapping[str, Any]) -> SelectedRun:
    return SelectedRun(
        name=row["name"],
        trial_id=row["trial_id"],
        cell=(row["method"], row["model"]),
        settings=json.loads(row["configuration"]),
        validation_accuracy=float(row["best_validation_accuracy"]),
        epoch=int(row["best_epoch"]),
        device=row["device"],
        threads=int(row["threads"]),
        test_accuracy=None if pd.isna(row["test_accuracy"]) else float(row["test_accuracy"]),
        # numbers that YAML takes
        seed_summary={k: int(v) if float(v).is_integer() else float(v) for k, v in seeds.items()},
    )


def config_with_provenance(folder: SweepFolder, selected: SelectedRun) -> dict[str, Any]:
    """Return complete settings for ``kdtune train``, with their results under ``provenance``.

    Args:
        folder: the sweep's folder.
        selected: a run or trial of the sweep.
    """
    sweep = folder.load_config()
    uses_teacher = selected.settings.get("teacher_model") is not None
    settings = selected.settings | sweep.locations(uses_teacher)
    opening: LogOpening = folder.load_opening_events()[-1]
    if selected.confirmed:
        opening = folder.load_confirm_openings()[-1]
    data, teacher = opening.data, opening.teacher if uses_teacher else None
    names = {settings.get(key) for key in ("method", "model", "data_dir")}
    names |= {teacher.model} if teacher else set()
    plugins = [plugin.model_dump() for plugin in opening.plugins if names & {*plugin.provides}]
    provenance = {
        "sweep": folder.path.resolve().name,
        "trial_id": selected.trial_id,
        **({"run_id": selected.name} if selected.confirmed else {}),
        "best_validation_accuracy": selected.validation_accuracy,
        **_accuracy_facts("validation", selected.validation_accuracy, opening),
        "best_epoch": selected.epoch,
        "test_accuracy": selected.test_accuracy,
        **_accuracy_facts("test", selected.test_accuracy, opening),
        "seed_summary": selected.seed_summary or None,
        "device": selected.device,
        "threads": selected.threads,
        "sweep_seed": sweep.seed,
        "data_fingerprint": data.fingerprint,
        "test_fingerprint": data.test_fingerprint or None,
        "plugins": plugins or None,
        "teacher_sha256": teacher.sha256 if teacher else None,
        "environment": opening.environment,
        "settings_sha256": hash_settings(settings),
    }
    known = {key: value for key, value in provenance.items() if value is not None}
    return {**settings, "provenance": known}


def _accuracy_facts(split: str, accuracy: float | None, opening: LogOpening) -> dict[str, Any]:
    images: int = getattr(opening.data, f"{split}_images")
    if accuracy is None or not images:
        return {}
    facts: dict[str, Any] = {f"{split}_images": images}
    if opening.metric == "accuracy":  # the images count alike
        facts[f"{split}_interval"] = list(wilson_interval(round(accuracy * images), images))
    return facts


def load_run_network(folder: SweepFolder, selected: SelectedRun) -> dict[str, Any] | None:
    """Load the network of a run or trial with `load_model`; return None if none is kept.

    Args:
        folder: the sweep's folder.
        selected: the run or trial.
    """
    for path in (folder.network_path(selected.name), folder.best_path(*selected.cell, ".pth")):
        if path.is_file():
            loaded = load_model(path)
            if loaded.get("trial_id") == selected.name:
                return loaded
    return None


def write_best_configs(folder: SweepFolder, selected_runs: dict[Cell, SelectedRun]) -> None:
    """Write `best/<method>-<model>.yaml` for each cell, see `config_with_provenance`.

    Args:
        folder: the sweep's folder.
        selected_runs: the run or trial that represents each cell.
    """
    for cell, selected in selected_runs.items():
        write_yaml(folder.best_path(*cell), config_with_provenance(folder, selected))
