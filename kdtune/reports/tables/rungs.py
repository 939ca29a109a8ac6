"""Could the rungs be trusted? How well the order of trials at one tells that at the next.

Only what was trained is known: how a stopped trial would have gone on, nobody can tell. The
correction for that assumes that scores are normal, and that a trial went on by its score alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, pearsonr, rankdata

from kdtune.log.events import SOUND
from kdtune.reports.tables.log_tables import epochs_table, trials_table

LEAST = 10
"""Trials that must have gone on at a rung before its order is judged."""

TRUSTED = 0.5
"""Below this correlation a rung tells too little to stop trials by."""

SAFE = 0.8
"""From this correlation on trials could be stopped that early."""

RUNG = [
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


def measured_epochs(epochs: int, grace_period: int, reduction_factor: int) -> list[int]:
    """Epochs that are compared: the rungs, those that an earlier first one would give, the last.

    >>> measured_epochs(20, 4, 2)
    [1, 2, 4, 8, 16, 20]
    """
    measured = [grace_period]
    while measured[0] >= reduction_factor:
        measured.insert(0, measured[0] // reduction_factor)
    while measured[-1] * reduction_factor < epochs:
        measured.append(measured[-1] * reduction_factor)
    return [*measured, epochs] if measured[-1] < epochs else measured


def rungs_table(events: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a cell and pair of successive measured epochs; diverged and crashed trials left out.

    Columns:
        method, model: the cell.
        rung_epoch, next_epoch: the pair.
        trials_reached, trials_promoted: trials that trained up to the one, and to the other.
        correlation_promoted: r, Pearson correlation of the normal scores of the best validation
            accuracies at both, among those promoted; empty below `LEAST` of them.
        correlation_all: what r would be, had all gone on: r·u / sqrt(1 − r² + r²·u²), where u is
            the standard deviation of the scores at the rung of all over that of the promoted.
        winner_rank_at_rung: place at the rung, from 1, of the trial that is the cell's best.
    """
    opened = next((event["config"] for event in events if event["event"] == "sweep"), None)
    if opened is None:
        return pd.DataFrame(columns=RUNG)
    measured = measured_epochs(
        opened["epochs"], opened["grace_period"], opened["reduction_factor"]
    )
    trials, epochs = trials_table(events), epochs_table(events)
    sound = trials[trials["state"].isin([*SOUND, "running"])]
    rows = []
    for (method, model), cell in sound.groupby(["method", "model"], sort=False):
        best = (
            epochs[epochs["trial_id"].isin(cell["trial_id"])]
            .drop_duplicates(["trial_id", "epoch"], keep="last")
            .pivot(index="trial_id", columns="epoch", values="best_validation_accuracy")
            .reindex(columns=measured)
            .astype(float)
        )
        winner = best.max(axis=1).idxmax() if len(best) else None
        for rung, following in zip(measured, measured[1:], strict=False):
            reached = best[rung].dropna()
            promoted = best.loc[reached.index, following].dropna()
            r, corrected = _correlations(reached, promoted)
            places = rankdata(-reached, method="min")
            rows.append(
                {
                    "method": method,
                    "model": model,
                    "rung_epoch": rung,
                    "next_epoch": following,
                    "trials_reached": len(reached),
                    "trials_promoted": len(promoted),
                    "correlation_promoted": r,
                    "correlation_all": corrected,
                    "winner_rank_at_rung": (
                        int(places[reached.index.get_loc(winner)])
                        if winner in reached.index
                        else None
                    ),
                }
            )
    return pd.DataFrame(rows, columns=RUNG).astype({"winner_rank_at_rung": "Int64"})


def _correlations(reached: pd.Series, promoted: pd.Series) -> tuple[float, float]:
    if len(promoted) < LEAST:
        return np.nan, np.nan
    scores = pd.Series(_normal_scores(reached), index=reached.index)
    before, after = scores[promoted.index], _normal_scores(promoted)
    if np.ptp(before) == 0 or np.ptp(after) == 0:
        return np.nan, np.nan  # all alike: there is no order
    r = float(pearsonr(before, after).statistic)
    u = float(scores.std() / before.std())
    return r, r * u / math.sqrt(1 - r**2 + r**2 * u**2)


def _normal_scores(values: pd.Series) -> np.ndarray:
    return norm.ppf((rankdata(values) - 0.5) / len(values))


def grace_advice(events: Sequence[dict[str, Any]]) -> str:
    """`advise` for the events of a sweep; empty if they do not say what was wanted of it."""
    opened = [event["config"] for event in events if event["event"] == "sweep"]
    return advise(rungs_table(events), opened[0]["grace_period"]) if opened else ""


def advise(rungs: pd.DataFrame, grace_period: int) -> str:
    """Say in a sentence whether the grace period was right, by the mean correlation over cells.

    Args:
        rungs: of one sweep, as `rungs_table` makes it.
        grace_period: the sweep's.
    """
    by_rung = rungs.dropna(subset="correlation_all").groupby(["rung_epoch", "next_epoch"])
    means = by_rung["correlation_all"].mean().sort_index()
    used = means[means.index.get_level_values("rung_epoch") >= grace_period]
    for (rung, following), mean in reversed(list(used.items())):
        if mean < TRUSTED:
            return (
                f"The grace period is too short: the order of trials after epoch {rung} says "
                f"little of that after epoch {following} (rank correlation {mean:.2f}); "
                f"--grace-period {following} waits."
            )
    enough = grace_period
    for (rung, _), mean in reversed(list(means.drop(used.index).items())):
        if mean < SAFE:
            break
        enough = rung
    if enough < grace_period:
        lowest = means[means.index.get_level_values("rung_epoch") >= enough].min()
        return (
            f"The grace period could be shorter: from epoch {enough} on, trials keep their order "
            f"(rank correlation {lowest:.2f} or more); --grace-period {enough} saves epochs."
        )
    if used.empty:
        most = rungs.loc[rungs["rung_epoch"] >= grace_period, "trials_promoted"].max()
        return (
            f"Whether the grace period was right cannot be said: that takes {LEAST} trials of a "
            f"cell that went on at a rung, and at most {0 if pd.isna(most) else most} did."
        )
    return (
        f"The grace period of {grace_period} epochs holds: at every rung the order of trials "
        f"tells that at the next (rank correlation {used.min():.2f} or more)."
    )
