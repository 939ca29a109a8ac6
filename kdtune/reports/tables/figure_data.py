"""Data of the figures, as tables."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_log_scale
from kdtune.log.events import ENDED_STATES, Cell
from kdtune.reports.tables.columns import STUDENTS
from kdtune.reports.tables.comparison import ALL_MODELS, CellResult
from kdtune.reports.tables.settings import Spaces, overlapping_ranges


def seed_differences(pair: pd.DataFrame, cell_results: Mapping[Cell, CellResult]) -> pd.DataFrame:
    """Return A minus B on the test images by model and seed, in points.

    Args:
        pair: result of `select_main_pair`.
        cell_results: results by cell.
    """
    rows = []
    models = [model for model in pair["model"] if model != ALL_MODELS]
    for row in pair.itertuples():
        sides = [
            (cell_results[row.method_a, model].correct, cell_results[row.method_b, model].correct)
            for model in (models if row.model == ALL_MODELS else [row.model])
        ]
        for seed in sorted(set.intersection(*({*a} & {*b} for a, b in sides))):
            mean_difference = np.mean([a[seed].mean() - b[seed].mean() for a, b in sides])
            rows.append((row.model, seed, 100 * float(mean_difference)))
    return pd.DataFrame(rows, columns=["model", "seed", "difference_points"])


def accuracy_vs_cost_table(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return `STUDENTS`: accuracy and cost of the cells of a leaderboard."""
    is_tested = leaderboard["test_accuracy_percent"].notna().any()
    accuracy = leaderboard["test_accuracy_percent" if is_tested else "search_best_percent"]
    fronts = {
        f"front_{cost.removesuffix('_ms')}": is_pareto_optimal(accuracy, leaderboard[cost])
        for cost in ("parameters", "macs", "latency_ms")
    }
    points = leaderboard.assign(
        **fronts,
        split="test" if is_tested else "validation",
        accuracy_percent=accuracy,
        low_percent=leaderboard["test_low_percent"],
        high_percent=leaderboard["test_high_percent"],
    )
    return STUDENTS.cast(points.dropna(subset="accuracy_percent")[STUDENTS.names])


def is_pareto_optimal(accuracy: pd.Series, cost: pd.Series) -> list[bool]:
    """Return True for each row that no other beats; a row with an unknown value is not optimal.

    Args:
        accuracy: accuracies, without their intervals.
        cost: costs, in the same order.

    >>> is_pareto_optimal(pd.Series([70.0, 80.0, 75.0, None]), pd.Series([1, 2, 2, 1]))
    [True, True, False, False]
    """
    a, c = (series.to_numpy(float, na_value=np.nan) for series in (accuracy, cost))
    is_known = ~np.isnan(a) & ~np.isnan(c)
    is_beaten = [
        (((a >= own_a) & (c < own_c)) | ((a > own_a) & (c <= own_c))).any()
        for own_a, own_c in zip(a, c, strict=True)
    ]
    return [bool(known and not beaten) for known, beaten in zip(is_known, is_beaten, strict=True)]


def search_curve_steps(search_curve: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `SEARCH_CURVE` where the best changes, and the last row of each cell."""
    scored = search_curve.dropna(subset="best_percent")
    cells = scored.groupby(["method", "model"], sort=False)["best_percent"]
    return scored[(cells.diff() != 0) | (cells.cumcount(ascending=False) == 0)]


def setting_ranges(settings: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """Return the rows of `SETTINGS` that have a range; ``log`` is true for a log scale.

    Args:
        settings: the table `SETTINGS`.
        spaces: result of `collect_distributions`.
    """
    ranged = settings.dropna(subset=["good_low", "good_high"])
    is_log = [is_log_scale(spaces[row.method][row.hyperparameter]) for row in ranged.itertuples()]
    return ranged.assign(log=pd.Series(is_log, index=ranged.index, dtype=bool))


def settings_summary(settings: pd.DataFrame) -> pd.DataFrame:
    """Return mean and range over the models of each importance, and the recommended range."""
    group_columns = ["method", "hyperparameter"]
    importance = settings.groupby(group_columns, sort=False)["importance"].agg(
        importance="mean", importance_low="min", importance_high="max"
    )
    return importance.reset_index().merge(
        overlapping_ranges(settings), on=group_columns, how="left"
    )


def count_outcomes(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return the number of trials of each cell by state."""
    counts = leaderboard[["method", "model", *(f"trials_{state}" for state in ENDED_STATES)]]
    counts = counts.rename(columns=lambda name: name.removeprefix("trials_"))
    return counts.assign(
        running=leaderboard["trials_started"] - counts[list(ENDED_STATES)].sum(axis=1)
    )
