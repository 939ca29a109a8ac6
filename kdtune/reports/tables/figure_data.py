"""What the figures draw, as tables. Nothing is computed anew here but differences by seed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_logarithmic
from kdtune.log.events import STATES, Cell
from kdtune.reports.tables.comparison import ALL, Confirmed
from kdtune.reports.tables.settings import Spaces, carries_over

SHIP = [
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


def seed_differences(pair: pd.DataFrame, cells: Mapping[Cell, Confirmed]) -> pd.DataFrame:
    """One row a model and seed that both methods finished: A minus B on the test images.

    Args:
        pair: as `first_pair` gives it.
        cells: as `kdtune.reports.tables.confirmed.confirmed_cells` makes them.

    Columns:
        model, seed: where; the model ``all`` is the mean over the models.
        difference_points: points.
    """
    rows = []
    models = [model for model in pair["model"] if model != ALL]
    for row in pair.itertuples():
        sides = [
            (cells[row.method_a, model].right, cells[row.method_b, model].right)
            for model in (models if row.model == ALL else [row.model])
        ]
        for seed in sorted(set.intersection(*({*a} & {*b} for a, b in sides))):
            found = np.mean([a[seed].mean() - b[seed].mean() for a, b in sides])
            rows.append((row.model, seed, 100 * float(found)))
    return pd.DataFrame(rows, columns=["model", "seed", "difference_points"])


def ship_points(board: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: what it reaches and what its student costs.

    Args:
        board: as `kdtune.reports.tables.leaderboard.leaderboard_table` makes it.

    Columns:
        model, method: the cell.
        split: ``test``, or where no cell was tested ``validation``: then scores of the search.
        accuracy_percent, low_percent, high_percent: with the 95 % interval, if there is one.
        parameters: of the student, as the next two; empty if they were not measured.
        macs, latency_ms: for one image.
        front_parameters, front_macs, front_latency: whether the cell is on the Pareto front of
            accuracy and that cost, by `on_front`.
    """
    tested = board["test_accuracy_percent"].notna().any()
    column = "test_accuracy_percent" if tested else "search_best_percent"
    fronts = {
        f"front_{cost.removesuffix('_ms')}": on_front(board[column], board[cost])
        for cost in ("parameters", "macs", "latency_ms")
    }
    return board.assign(
        **fronts,
        split="test" if tested else "validation",
        accuracy_percent=board[column],
        low_percent=board["test_low_percent"],
        high_percent=board["test_high_percent"],
    ).dropna(subset="accuracy_percent")[SHIP]


def on_front(accuracy: pd.Series, cost: pd.Series) -> list[bool]:
    """Whether nothing else is as accurate for less, or more accurate for the same.

    By figures, not by intervals; what is not known is on no front, and beats nothing.

    >>> on_front(pd.Series([70.0, 80.0, 75.0, None]), pd.Series([1, 2, 2, 1]))
    [True, True, False, False]
    """
    a, c = (series.to_numpy(float, na_value=np.nan) for series in (accuracy, cost))
    beaten = [
        bool((((a >= own) & (c < price)) | ((a > own) & (c <= price))).any())
        for own, price in zip(a, c, strict=True)
    ]
    known = ~np.isnan(a) & ~np.isnan(c)
    return [bool(there) and not worse for there, worse in zip(known, beaten, strict=True)]


def curve_points(search_curve: pd.DataFrame) -> pd.DataFrame:
    """The rows of a search curve at which the best changes, and each cell's last one.

    Args:
        search_curve: as `kdtune.reports.tables.search_curve.search_curve_table` makes it.
    """
    known = search_curve.dropna(subset="best_percent")
    cells = known.groupby(["method", "model"], sort=False)["best_percent"]
    return known[(cells.diff() != 0) | (cells.cumcount(ascending=False) == 0)]


def range_points(settings: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """The rows of the table of settings that have a range, with ``log``: whether by logarithms.

    Args:
        settings: as `kdtune.reports.tables.settings.settings_table` makes it.
        spaces: as `kdtune.reports.tables.settings.distributions` gives them.
    """
    known = settings.dropna(subset=["good_low", "good_high"])
    logs = [is_logarithmic(spaces[row.method][row.hyperparameter]) for row in known.itertuples()]
    return known.assign(log=pd.Series(logs, index=known.index, dtype=bool))


def settings_summary(settings: pd.DataFrame) -> pd.DataFrame:
    """One row a method and setting, over its models.

    Args:
        settings: as `kdtune.reports.tables.settings.settings_table` makes it.

    Columns:
        method, hyperparameter: the setting.
        importance, importance_low, importance_high: mean and range over the models.
        low, high: see `kdtune.reports.tables.settings.carries_over`; empty for a single model.
    """
    by = ["method", "hyperparameter"]
    importance = settings.groupby(by, sort=False)["importance"].agg(["mean", "min", "max"])
    importance.columns = ["importance", "importance_low", "importance_high"]
    return importance.reset_index().merge(carries_over(settings), on=by, how="left")


def outcomes(board: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: how many of its trials ended how; ``running`` are those that have not.

    Args:
        board: as `kdtune.reports.tables.leaderboard.leaderboard_table` makes it.
    """
    counts = board[["method", "model", *(f"trials_{state}" for state in STATES)]]
    counts = counts.rename(columns=lambda name: name.removeprefix("trials_"))
    return counts.assign(running=board["trials_started"] - counts[list(STATES)].sum(axis=1))
