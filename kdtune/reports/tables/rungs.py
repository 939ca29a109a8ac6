"""Could the rungs be trusted? How well the order of trials at one tells that at the next.

Only what was trained is known: how a stopped trial would have gone on, nobody can tell. The
correction for that assumes that scores are normal, and that a trial went on by its score alone.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, pearsonr, rankdata

from kdtune.log.events import SUCCESSFUL_STATES, Event, SweepStarted
from kdtune.reports.tables.log_tables import epochs_table, trials_table

MIN_PROMOTED_TRIALS = 10
"""Trials that must have gone on at a rung before its order is judged."""

MIN_TRUSTED_CORRELATION = 0.5
"""Below this correlation a rung tells too little to stop trials by."""

MIN_SAFE_CORRELATION = 0.8
"""From this correlation on trials could be stopped that early."""

RUNG_COLUMNS = [
    "method",
    "model",
    "rung_epoch",
    "next_epoch",
    "trials_reached",
    "trials_promoted",
    "correlation_promoted",
    "correlation_all",
    "winner_rank_at_rung",
]


def compared_epochs(epochs: int, grace_period: int, reduction_factor: int) -> list[int]:
    """Epochs that are compared: the rungs, those that an earlier first one would give, the last.

    >>> compared_epochs(20, 4, 2)
    [1, 2, 4, 8, 16, 20]
    """
    rungs = [grace_period]
    while rungs[0] >= reduction_factor:
        rungs.insert(0, rungs[0] // reduction_factor)
    while rungs[-1] * reduction_factor < epochs:
        rungs.append(rungs[-1] * reduction_factor)
    return [*rungs, epochs] if rungs[-1] < epochs else rungs


def rungs_table(events: Sequence[Event]) -> pd.DataFrame:
    """One row a cell and pair of successive measured epochs; diverged and crashed trials left out.

    Columns:
        method, model: the cell.
        rung_epoch, next_epoch: the pair.
        trials_reached, trials_promoted: trials that trained up to the one, and to the other.
        correlation_promoted: r, Pearson correlation of the normal scores of the best validation
            accuracies at both, among those promoted; empty below `MIN_PROMOTED_TRIALS` of them.
        correlation_all: what r would be, had all gone on: r·u / sqrt(1 − r² + r²·u²), where u is
            the standard deviation of the scores at the rung of all over that of the promoted.
        winner_rank_at_rung: place at the rung, from 1, of the trial that is the cell's best.
    """
    config = next((event.config for event in events if isinstance(event, SweepStarted)), None)
    if config is None:
        return pd.DataFrame(columns=RUNG_COLUMNS)
    rungs = compared_epochs(config["epochs"], config["grace_period"], config["reduction_factor"])
    trials, epochs = trials_table(events), epochs_table(events)
    usable_trials = trials[trials["state"].isin([*SUCCESSFUL_STATES, "running"])]
    rows = []
    for (method, model), cell in usable_trials.groupby(["method", "model"], sort=False):
        best_scores = (
            epochs[epochs["trial_id"].isin(cell["trial_id"])]
            .drop_duplicates(["trial_id", "epoch"], keep="last")
            .pivot(index="trial_id", columns="epoch", values="best_validation_accuracy")
            .reindex(columns=rungs)
            .astype(float)
        )
        winner = best_scores.max(axis=1).idxmax() if len(best_scores) else None
        for rung, next_rung in zip(rungs, rungs[1:], strict=False):
            reached = best_scores[rung].dropna()
            promoted = best_scores.loc[reached.index, next_rung].dropna()
            r, corrected = _correlations(reached, promoted)
            ranks = rankdata(-reached, method="min")
            rows.append(
                {
                    "method": method,
                    "model": model,
                    "rung_epoch": rung,
                    "next_epoch": next_rung,
                    "trials_reached": len(reached),
                    "trials_promoted": len(promoted),
                    "correlation_promoted": r,
                    "correlation_all": corrected,
                    "winner_rank_at_rung": (
                        int(ranks[reached.index.get_loc(winner)])
                        if winner in reached.index
                        else None
                    ),
                }
            )
    return pd.DataFrame(rows, columns=RUNG_COLUMNS).astype({"winner_rank_at_rung": "Int64"})


def _correlations(reached: pd.Series, promoted: pd.Series) -> tuple[float, float]:
    if len(promoted) < MIN_PROMOTED_TRIALS:
        return np.nan, np.nan
    scores = pd.Series(_normal_scores(reached), index=reached.index)
    rung_scores, next_scores = scores[promoted.index], _normal_scores(promoted)
    if np.ptp(rung_scores) == 0 or np.ptp(next_scores) == 0:
        return np.nan, np.nan  # all alike: there is no order
    r = float(pearsonr(rung_scores, next_scores).statistic)
    u = float(scores.std() / rung_scores.std())
    return r, r * u / math.sqrt(1 - r**2 + r**2 * u**2)


def _normal_scores(values: pd.Series) -> np.ndarray:
    return norm.ppf((rankdata(values) - 0.5) / len(values))


def grace_period_advice(events: Sequence[Event]) -> str:
    """Return the advice on the grace period of a sweep; empty without its settings."""
    configs = [event.config for event in events if isinstance(event, SweepStarted)]
    return advise_grace_period(rungs_table(events), configs[0]["grace_period"]) if configs else ""


def advise_grace_period(rungs: pd.DataFrame, grace_period: int) -> str:
    """Say in a sentence whether the grace period was right, by the mean correlation over cells.

    Args:
        rungs: of one sweep, as `rungs_table` makes it.
        grace_period: the sweep's.
    """
    by_rung = rungs.dropna(subset="correlation_all").groupby(["rung_epoch", "next_epoch"])
    means = by_rung["correlation_all"].mean().sort_index()
    used_means = means[means.index.get_level_values("rung_epoch") >= grace_period]
    for (rung, next_rung), mean in reversed(list(used_means.items())):
        if mean < MIN_TRUSTED_CORRELATION:
            return (
                f"The grace period is too short: the order of trials after epoch {rung} says "
                f"little of that after epoch {next_rung} (rank correlation {mean:.2f}); "
                f"--grace-period {next_rung} waits."
            )
    epoch = grace_period
    for (rung, _), mean in reversed(list(means.drop(used_means.index).items())):
        if mean < MIN_SAFE_CORRELATION:
            break
        epoch = rung
    if epoch < grace_period:
        lowest = means[means.index.get_level_values("rung_epoch") >= epoch].min()
        return (
            f"The grace period could be shorter: from epoch {epoch} on, trials keep their order "
            f"(rank correlation {lowest:.2f} or more); --grace-period {epoch} saves epochs."
        )
    if used_means.empty:
        promoted = rungs.loc[rungs["rung_epoch"] >= grace_period, "trials_promoted"].max()
        return (
            f"Whether the grace period was right cannot be said: that takes {MIN_PROMOTED_TRIALS} trials of a "
            f"cell that went on at a rung, and at most {0 if pd.isna(promoted) else promoted} did."
        )
    return (
        f"The grace period of {grace_period} epochs holds: at every rung the order of trials "
        f"tells that at the next (rank correlation {used_means.min():.2f} or more)."
    )
