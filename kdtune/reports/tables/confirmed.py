"""Confirmed cells: fresh-seed accuracies on validation and test images."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from kdtune.log.events import SUCCESSFUL_STATES, Cell
from kdtune.reports.tables.comparison import CellResult
from kdtune.reports.tables.statistics import late_gain, search_luck


def collect_cell_results(
    trials: pd.DataFrame, runs: pd.DataFrame, correct: Mapping[str, np.ndarray], chance: float
) -> dict[Cell, CellResult]:
    """What `comparison_table` compares: every cell that was searched, in the order of the sweep.

    A cell of which nothing is chosen since no run was sound, and every configuration diverged,
    counts as diverged, as often as the one did that diverged least.

    Args:
        trials: as `trials_table` makes it.
        runs: as `runs_table` makes it.
        correct: by run, whether each test image was classified rightly, bool [n].
        chance: share of 1 that guessing has, 1 / classes: what a diverged trial is worth.
    """
    cell_results = {}
    for cell, cell_trials in group_by_cell(trials):
        cell_runs = select_cell(runs, cell)
        deciding_runs = select_deciding_runs(cell_runs)
        tested_runs = deciding_runs[deciding_runs["chosen"] & (deciding_runs["status"] == "ok")]
        scores = _search_scores(cell_trials, chance)
        cell_results[cell] = CellResult(
            correct={
                run.seed: correct[run.run_id]
                for run in tested_runs.itertuples()
                if run.run_id in correct
            },
            seeds_run=len(deciding_runs) or cell_runs["seed"].nunique(),
            seeds_diverged=int((deciding_runs["status"] == "diverged").sum()),
            search_luck=search_luck(scores, seed_sd_points(deciding_runs)),
            late_gain=late_gain(scores),
        )
    return cell_results


def _search_scores(trials: pd.DataFrame, chance: float) -> pd.Series:
    """What a cell's trials are worth to its search, in points, in order of proposal.

    NaN of those that crashed, or have no accuracy yet.
    """
    accuracies = trials["best_validation_accuracy"].where(trials["state"].isin(SUCCESSFUL_STATES))
    return 100 * accuracies.mask(trials["state"] == "diverged", chance).astype(float)


def seed_sd_points(deciding_runs: pd.DataFrame) -> float:
    """Standard deviation over seeds of what was chosen, in points; 0 if that is not known."""
    scores = (
        100 * select_successful(deciding_runs[deciding_runs["chosen"]])["best_validation_accuracy"]
    )
    return float(scores.std()) if len(scores) > 1 else 0.0


def select_deciding_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of a cell by which it is judged."""
    chosen = runs[runs["chosen"]]
    if len(chosen) or runs.empty or runs["status"].isin(["running", "ok"]).any():
        return chosen
    diverged = (runs["status"] == "diverged").groupby(runs["trial_id"], sort=False).sum()
    return runs[runs["trial_id"] == diverged.idxmin()] if diverged.min() else chosen


def group_by_cell(trials: pd.DataFrame) -> Iterable[tuple[Cell, pd.DataFrame]]:
    yield from trials.groupby(["method", "model"], sort=False)


def select_cell(table: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    return table[(table["method"] == cell[0]) & (table["model"] == cell[1])]


def select_successful(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["status"] == "ok"].dropna(subset="best_validation_accuracy")
