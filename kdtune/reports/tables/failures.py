"""What failed, and what the trials that diverged have in common: a hint, not a cause."""

import re

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_log_scale
from kdtune.log.events import SUCCESSFUL_STATES
from kdtune.reports.tables.log_tables import TRIAL_COLUMNS
from kdtune.reports.tables.settings import Spaces

FAILED_STATES = ("diverged", "crashed")
MAX_ERRORS = 5
MAX_SETTINGS_PER_METHOD = 3
"""Settings of a method that are told."""


def errors_table(trials: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The most frequent reasons of failure; those that differ in numbers only are one.

    Args:
        trials, runs: as `kdtune.reports.tables.log_tables` makes them.

    Columns:
        state: ``diverged`` or ``crashed``.
        reason: of the first trial or run with it.
        trials, runs: how many failed so.
    """
    columns = ["state", "reason"]
    trials_and_runs = pd.concat(
        [
            trials[columns].assign(trials=1, runs=0),
            runs.rename(columns={"status": "state"})[columns].assign(trials=0, runs=1),
        ]
    )
    failed = trials_and_runs[trials_and_runs["state"].isin(FAILED_STATES)]
    kind = [re.sub(r"\d+", "#", reason) for reason in failed["reason"]]
    grouped = failed.assign(kind=kind).groupby(["state", "kind"], sort=False)
    table = grouped.agg(reason=("reason", "first"), trials=("trials", "sum"), runs=("runs", "sum"))
    frequencies = (table["trials"] + table["runs"]).sort_values(ascending=False, kind="stable")
    table = table.loc[frequencies.index].head(MAX_ERRORS).reset_index()
    return table[[*columns, "trials", "runs"]]


def diverged_settings(trials: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """Settings of a method whose median differs most between trials that diverged and sound ones.

    Args:
        trials: as `kdtune.reports.tables.log_tables.trials_table` makes it.
        spaces: as `kdtune.reports.tables.settings.collect_distributions` gives them.

    Columns:
        method, hyperparameter: the setting.
        diverged_median, other_median: of the trials that diverged, and of the sound ones.
        distance: between the two in standard deviations of all (of the logarithms where the space
            has a log scale).
    """
    columns = ["method", "hyperparameter", "diverged_median", "other_median", "distance"]
    tables = [pd.DataFrame(columns=columns)]
    for method, method_trials in trials.groupby("method", sort=False):
        rows = []
        has_diverged, is_successful = (
            method_trials["state"] == "diverged",
            method_trials["state"].isin(SUCCESSFUL_STATES),
        )
        for name, distribution in spaces.get(str(method), {}).items():
            if (
                name not in method_trials
                or name in TRIAL_COLUMNS
                or not pd.api.types.is_numeric_dtype(method_trials[name])
            ):
                continue
            values = method_trials[name].astype(float)
            scaled = np.log(values) if is_log_scale(distribution) else values
            distance = (
                abs(scaled[has_diverged].median() - scaled[is_successful].median()) / scaled.std()
            )
            if np.isfinite(distance):
                medians = values[has_diverged].median(), values[is_successful].median()
                rows.append((method, name, *medians, distance))
        if rows:
            method_table = pd.DataFrame(rows, columns=columns)
            tables.append(method_table.nlargest(MAX_SETTINGS_PER_METHOD, "distance"))
    return pd.concat(tables[1:] or tables, ignore_index=True)
