"""Data of the figures, as tables."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_log_scale
from kdtune.log.events import ENDED_STATES, Cell
from kdtune.reports.tables.comparison import ALL_MODELS, CellResult
from kdtune.reports.tables.settings import Spaces, overlapping_ranges
from kdtune.reports.tables.ship import select_ship_set


def seed_differences(pair: pd.DataFrame, cell_results: Mapping[Cell, CellResult]) -> pd.DataFrame:
    """Return A minus B on the test images by model and seed, in points.

    Args:
        pair: result of `select_main_pair`.
        cell_results: results by cell.
    """
    rows = []
    all_models = [model for model in pair["model"] if model != ALL_MODELS]
    image_scores = {cell: result.image_scores for cell, result in cell_results.items()}
    for row in pair.itertuples():
        models = all_models if row.model == ALL_MODELS else [row.model]
        sides = [(image_scores[row.method_a, m], image_scores[row.method_b, m]) for m in models]
        for seed in sorted(set.intersection(*({*a} & {*b} for a, b in sides))):
            mean_difference = np.mean([a[seed].mean() - b[seed].mean() for a, b in sides])
            rows.append((row.model, seed, 100 * float(mean_difference)))
    return pd.DataFrame(rows, columns=["model", "seed", "difference_points"])


def accuracy_vs_cost(ship: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the rows of `SHIP` whose cost is known, with the accuracy and interval to draw.

    It is test accuracy, or the score of the search if nothing is tested.

    Args:
        ship: the table `SHIP`.
        cost: column of the cost.

    Returns:
        The rows with columns ``split``, ``accuracy_percent``, ``low_percent``, ``high_percent``;
        ``filled``: true for the ship set, or for all without one; and ``pareto``: true for those
        that no other beats at a lower cost.
    """
    is_tested = ship["test_accuracy_percent"].notna().any()
    ship_set = select_ship_set(ship)
    accuracy = ship["test_accuracy_percent" if is_tested else "search_best_percent"]
    points = ship.assign(
        split="test" if is_tested else "validation",
        accuracy_percent=accuracy,
        low_percent=ship["test_low_percent"],
        high_percent=ship["test_high_percent"],
        filled=ship.index.isin(ship_set.index) | ship_set.empty,
        pareto=_is_pareto_optimal(accuracy, ship[cost]),
    )
    return points.dropna(subset=["accuracy_percent", cost])


def _is_pareto_optimal(accuracy: pd.Series, cost: pd.Series) -> list[bool]:
    """Return True for each row that no other beats; a row with an unknown value is not optimal."""
    a, c = (series.to_numpy(float, na_value=np.nan) for series in (accuracy, cost))
    no_worse = (a >= a[:, None]) & (c <= c[:, None])
    is_better = (a > a[:, None]) | (c < c[:, None])
    is_beaten = (no_worse & is_better).any(axis=1)
    return [bool(value) for value in ~(is_beaten | np.isnan(a) | np.isnan(c))]


def search_curve_steps(search_curve: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `SEARCH_CURVE` where the best changes, and the last row of each cell."""
    scored = search_curve.dropna(subset="best_percent")
    cells = scored.groupby(["method", "model"], sort=False)["best_percent"]
    return scored[(cells.diff() != 0) | (cells.cumcount(ascending=False) == 0)]


def setting_ranges(settings: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """Return the rows of `SETTINGS` that have a range; ``log`` is true for a log scale.

    Values have six digits, so that an axis does not span the last bits of a single one.

    Args:
        settings: the table `SETTINGS`.
        spaces: result of `collect_distributions`.
    """
    ranged = settings.dropna(subset=["good_low", "good_high"])
    is_log = [is_log_scale(spaces[row.method][row.hyperparameter]) for row in ranged.itertuples()]
    numbers = ranged[["good_low", "good_high", "best"]].apply(pd.to_numeric, errors="coerce")
    rounded = numbers.map(lambda number: float(f"{number:.6g}"))
    return ranged.assign(log=pd.Series(is_log, index=ranged.index, dtype=bool), **rounded)


def settings_summary(settings: pd.DataFrame) -> pd.DataFrame:
    """Return mean and range over the models of each importance, and the recommended range."""
    keys = ["method", "hyperparameter"]
    names = {"importance": "mean", "importance_low": "min", "importance_high": "max"}
    importance = settings.groupby(keys, sort=False)["importance"].agg(**names).reset_index()
    return importance.merge(overlapping_ranges(settings), on=keys, how="left")


def count_outcomes(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return the number of trials of each cell by state."""
    counts = leaderboard.rename(columns=lambda name: name.removeprefix("trials_"))
    running = counts["started"] - counts[list(ENDED_STATES)].sum(axis=1)
    return counts[["method", "model", *ENDED_STATES]].assign(running=running)
