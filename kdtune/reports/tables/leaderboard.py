"""One row a cell: how far its search came, and what it is worth where it was confirmed.

The ± of a test accuracy counts seeds and test images; that of a difference also the luck of the
searches. Columns that end in ``_percent`` or ``_points`` are hundredths of accuracy. Sweeps stand
in one table only if they had the same data, teacher, image size and epochs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.errors import UserError
from kdtune.log.events import ENDED_STATES, SUCCESSFUL_STATES, Cell, Event, SweepStarted
from kdtune.reports.tables.comparison import CellResult, comparison_table
from kdtune.reports.tables.confirmed import (
    collect_cell_results,
    group_by_cell,
    seed_sd_points,
    select_cell,
    select_deciding_runs,
    select_successful,
)
from kdtune.reports.tables.log_tables import models_table, runs_table, trials_table
from kdtune.reports.tables.statistics import MIN_SEEDS, estimate_mean

LEADERBOARD_COLUMNS = [
    "model",
    "method",
    "status",
    "rank",
    "test_accuracy_percent",
    "test_half_width_points",
    "test_low_percent",
    "test_high_percent",
    "test_seed_sd_points",
    "seeds_ok",
    "seeds_diverged",
    "test_images",
    "validation_images",
    "gain_over_student_points",
    "gain_over_student_half_width_points",
    "validation_accuracy_percent",
    "validation_seed_sd_points",
    "search_best_percent",
    "optimism_gap_points",
    "validation_minus_test_points",
    "search_luck_points",
    "late_gain_points",
    "search_still_improving",
    "trials_started",
    "trials_finished",
    "trials_stopped",
    "trials_diverged",
    "trials_crashed",
    "search_epochs",
    "search_device_seconds",
    "confirm_epochs",
    "confirm_device_seconds",
    "parameters",
    "macs",
    "latency_ms",
    "latency_device",
    "trial_id",
    "configuration",
]

_TEXT_COLUMNS = ("model", "method", "status", "latency_device", "trial_id", "configuration")
_FLOAT_SUFFIXES = ("_percent", "_points", "_seconds", "_ms")
_COLUMN_TYPES = {
    column: "float64" if column.endswith(_FLOAT_SUFFIXES) else "Int64"
    for column in LEADERBOARD_COLUMNS
    if column not in _TEXT_COLUMNS
} | {"search_still_improving": "boolean"}

_UNRANKED_VERDICTS = {"not_confirmed", "unstable"}
"""Verdicts that say nothing of who is better."""


@dataclass(frozen=True)
class SweepTables:
    """A sweep's tables that follow from one another."""

    trials: pd.DataFrame
    runs: pd.DataFrame
    models: pd.DataFrame
    cell_results: dict[Cell, CellResult]
    comparison: pd.DataFrame
    leaderboard: pd.DataFrame


