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
from kdtune.log.events import SOUND, STATES, Cell
from kdtune.reports.tables.comparison import Confirmed, comparison_table
from kdtune.reports.tables.confirmed import (
    _by_cell,
    _judged,
    _of_cell,
    _seed_sd,
    _sound,
    confirmed_cells,
)
from kdtune.reports.tables.log_tables import models_table, runs_table, trials_table
from kdtune.reports.tables.statistics import LEAST_SEEDS, estimate

LEADERBOARD = [
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

_TEXTS = ("model", "method", "status", "latency_device", "trial_id", "configuration")
_REALS = ("_percent", "_points", "_seconds", "_ms")
_TYPES = {
    column: "float64" if column.endswith(_REALS) else "Int64"
    for column in LEADERBOARD
    if column not in _TEXTS
} | {"search_still_improving": "boolean"}

_NO_ORDER = {"not_confirmed", "unstable"}
"""Verdicts that say nothing of who is better."""


@dataclass(frozen=True)
class SweepTables:
    """A sweep's tables that follow from one another."""

    trials: pd.DataFrame
    runs: pd.DataFrame
    models: pd.DataFrame
    cells: dict[Cell, Confirmed]
    comparison: pd.DataFrame
    leaderboard: pd.DataFrame


def sweep_tables(
    events: Sequence[dict[str, Any]],
    confirm_events: Sequence[dict[str, Any]] = (),
    right: Mapping[str, np.ndarray] | None = None,
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> SweepTables:
    """Make the tables of a sweep, confirmed or not.

    Args:
        events: its log.
        confirm_events: the log of ``kdtune confirm``.
        right: as in `confirmed_cells`.
        groups: of each test image; see `kdtune.reports.tables.statistics.estimate`.
        min_difference: points of accuracy below which a difference does not matter.

    Raises:
        UserError: a log is damaged.
    """
    opened = next((event for event in events if event["event"] == "sweep"), {})
    data = opened.get("data", {})
    trials = trials_table(events)
    runs, models = runs_table(confirm_events), models_table(confirm_events)
    chance = 1 / max(1, len(data["classes"])) if "classes" in data else 0.0
    cells = confirmed_cells(trials, runs, right or {}, chance)
    comparison = comparison_table(cells, groups, min_difference)
    board = leaderboard_table(
        trials,
        runs,
        models,
        comparison,
        cells,
        data.get("validation_images"),
        groups,
        min_difference,
    )
    return SweepTables(trials, runs, models, cells, comparison, board)


def leaderboard_table(
    trials: pd.DataFrame,
    runs: pd.DataFrame,
    models: pd.DataFrame,
    comparison: pd.DataFrame,
    cells: Mapping[Cell, Confirmed],
    validation_images: int | None = None,
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> pd.DataFrame:
    """One row a cell, sorted by model, then test accuracy, then best score of the search.

    Args:
        trials, runs, models: as `kdtune.reports.tables.log_tables` makes them.
        comparison: as `comparison_table` makes it of these cells.
        cells: as `confirmed_cells` makes them of these trials and runs.
        validation_images: of the data.
        groups, min_difference: as in `comparison_table`.

    Columns:
        model, method: the cell.
        status: ``ok``; ``unstable``, a seed of the chosen configuration diverged; ``incomplete``,
            fewer than `LEAST_SEEDS` seeds are ok; ``not_confirmed``; ``failed``, no trial is
            sound, or no run was and every configuration diverged; ``running``, no trial is sound
            yet.
        rank: 1 + methods whose verdict on this model is better; those between which nothing is
            decided share one. Empty where nothing is compared.
        test_accuracy_percent: mean over the seeds of the chosen configuration.
        test_half_width_points: of its 95 % interval, which counts seeds and test images; empty
            below `LEAST_SEEDS` seeds.
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
            `kdtune.reports.tables.statistics.luck_of_search`.
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
    ranks = _ranks(comparison)
    gains = {
        (row.method_a, row.model): row
        for row in comparison[comparison["method_b"] == "student"].itertuples()
        if row.models == 1
    }
    measured = models.set_index("model").to_dict("index")
    rows = []
    for cell, tried in _by_cell(trials):
        method, model = cell
        own, confirmed = _of_cell(runs, cell), cells[cell]
        judged = _judged(own)
        best, scores = _best(tried), 100 * _sound(judged)["best_validation_accuracy"]
        row = {
            "model": model,
            "method": method,
            "status": _status(tried, best, own, judged),
            "rank": ranks.get(cell),
            **_tested(confirmed, groups),
            "seeds_ok": len(scores),
            "seeds_diverged": confirmed.diverged,
            "validation_images": validation_images,
            "validation_accuracy_percent": scores.mean() if judged["chosen"].any() else np.nan,
            "validation_seed_sd_points": scores.std() if judged["chosen"].any() else np.nan,
            "search_luck_points": confirmed.luck,
            "late_gain_points": confirmed.late_gain,
            "search_still_improving": (
                confirmed.late_gain > max(min_difference, 0.75 * _seed_sd(judged))
                if pd.notna(confirmed.late_gain)
                else None
            ),
            "trials_started": len(tried),
            **{f"trials_{state}": (tried["state"] == state).sum() for state in STATES},
            "search_epochs": tried["epochs"].sum(),
            "search_device_seconds": tried["device_seconds"].sum(),
            "confirm_epochs": own["epochs"].sum(),
            "confirm_device_seconds": own["device_seconds"].sum(),
            **measured.get(model, {}),
        }
        if cell in gains:
            row["gain_over_student_points"] = gains[cell].difference_points
            row["gain_over_student_half_width_points"] = gains[cell].half_width_points
        if best is not None:
            row |= _searched(best, own)
        if judged["chosen"].any():
            row |= _chosen(tried, judged["trial_id"].iloc[0])
        rows.append(row)
    table = pd.DataFrame(rows, columns=LEADERBOARD).astype(_TYPES)
    table["validation_minus_test_points"] = (
        table["validation_accuracy_percent"] - table["test_accuracy_percent"]
    )
    return _sorted(table)


def _sorted(board: pd.DataFrame) -> pd.DataFrame:
    return board.sort_values(
        ["model", "test_accuracy_percent", "search_best_percent"],
        ascending=[True, False, False],
        kind="stable",
        ignore_index=True,
    )


def _best(trials: pd.DataFrame) -> Any:
    """The best sound trial, the earliest of equals; None if there is none."""
    sound = trials[trials["state"].isin(SOUND)]
    scores = sound["best_validation_accuracy"].dropna()
    return sound.loc[scores.idxmax()] if len(scores) else None


def _status(trials: pd.DataFrame, best: Any, own: pd.DataFrame, judged: pd.DataFrame) -> str:
    if len(judged):
        if not judged["chosen"].any():
            return "failed"
        if (judged["status"] == "diverged").any():
            return "unstable"
        return "ok" if len(_sound(judged)) >= LEAST_SEEDS else "incomplete"
    if len(own):
        return "incomplete"
    if best is not None:
        return "not_confirmed"
    return "running" if (trials["state"] == "running").any() else "failed"


def _ranks(comparison: pd.DataFrame) -> dict[Cell, int]:
    ranks: dict[Cell, int] = {}
    for row in comparison[comparison["models"] == 1].itertuples():
        if row.verdict in _NO_ORDER:
            continue
        for method, lost in ((row.method_a, "better_b"), (row.method_b, "better_a")):
            before = ranks.get((method, row.model), 1)
            ranks[method, row.model] = before + (row.verdict == lost)
    return ranks


def _tested(confirmed: Confirmed, groups: Sequence[object] | None) -> dict[str, object]:
    if not confirmed.right:
        return {}
    points = 100 * np.stack(list(confirmed.right.values()), axis=1)
    row: dict[str, object] = {
        "test_accuracy_percent": points.mean(),
        "test_seed_sd_points": pd.Series(points.mean(axis=0)).std(),
        "test_images": len(points),
    }
    if points.shape[1] >= LEAST_SEEDS:
        found = estimate(points, groups=groups)
        row["test_half_width_points"] = found.half_width
        row["test_low_percent"] = max(found.low, 0.0)
        row["test_high_percent"] = min(found.high, 100.0)
    return row


def _searched(best: Any, own: pd.DataFrame) -> dict[str, object]:
    """What the search says of itself, and what its best trial was worth when trained again."""
    again = _sound(own[own["trial_id"] == best["trial_id"]])
    score = best["best_validation_accuracy"]
    return {
        "search_best_percent": 100 * score,
        "optimism_gap_points": 100 * (score - again["best_validation_accuracy"].mean()),
        "trial_id": best["trial_id"],
        "configuration": best["configuration"],
    }


def _chosen(trials: pd.DataFrame, trial_id: str) -> dict[str, object]:
    chosen = trials[trials["trial_id"] == trial_id]
    if chosen.empty:
        raise UserError(f"The log is damaged: {trial_id} was confirmed, but never searched.")
    return {"trial_id": trial_id, "configuration": chosen["configuration"].iloc[0]}
