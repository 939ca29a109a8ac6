"""Search curve: best score against epochs, and the expected best of fewer trials."""

import numpy as np
import pandas as pd
from scipy.special import gammaln

from kdtune.log.events import FAILED_STATES, TrialState
from kdtune.reports.tables.columns import SEARCH_CURVE


def search_curve_table(trials: pd.DataFrame, epochs: pd.DataFrame, chance: float) -> pd.DataFrame:
    """Return `SEARCH_CURVE`.

    Args:
        trials: the table `TRIALS`.
        epochs: the table `EPOCHS`.
        chance: accuracy of answers of one class, share of 1; the expected score of a failed trial.
    """
    tables = [
        _cell_curve(cell, epochs[epochs["trial_id"].isin(cell["trial_id"])], chance)
        for _, cell in trials.groupby(["method", "model"], sort=False)
    ]
    return pd.concat(tables, ignore_index=True) if tables else SEARCH_CURVE.make_frame()


def _cell_curve(trials: pd.DataFrame, reported: pd.DataFrame, chance: float) -> pd.DataFrame:
    is_scored = trials["candidate"].isna() & ~trials["state"].isin(FAILED_STATES)
    scores = reported["best_validation_accuracy"].astype(float)
    scores = scores.where(reported["trial_id"].isin(trials.loc[is_scored, "trial_id"]))
    best_so_far = scores.cummax().ffill().to_numpy()
    epochs_spent = pd.Series(np.arange(1, len(reported) + 1), index=reported["trial_id"])
    last_epochs = epochs_spent.groupby(level=0).max()
    ended = trials[trials["state"] != TrialState.RUNNING]
    # The log does not say when a trial without an epoch ended: it is placed after the one before.
    end_epochs = ended["trial_id"].map(last_epochs).ffill().fillna(0).astype(int)
    end_epochs = end_epochs.sort_values(kind="stable").to_numpy()
    settings = ended[ended["candidate"].isna()]
    expected = expected_best(settings["mean_validation_accuracy"].fillna(chance).to_numpy(float))
    n = np.arange(1, len(ended) + 1)
    is_known = n <= len(settings)
    curve = {
        "method": ended["method"].to_numpy(),
        "model": ended["model"].to_numpy(),
        "trials": n,
        "epochs": end_epochs,
        "best_percent": 100 * np.append(np.nan, best_so_far)[end_epochs],
        "expected_best_percent": 100 * np.append(expected, np.full(sum(~is_known), np.nan)),
        "expected_epochs": np.where(is_known, n * settings["epochs"].mean(), np.nan),
    }
    return SEARCH_CURVE.make_frame(curve)


def expected_best(values: np.ndarray) -> np.ndarray:
    """Return the mean best of n = 1..B values that are drawn without replacement."""
    j = np.arange(1, len(values) + 1)
    n = j[:, None]
    remainder = np.maximum(j - n, 0)
    # C(j − 1, n − 1) / C(B, n) by logarithms, since these numbers are large.
    log_chance = _log_binomial(j - 1, n - 1, remainder) - _log_binomial(len(j), n, len(j) - n)
    return np.asarray(np.where(j >= n, np.exp(log_chance), 0) @ np.sort(values))


def _log_binomial(total: np.ndarray | int, chosen: np.ndarray, rest: np.ndarray) -> np.ndarray:
    return np.asarray(gammaln(np.add(total, 1)) - gammaln(chosen + 1) - gammaln(rest + 1))
