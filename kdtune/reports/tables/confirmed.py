"""Confirmed cells: fresh-seed accuracies on validation and test images."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from kdtune.log.events import SOUND, Cell
from kdtune.reports.tables.comparison import Confirmed
from kdtune.reports.tables.statistics import late_gain, luck_of_search


def confirmed_cells(
    trials: pd.DataFrame,
    runs: pd.DataFrame,
    right: Mapping[str, np.ndarray],
    chance: float,
) -> dict[Cell, Confirmed]:
    """What `comparison_table` compares: every cell that was searched, in the order of the sweep.

    A cell of which nothing is chosen since no run was sound, and every configuration diverged,
    counts as diverged, as often as the one did that diverged least.

    Args:
        trials: as `trials_table` makes it.
        runs: as `runs_table` makes it.
        right: by run, whether each test image was classified rightly, bool [n].
        chance: share of 1 that guessing has, 1 / classes: what a diverged trial is worth.
    """
    cells = {}
    for cell, tried in _by_cell(trials):
        own = _of_cell(runs, cell)
        judged = _judged(own)
        tested = judged[judged["chosen"] & (judged["status"] == "ok")]
        worth = _worth(tried, chance)
        cells[cell] = Confirmed(
            right={
                run.seed: right[run.run_id] for run in tested.itertuples() if run.run_id in right
            },
            seeds=len(judged) or own["seed"].nunique(),
            diverged=int((judged["status"] == "diverged").sum()),
            luck=luck_of_search(worth, _seed_sd(judged)),
            late_gain=late_gain(worth),
        )
    return cells


def _worth(trials: pd.DataFrame, chance: float) -> pd.Series:
    """What a cell's trials are worth to its search, in points, in order of proposal.

    NaN of those that crashed, or have no accuracy yet.
    """
    worth = trials["best_validation_accuracy"].where(trials["state"].isin(SOUND))
    return 100 * worth.mask(trials["state"] == "diverged", chance).astype(float)


def _seed_sd(judged: pd.DataFrame) -> float:
    """Standard deviation over seeds of what was chosen, in points; 0 if that is not known."""
    scores = 100 * _sound(judged[judged["chosen"]])["best_validation_accuracy"]
    return float(scores.std()) if len(scores) > 1 else 0.0


def _judged(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of a cell by which it is judged."""
    chosen = runs[runs["chosen"]]
    if len(chosen) or runs.empty or runs["status"].isin(["running", "ok"]).any():
        return chosen
    diverged = (runs["status"] == "diverged").groupby(runs["trial_id"], sort=False).sum()
    return runs[runs["trial_id"] == diverged.idxmin()] if diverged.min() else chosen


def _by_cell(trials: pd.DataFrame) -> Iterable[tuple[Cell, pd.DataFrame]]:
    yield from trials.groupby(["method", "model"], sort=False)


def _of_cell(table: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    return table[(table["method"] == cell[0]) & (table["model"] == cell[1])]


def _sound(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["status"] == "ok"].dropna(subset="best_validation_accuracy")
