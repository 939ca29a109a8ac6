"""How a search got on: the best score against epochs spent, and what to expect of fewer trials."""

import numpy as np
import pandas as pd
from scipy.special import gammaln

from kdtune.log.events import SUCCESSFUL_STATES

SEARCH_CURVE_COLUMNS = [
    "method",
    "model",
    "trials",
    "epochs",
    "best_percent",
    "expected_best_percent",
    "expected_epochs",
]


def search_curve_table(trials: pd.DataFrame, epochs: pd.DataFrame, chance: float) -> pd.DataFrame:
    """One row a trial of a cell that has ended, in the order in which they ended.

    Args:
        trials: as `kdtune.reports.tables.log_tables.trials_table` makes it.
        epochs: as `kdtune.reports.tables.log_tables.epochs_table` makes it.
        chance: share of 1 that guessing has; trials that diverged or crashed, which are no
            progress, count as that among those expected.

    Columns:
        method, model: the cell.
        trials: n, trials that have ended.
        epochs: what the cell had spent by then, on trials under way, too.
        best_percent: 100 · best validation accuracy that trials had reported by then which did
            not fail in the end; empty before the first.
        expected_best_percent: mean best of n of the cell's B ended trials, drawn at random:
            Σ_{j=n..B} v_j · C(j − 1, n − 1) / C(B, n), with v ascending. What a search of n trials
            would have found only if proposals do not learn from one another (random search).
        expected_epochs: n · mean epochs of a trial.
    """
    # A trial that was begun again may report an epoch twice.
    reported = epochs.drop_duplicates(["trial_id", "epoch"], ignore_index=True)
    tables = [
        _cell_curve(cell, reported[reported["trial_id"].isin(cell["trial_id"])], chance)
        for _, cell in trials.groupby(["method", "model"], sort=False)
    ]
    return (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=SEARCH_CURVE_COLUMNS)
    )


def _cell_curve(trials: pd.DataFrame, reported: pd.DataFrame, chance: float) -> pd.DataFrame:
    failed_ids = trials.loc[trials["state"].isin(["diverged", "crashed"]), "trial_id"]
    scores = reported["best_validation_accuracy"].astype(float)
    best_so_far = scores.mask(reported["trial_id"].isin(failed_ids)).cummax().ffill().to_numpy()
    epochs_spent = pd.Series(np.arange(1, len(reported) + 1), index=reported["trial_id"])
    last_epochs = epochs_spent.groupby(level=0).max()
    ended = trials[trials["state"] != "running"]
    # One that crashed before its first epoch ended, as far as is known, with the one before it.
    end_epochs = (
        ended["trial_id"].map(last_epochs).ffill().fillna(0).astype(int).sort_values(kind="stable")
    )
    final_scores = ended["best_validation_accuracy"].where(ended["state"].isin(SUCCESSFUL_STATES))
    n = np.arange(1, len(ended) + 1)
    return pd.DataFrame(
        {
            "method": ended["method"].to_numpy(),
            "model": ended["model"].to_numpy(),
            "trials": n,
            "epochs": end_epochs.to_numpy(),
            "best_percent": 100 * np.append(np.nan, best_so_far)[end_epochs.to_numpy()],
            "expected_best_percent": 100 * expected_best(final_scores.fillna(chance).to_numpy()),
            "expected_epochs": n * ended["epochs"].mean(),
        }
    )


def expected_best(values: np.ndarray) -> np.ndarray:
    """Mean of the best of n = 1..B values, drawn at random without replacement.

    >>> expected_best(np.array([3.0, 1.0, 2.0])).round(3).tolist()
    [2.0, 2.667, 3.0]
    """
    j = np.arange(1, len(values) + 1)
    n = j[:, None]
    remainder = np.maximum(j - n, 0)
    # C(j − 1, n − 1) / C(B, n), by logarithms, since these numbers are large.
    log_chance = _log_binomial(j - 1, n - 1, remainder) - _log_binomial(len(j), n, len(j) - n)
    return np.where(j >= n, np.exp(log_chance), 0) @ np.sort(values)


def _log_binomial(total: np.ndarray | int, chosen: np.ndarray, rest: np.ndarray) -> np.ndarray:
    return gammaln(np.add(total, 1)) - gammaln(chosen + 1) - gammaln(rest + 1)
