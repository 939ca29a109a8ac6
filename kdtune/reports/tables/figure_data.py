"""What the figures draw, as tables. Nothing is computed anew here but differences by seed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_log_scale
from kdtune.log.events import ENDED_STATES, Cell
from kdtune.reports.tables.comparison import ALL_MODELS, CellResult
from kdtune.reports.tables.settings import Spaces, overlapping_ranges

ACCURACY_VS_COST_COLUMNS = [
    "model",
    "method",
    "split",
    "accuracy_percent",
    "low_percent",
    "high_percent",
    "parameters",
    "macs",
    "latency_ms",
    "front_parameters",
    "front_macs",
    "front_latency",
]


def seed_differences(pair: pd.DataFrame, cell_results: Mapping[Cell, CellResult]) -> pd.DataFrame:
    """One row a model and seed that both methods finished: A minus B on the test images.

    Args:
        pair: as `select_main_pair` gives it.
        cell_results: as `kdtune.reports.tables.confirmed.collect_cell_results` makes them.

    Columns:
        model, seed: where; the model ``all`` is the mean over the models.
        difference_points: points.
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
    """One row a cell: what it reaches and what its student costs.

    Args:
        leaderboard: as `kdtune.reports.tables.leaderboard.leaderboard_table` makes it.

    Columns:
        model, method: the cell.
        split: ``test``, or where no cell was tested ``validation``: then scores of the search.
        accuracy_percent, low_percent, high_percent: with the 95 % interval, if there is one.
        parameters: of the student, as the next two; empty if they were not measured.
        macs, latency_ms: for one image.
        front_parameters, front_macs, front_latency: whether the cell is on the Pareto front of
            accuracy and that cost, by `is_pareto_optimal`.
    """
    is_tested = leaderboard["test_accuracy_percent"].notna().any()
    accuracy_column = "test_accuracy_percent" if is_tested else "search_best_percent"
    fronts = {
        f"front_{cost.removesuffix('_ms')}": is_pareto_optimal(
            leaderboard[accuracy_column], leaderboard[cost]
        )
        for cost in ("parameters", "macs", "latency_ms")
    }
    return leaderboard.assign(
        **fronts,
        split="test" if is_tested else "validation",
        accuracy_percent=leaderboard[accuracy_column],
        low_percent=leaderboard["test_low_percent"],
        high_percent=leaderboard["test_high_percent"],
    ).dropna(subset="accuracy_percent")[ACCURACY_VS_COST_COLUMNS]


def is_pareto_optimal(accuracy: pd.Series, cost: pd.Series) -> list[bool]:
    """Whether nothing else is as accurate for less, or more accurate for the same.

    By figures, not by intervals; what is not known is on no front, and beats nothing.

    >>> is_pareto_optimal(pd.Series([70.0, 80.0, 75.0, None]), pd.Series([1, 2, 2, 1]))
    [True, True, False, False]
    """
    a, c = (series.to_numpy(float, na_value=np.nan) for series in (accuracy, cost))
    is_beaten = [
        bool(
            (
                ((a >= cell_accuracy) & (c < cell_cost)) | ((a > cell_accuracy) & (c <= cell_cost))
            ).any()
        )
        for cell_accuracy, cell_cost in zip(a, c, strict=True)
    ]
    is_known = ~np.isnan(a) & ~np.isnan(c)
    return [bool(known) and not beaten for known, beaten in zip(is_known, is_beaten, strict=True)]


def search_curve_steps(search_curve: pd.DataFrame) -> pd.DataFrame:
    """The rows of a search curve at which the best changes, and each cell's last one.

    Args:
        search_curve: as `kdtune.reports.tables.search_curve.search_curve_table` makes it.
    """
    scored = search_curve.dropna(subset="best_percent")
    cells = scored.groupby(["method", "model"], sort=False)["best_percent"]
    return scored[(cells.diff() != 0) | (cells.cumcount(ascending=False) == 0)]


def setting_ranges(settings: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """The rows of the table of settings that have a range, with ``log``: whether by logarithms.

    Args:
        settings: as `kdtune.reports.tables.settings.settings_table` makes it.
        spaces: as `kdtune.reports.tables.settings.collect_distributions` gives them.
    """
    ranged = settings.dropna(subset=["good_low", "good_high"])
    is_log = [is_log_scale(spaces[row.method][row.hyperparameter]) for row in ranged.itertuples()]
    return ranged.assign(log=pd.Series(is_log, index=ranged.index, dtype=bool))


def settings_summary(settings: pd.DataFrame) -> pd.DataFrame:
    """One row a method and setting, over its models.

    Args:
        settings: as `kdtune.reports.tables.settings.settings_table` makes it.

    Columns:
        method, hyperparameter: the setting.
        importance, importance_low, importance_high: mean and range over the models.
        low, high: see `kdtune.reports.tables.settings.overlapping_ranges`; empty for a single model.
    """
    group_columns = ["method", "hyperparameter"]
    importance = settings.groupby(group_columns, sort=False)["importance"].agg(
        ["mean", "min", "max"]
    )
    importance.columns = ["importance", "importance_low", "importance_high"]
    return importance.reset_index().merge(
        overlapping_ranges(settings), on=group_columns, how="left"
    )


def count_outcomes(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: how many of its trials ended how; ``running`` are those that have not.

    Args:
        leaderboard: as `kdtune.reports.tables.leaderboard.leaderboard_table` makes it.
    """
    counts = leaderboard[["method", "model", *(f"trials_{state}" for state in ENDED_STATES)]]
    counts = counts.rename(columns=lambda name: name.removeprefix("trials_"))
    return counts.assign(
        running=leaderboard["trials_started"] - counts[list(ENDED_STATES)].sum(axis=1)
    )
