"""Reasons of failures, and settings that diverged trials have in common."""

import re

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_log_scale
from kdtune.log.events import FAILED_STATES, SUCCESSFUL_STATES, TrialState
from kdtune.reports.tables.columns import DIVERGED_SETTINGS, FAILURES
from kdtune.reports.tables.settings import Spaces, select_searched

_MAX_FAILURES, _MAX_SETTINGS_PER_METHOD = 5, 3
"""Rows, at most: of the reasons, and of a method's settings."""


def failures_table(trials: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return `FAILURES`; reasons that differ only in numbers count as one.

    Args:
        trials: the table `TRIALS`.
        runs: the table `RUNS`.
    """
    columns = ["state", "reason"]
    counted = trials[columns].assign(trials=1, runs=0), runs[columns].assign(trials=0, runs=1)
    trials_and_runs = pd.concat(counted)
    failed = trials_and_runs[trials_and_runs["state"].isin(FAILED_STATES)]
    kind = [re.sub(r"\d+", "#", reason) for reason in failed["reason"]]
    grouped = failed.assign(kind=kind).groupby(["state", "kind"], sort=False)
    table = grouped.agg(reason=("reason", "first"), trials=("trials", "sum"), runs=("runs", "sum"))
    frequencies = (table["trials"] + table["runs"]).sort_values(ascending=False, kind="stable")
    table = table.loc[frequencies.index].head(_MAX_FAILURES).reset_index()
    return FAILURES.cast(table[FAILURES.names])


def diverged_settings(trials: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """Return `DIVERGED_SETTINGS`: a hint at causes, not a proof.

    Args:
        trials: the table `TRIALS`.
        spaces: result of `collect_distributions`.
    """
    tables = [DIVERGED_SETTINGS.make_frame()]
    first_trials = trials[trials["candidate"].isna()]  # repeats would count settings twice
    for method, method_trials in first_trials.groupby("method", sort=False):
        diverged = method_trials["state"] == TrialState.DIVERGED
        successful = method_trials["state"].isin(SUCCESSFUL_STATES)
        rows = []
        for name, distribution in select_searched(spaces, str(method), method_trials).items():
            if not pd.api.types.is_numeric_dtype(method_trials[name]):
                continue
            values = method_trials[name].astype(float)
            scaled = np.log(values) if is_log_scale(distribution) else values
            distance = abs(scaled[diverged].median() - scaled[successful].median()) / scaled.std()
            if np.isfinite(distance):
                medians = values[diverged].median(), values[successful].median()
                rows.append((method, name, *medians, distance))
        if rows:
            method_table = DIVERGED_SETTINGS.make_frame(rows)
            tables.append(method_table.nlargest(_MAX_SETTINGS_PER_METHOD, "distance"))
    return pd.concat(tables[1:] or tables, ignore_index=True)