def build_sweep_tables(
    events: Sequence[Event],
    confirm_events: Sequence[Event] = (),
    correct: Mapping[str, np.ndarray] | None = None,
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> SweepTables:
    """Make the tables of a sweep, confirmed or not.

    Args:
        events: its log.
        confirm_events: the log of ``kdtune confirm``.
        correct: as in `collect_cell_results`.
        groups: of each test image; see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: points of accuracy below which a difference does not matter.

    Raises:
        UserError: a log is damaged.
    """
    data = next((event.data for event in events if isinstance(event, SweepStarted)), None)
    trials = trials_table(events)
    runs, models = runs_table(confirm_events), models_table(confirm_events)
    chance = 1 / len(data.classes) if data else 0.0
    cell_results = collect_cell_results(trials, runs, correct or {}, chance)
    comparison = comparison_table(cell_results, groups, min_difference)
    leaderboard = leaderboard_table(
        trials,
        runs,
        models,
        comparison,
        cell_results,
        data.validation_images if data else None,
        groups,
        min_difference,
    )
    return SweepTables(trials, runs, models, cell_results, comparison, leaderboard)


def leaderboard_table(
    trials: pd.DataFrame,
    runs: pd.DataFrame,
    models: pd.DataFrame,
    comparison: pd.DataFrame,
    cell_results: Mapping[Cell, CellResult],
    validation_images: int | None = None,
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> pd.DataFrame:
    """One row a cell, sorted by model, then test accuracy, then best score of the search.

    Args:
        trials, runs, models: as `kdtune.reports.tables.log_tables` makes them.
        comparison: as `comparison_table` makes it of these cells.
        cell_results: as `collect_cell_results` makes them of these trials and runs.
        validation_images: of the data.
        groups, min_difference: as in `comparison_table`.

    Columns:
        model, method: the cell.
        status: ``ok``; ``unstable``, a seed of the chosen configuration diverged; ``incomplete``,
            fewer than `MIN_SEEDS` seeds are ok; ``not_confirmed``; ``failed``, no trial is
            sound, or no run was and every configuration diverged; ``running``, no trial is sound
            yet.
        rank: 1 + methods whose verdict on this model is better; those between which nothing is
            decided share one. Empty where nothing is compared.
        test_accuracy_percent: mean over the seeds of the chosen configuration.
        test_half_width_points: of its 95 % interval, which counts seeds and test images; empty
            below `MIN_SEEDS` seeds.
        test_low_percent, test_high_percent: mean ∓ half width, within 0 and 100.
        test_seed_sd_points: standard deviation over the seeds (ddof 1), which is no ±.
        seeds_ok, seeds_diverged: counts of the chosen configuration.
        test_images, validation_images: counts.
        gain_over_student_points, gain_over_student_half_width_points: difference to the method
            ``student``, and half of its 95 % interval, which counts search luck, too.
        validation_accuracy_percent, validation_seed_sd_points: mean and standard deviation
            (ddof 1) over the seeds of the chosen configuration.
        search_best_percent: best validation accuracy of a sound trial, one that finished or was
            stopped; one that diverged or crashed cannot be repeated.
        optimism_gap_points: that, minus the mean of the confirm runs of the same trial.
        validation_minus_test_points: validation_accuracy_percent − test_accuracy_percent.
        search_luck_points: how much a repeated search would move its result; see
            `kdtune.reports.tables.statistics.search_luck`.
        late_gain_points: best of all trials minus best of the first half, in order of proposal,
            where one that diverged is worth what guessing is.
        search_still_improving: whether that is above the larger of min_difference and
            0.75 · validation_seed_sd_points.
        trials_started, trials_finished, trials_stopped, trials_diverged, trials_crashed: counts;
            a trial that is still running is only among the started.
        search_epochs, search_device_seconds: sums over all trials.
        confirm_epochs, confirm_device_seconds: sums over all runs.
        parameters, macs, latency_ms, latency_device: of the student; see the table of models.
        trial_id, configuration: the chosen trial, or if there is none the best of the search (the
            earliest of equals); its settings as JSON.

    Raises:
        UserError: a trial is chosen that was never searched.
    """
    ranks = _compute_ranks(comparison)
    gains = {
        (row.method_a, row.model): row
        for row in comparison[comparison["method_b"] == "student"].itertuples()
        if row.models == 1
    }
    student_costs = models.set_index("model").to_dict("index")
    rows = []
    for cell, cell_trials in group_by_cell(trials):
        method, model = cell
        cell_runs, result = select_cell(runs, cell), cell_results[cell]
        deciding_runs = select_deciding_runs(cell_runs)
        best_trial, scores = (
            _find_best_trial(cell_trials),
            100 * select_successful(deciding_runs)["best_validation_accuracy"],
        )
        row = {
            "model": model,
            "method": method,
            "status": _cell_status(cell_trials, best_trial, cell_runs, deciding_runs),
            "rank": ranks.get(cell),
            **_test_columns(result, groups),
            "seeds_ok": len(scores),
            "seeds_diverged": result.seeds_diverged,
            "validation_images": validation_images,
            "validation_accuracy_percent": scores.mean()
            if deciding_runs["chosen"].any()
            else np.nan,
            "validation_seed_sd_points": scores.std() if deciding_runs["chosen"].any() else np.nan,
            "search_luck_points": result.search_luck,
            "late_gain_points": result.late_gain,
            "search_still_improving": (
                result.late_gain > max(min_difference, 0.75 * seed_sd_points(deciding_runs))
                if pd.notna(result.late_gain)
                else None
            ),
            "trials_started": len(cell_trials),
            **{f"trials_{state}": (cell_trials["state"] == state).sum() for state in ENDED_STATES},
            "search_epochs": cell_trials["epochs"].sum(),
            "search_device_seconds": cell_trials["device_seconds"].sum(),
            "confirm_epochs": cell_runs["epochs"].sum(),
            "confirm_device_seconds": cell_runs["device_seconds"].sum(),
            **student_costs.get(model, {}),
        }
        if cell in gains:
            row["gain_over_student_points"] = gains[cell].difference_points
            row["gain_over_student_half_width_points"] = gains[cell].half_width_points
        if best_trial is not None:
            row |= _search_columns(best_trial, cell_runs)
        if deciding_runs["chosen"].any():
            row |= _chosen_columns(cell_trials, deciding_runs["trial_id"].iloc[0])
        rows.append(row)
    table = pd.DataFrame(rows, columns=LEADERBOARD_COLUMNS).astype(_COLUMN_TYPES)
    table["validation_minus_test_points"] = (
        table["validation_accuracy_percent"] - table["test_accuracy_percent"]
    )
    return sort_leaderboard(table)


def sort_leaderboard(leaderboard: pd.DataFrame) -> pd.DataFrame:
    return leaderboard.sort_values(
        ["model", "test_accuracy_percent", "search_best_percent"],
        ascending=[True, False, False],
        kind="stable",
        ignore_index=True,
    )


def _find_best_trial(trials: pd.DataFrame) -> Any:
    """The best sound trial, the earliest of equals; None if there is none."""
    successful = trials[trials["state"].isin(SUCCESSFUL_STATES)]
    scores = successful["best_validation_accuracy"].dropna()
    return successful.loc[scores.idxmax()] if len(scores) else None


def _cell_status(
    trials: pd.DataFrame, best_trial: Any, cell_runs: pd.DataFrame, deciding_runs: pd.DataFrame
) -> str:
    if len(deciding_runs):
        if not deciding_runs["chosen"].any():
            return "failed"
        if (deciding_runs["status"] == "diverged").any():
            return "unstable"
        return "ok" if len(select_successful(deciding_runs)) >= MIN_SEEDS else "incomplete"
    if len(cell_runs):
        return "incomplete"
    if best_trial is not None:
        return "not_confirmed"
    return "running" if (trials["state"] == "running").any() else "failed"


def _compute_ranks(comparison: pd.DataFrame) -> dict[Cell, int]:
    ranks: dict[Cell, int] = {}
    for row in comparison[comparison["models"] == 1].itertuples():
        if row.verdict in _UNRANKED_VERDICTS:
            continue
        for method, lost_verdict in ((row.method_a, "better_b"), (row.method_b, "better_a")):
            rank = ranks.get((method, row.model), 1)
            ranks[method, row.model] = rank + (row.verdict == lost_verdict)
    return ranks


def _test_columns(result: CellResult, groups: Sequence[object] | None) -> dict[str, object]:
    if not result.correct:
        return {}
    points = 100 * np.stack(list(result.correct.values()), axis=1)
    row: dict[str, object] = {
        "test_accuracy_percent": points.mean(),
        "test_seed_sd_points": pd.Series(points.mean(axis=0)).std(),
        "test_images": len(points),
    }
    if points.shape[1] >= MIN_SEEDS:
        interval = estimate_mean(points, groups=groups)
        row["test_half_width_points"] = interval.half_width
        row["test_low_percent"] = max(interval.low, 0.0)
        row["test_high_percent"] = min(interval.high, 100.0)
    return row


def _search_columns(best_trial: Any, cell_runs: pd.DataFrame) -> dict[str, object]:
    """What the search says of itself, and what its best trial was worth when trained again."""
    retrained_runs = select_successful(cell_runs[cell_runs["trial_id"] == best_trial["trial_id"]])
    score = best_trial["best_validation_accuracy"]
    return {
        "search_best_percent": 100 * score,
        "optimism_gap_points": 100 * (score - retrained_runs["best_validation_accuracy"].mean()),
        "trial_id": best_trial["trial_id"],
        "configuration": best_trial["configuration"],
    }


def _chosen_columns(trials: pd.DataFrame, trial_id: str) -> dict[str, object]:
    chosen = trials[trials["trial_id"] == trial_id]
    if chosen.empty:
        raise UserError(f"The log is damaged: {trial_id} was confirmed, but never searched.")
    return {"trial_id": trial_id, "configuration": chosen["configuration"].iloc[0]}
