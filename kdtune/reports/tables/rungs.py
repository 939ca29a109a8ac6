"""Rank correlations between rungs, and advice on the grace period.

Stopped trials are not known beyond their last epoch. The correction for that assumes normal
scores, and that a trial is promoted by its score alone.
"""

import math
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import pandas as pd
from scipy.stats import norm, pearsonr, rankdata

from kdtune.log.events import SUCCESSFUL_STATES, Event, SweepStarted, TrialState
from kdtune.reports.tables.columns import MIN_PROMOTED_TRIALS, RUNGS
from kdtune.reports.tables.log_tables import epochs_table, trials_table

_MIN_TRUSTED_CORRELATION, _MIN_SAFE_CORRELATION = 0.5, 0.8
"""Correlation that a rung must have to stop trials there, and to move the grace period to it."""


def compared_epochs(epochs: int, grace_period: int, reduction_factor: int) -> list[int]:
    """Return the rungs, those that a shorter grace period would add, and the last epoch.

    Args:
        epochs: epochs of a complete trial.
        grace_period: first rung.
        reduction_factor: ratio of successive rungs.
    """
    rungs = [grace_period]
    while rungs[0] >= reduction_factor:
        rungs.insert(0, rungs[0] // reduction_factor)
    while rungs[-1] * reduction_factor < epochs:
        rungs.append(rungs[-1] * reduction_factor)
    return [*rungs, epochs] if rungs[-1] < epochs else rungs


def rungs_table(events: Sequence[Event]) -> pd.DataFrame:
    """Return `RUNGS`; without the event that starts a sweep there are no rows."""
    config = next((event.config for event in events if isinstance(event, SweepStarted)), None)
    if config is None:
        return RUNGS.make_frame()
    rungs = compared_epochs(config["epochs"], config["grace_period"], config["reduction_factor"])
    trials, epochs = trials_table(events), epochs_table(events)
    trials = trials[trials["candidate"].isna()]
    usable_trials = trials[trials["state"].isin([*SUCCESSFUL_STATES, TrialState.RUNNING])]
    rows = []
    for (method, model), cell in usable_trials.groupby(["method", "model"], sort=False):
        scores = epochs[epochs["trial_id"].isin(cell["trial_id"])]
        scores = scores.pivot(index="trial_id", columns="epoch", values="best_validation_accuracy")
        scores = scores.reindex(columns=rungs).astype(float)
        winner = scores.max(axis=1).idxmax() if len(scores) else None
        for rung, next_rung in zip(rungs, rungs[1:], strict=False):
            reached = scores[rung].dropna()
            promoted = scores.loc[reached.index, next_rung].dropna()
            ranks = pd.Series(rankdata(-reached, method="min"), index=reached.index)
            counts = len(reached), len(promoted)
            values = *counts, *_correlations(reached, promoted), ranks.get(winner)
            rows.append((method, model, rung, next_rung, *values))
    return RUNGS.make_frame(rows)


def _correlations(reached: pd.Series, promoted: pd.Series) -> tuple[float, float]:
    """Return the correlation of promoted trials, and the corrected one of all."""
    if len(promoted) < MIN_PROMOTED_TRIALS:
        return np.nan, np.nan
    scores = pd.Series(_normal_scores(reached), index=reached.index)
    rung_scores, next_scores = scores[promoted.index], _normal_scores(promoted)
    if np.ptp(rung_scores) == 0 or np.ptp(next_scores) == 0:
        return np.nan, np.nan  # all scores are equal
    r = float(pearsonr(rung_scores, next_scores).statistic)
    u = float(scores.std() / rung_scores.std())
    return r, r * u / math.sqrt(1 - r**2 + r**2 * u**2)


def _normal_scores(values: pd.Series) -> np.ndarray:
    return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)))


def advise_grace_period(rungs: pd.DataFrame, grace_period: int) -> str:
    """Return a sentence on the grace period, by the mean correlation over cells.

    Args:
        rungs: the table `RUNGS` of a sweep.
        grace_period: the grace period of the sweep, in epochs.
    """
    by_rung = rungs.dropna(subset="correlation_all").groupby(["rung_epoch", "next_epoch"])
    means = by_rung["correlation_all"].mean().sort_index()
    used_means = means[means.index.get_level_values("rung_epoch") >= grace_period]
    for (rung, next_rung), mean in reversed(list(used_means.items())):
        if mean < _MIN_TRUSTED_CORRELATION:
            return (
                f"The grace period is too short: the order of trials after epoch {rung} says "
                f"little of that after epoch {next_rung} (rank correlation {mean:.2f}); "
                f"--grace-period {next_rung} waits."
            )
    earlier = reversed(list(means.drop(used_means.index).items()))
    safe = takewhile(lambda item: item[1] >= _MIN_SAFE_CORRELATION, earlier)
    epoch = min((rung for (rung, _), _ in safe), default=grace_period)
    if epoch < grace_period:
        lowest = means[means.index.get_level_values("rung_epoch") >= epoch].min()
        return (
            f"The grace period could be shorter: from epoch {epoch} on, trials keep their order "
            f"(rank correlation {lowest:.2f} or more); --grace-period {epoch} saves epochs."
        )
    if used_means.empty:
        promoted = rungs.loc[rungs["rung_epoch"] >= grace_period, "trials_promoted"].max()
        return (
            "The grace period cannot be judged: that takes a cell with "
            f"{MIN_PROMOTED_TRIALS} trials that were promoted at a rung, and at most "
            f"{0 if pd.isna(promoted) else promoted} were."
        )
    return (
        f"The grace period of {grace_period} epochs holds: at every rung the order of trials "
        f"tells that at the next (rank correlation {used_means.min():.2f} or more)."
    )
