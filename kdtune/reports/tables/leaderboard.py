"""Leaderboard: one row per cell, with the results of its search and its confirmation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.log.events import Cell, Event, SweepStarted
from kdtune.log.settings_scores import SettingsScores
from kdtune.reports.tables.cells import CellData
from kdtune.reports.tables.columns import LEADERBOARD
from kdtune.reports.tables.comparison import CellResult, comparison_table
from kdtune.reports.tables.log_tables import models_table, runs_table, trials_table
from kdtune.reports.tables.looks import looks_by_cell
from kdtune.reports.tables.ship import NO_LIMITS, ShipLimits, ship_table
from kdtune.reports.tables.ship_sentences import describe_ship_set
from kdtune.reports.tables.statistics import Verdict


@dataclass(frozen=True)
class SweepTables:
    """The tables `TRIALS`, `RUNS`, `MODELS`, `COMPARISON`, `LEADERBOARD` and `SHIP` of a sweep.

    Attributes:
        ship_sentences: result of `describe_ship_set`.
    """

    trials: pd.DataFrame
    runs: pd.DataFrame
    models: pd.DataFrame
    cell_results: dict[Cell, CellResult]
    comparison: pd.DataFrame
    leaderboard: pd.DataFrame
    ship: pd.DataFrame
    ship_sentences: list[str]


def build_sweep_tables(
    events: Sequence[Event],
    confirm_events: Sequence[Event] = (),
    image_scores: Mapping[str, np.ndarray] | None = None,
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
    limits: ShipLimits = NO_LIMITS,
) -> SweepTables:
    """Make the tables of a sweep, confirmed or not.

    Args:
        events: log of the search.
        confirm_events: log of the confirmation.
        image_scores: by run, see `kdtune.log.image_scores.score_images`.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.
        limits: what the student to ship may cost.
    """
    opening = next((event for event in events if isinstance(event, SweepStarted)), None)
    trials = trials_table(events)
    runs, models = runs_table(confirm_events), models_table(confirm_events)
    chance, scores = opening.chance if opening else 0.0, SettingsScores(events)
    cells = []
    for (method, model), cell_trials in trials.groupby(["method", "model"], sort=False):
        cell_runs = runs[(runs["method"] == method) & (runs["model"] == model)]
        tables = cell_trials, cell_runs, scores
        cells.append(CellData((method, model), *tables, image_scores or {}, chance))
    looks = looks_by_cell(confirm_events)
    results = {cell.cell: replace(cell.result, looks=looks.get(cell.cell, ())) for cell in cells}
    comparison = comparison_table(results, groups, min_difference)
    ranks, gains = _compute_ranks(comparison), _student_gains(comparison)
    student_costs = models.set_index("model").to_dict("index")
    leaderboard = LEADERBOARD.make_frame(
        {
            "rank": ranks.get(cell.cell),
            "validation_images": opening.data.validation_images if opening else None,
            **cell.search_columns(),
            **cell.confirm_columns(groups),
            **gains.get(cell.cell, {}),
            **student_costs.get(cell.cell[1], {}),
        }
        for cell in cells
    )
    validation, test = (leaderboard[f"{s}_accuracy_percent"] for s in ("validation", "test"))
    leaderboard["validation_minus_test_points"] = validation - test
    leaderboard = sort_leaderboard(leaderboard)
    ship = ship_table(leaderboard, results, groups, min_difference, limits)
    sentences = describe_ship_set(ship, bool(opening and opening.data.test_images), limits)
    return SweepTables(trials, runs, models, results, comparison, leaderboard, ship, sentences)


def redundant_columns(leaderboard: pd.DataFrame) -> set[str]:
    """Return the columns of balanced accuracies that are nowhere half a point from accuracies."""
    validation, test = (f"{s}_balanced_accuracy_percent" for s in ("validation", "test"))
    accuracies = leaderboard["validation_accuracy_percent"], leaderboard["search_best_percent"]
    others = {validation: accuracies[0].fillna(accuracies[1])}
    others[test] = leaderboard["test_accuracy_percent"]
    return {
        name
        for name, other in others.items()
        if np.allclose(leaderboard[name].fillna(other), other, rtol=0, atol=0.5, equal_nan=True)
    }


def sort_leaderboard(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Sort a leaderboard by model, then test accuracy, then best score of the search."""
    keys = ["model", "test_accuracy_percent", "search_best_percent"]
    order = [True, False, False]
    return leaderboard.sort_values(keys, ascending=order, kind="stable", ignore_index=True)


def _compute_ranks(comparison: pd.DataFrame) -> dict[Cell, int]:
    ranks: dict[Cell, int] = {}
    for row in comparison[comparison["models"] == 1].itertuples():
        if row.verdict in (Verdict.NOT_CONFIRMED, Verdict.UNSTABLE):
            continue
        losers = {Verdict.BETTER_B: row.method_a, Verdict.BETTER_A: row.method_b}
        for method in (row.method_a, row.method_b):
            rank = ranks.get((method, row.model), 1)
            ranks[method, row.model] = rank + (losers.get(row.verdict) == method)
    return ranks


def _student_gains(comparison: pd.DataFrame) -> dict[Cell, dict[str, float]]:
    is_gain = (comparison["method_b"] == "student") & (comparison["models"] == 1)
    return {
        (row.method_a, row.model): {
            "gain_over_student_points": row.difference_points,
            "gain_over_student_half_width_points": row.half_width_points,
        }
        for row in comparison[is_gain].itertuples()
    }
