"""Results of confirmed cells: test images, diverged seeds, search luck."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from kdtune.log.events import SUCCESSFUL_STATES, Cell, TrialState
from kdtune.reports.tables.comparison import CellResult
from kdtune.reports.tables.statistics import late_gain, search_luck


def collect_cell_results(
    trials: pd.DataFrame, runs: pd.DataFrame, correct: Mapping[str, np.ndarray], chance: float
) -> dict[Cell, CellResult]:
    """Return the result of every searched cell, in the order of the sweep.

    Args:
        trials: the table `TRIALS`.
        runs: the table `RUNS`.
        correct: by run, which test images were classified correctly, bool [n].
        chance: accuracy of guessing, 1 / classes; the score of a diverged trial.
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
    """Return the scores of a cell's trials in points; NaN if crashed or without an epoch."""
    accuracies = trials["best_validation_accuracy"].where(trials["state"].isin(SUCCESSFUL_STATES))
    return 100 * accuracies.mask(trials["state"] == TrialState.DIVERGED, chance).astype(float)


def seed_sd_points(deciding_runs: pd.DataFrame) -> float:
    """Return the standard deviation over seeds of the chosen configuration; 0 if unknown."""
    chosen_runs = select_successful(deciding_runs[deciding_runs["chosen"]])
    scores = 100 * chosen_runs["best_validation_accuracy"]
    return float(scores.std()) if len(scores) > 1 else 0.0


def select_deciding_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs by which a cell is judged.

    These are the runs of the chosen configuration. If every configuration diverged, they are those
    of the configuration that diverged least.
    """
    chosen = runs[runs["chosen"]]
    if len(chosen) or runs.empty or runs["status"].isin(["running", "ok"]).any():
        return chosen
    diverged = (runs["status"] == "diverged").groupby(runs["trial_id"], sort=False).sum()
    return runs[runs["trial_id"] == diverged.idxmin()] if diverged.min() else chosen


def group_by_cell(trials: pd.DataFrame) -> Iterable[tuple[Cell, pd.DataFrame]]:
    """Yield each cell, and its trials."""
    yield from trials.groupby(["method", "model"], sort=False)


def select_cell(table: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Return the rows of a cell."""
    return table[(table["method"] == cell[0]) & (table["model"] == cell[1])]


def select_successful(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that finished with an accuracy."""
    return runs[runs["status"] == "ok"].dropna(subset="best_validation_accuracy")
