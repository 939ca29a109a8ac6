"""What failed, and what the trials that diverged have in common: a hint, not a cause."""

import re

import numpy as np
import pandas as pd

from kdtune.log.distributions import is_logarithmic
from kdtune.log.events import SOUND
from kdtune.reports.tables.log_tables import TRIAL
from kdtune.reports.tables.settings import Spaces

FAILED = ("diverged", "crashed")
MOST_ERRORS = 5
MOST_SETTINGS = 3
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
    both = pd.concat(
        [
            trials[columns].assign(trials=1, runs=0),
            runs.rename(columns={"status": "state"})[columns].assign(trials=0, runs=1),
        ]
    )
    failed = both[both["state"].isin(FAILED)]
    kind = [re.sub(r"\d+", "#", reason) for reason in failed["reason"]]
    grouped = failed.assign(kind=kind).groupby(["state", "kind"], sort=False)
    table = grouped.agg(reason=("reason", "first"), trials=("trials", "sum"), runs=("runs", "sum"))
    most = (table["trials"] + table["runs"]).sort_values(ascending=False, kind="stable")
    table = table.loc[most.index].head(MOST_ERRORS).reset_index()
    return table[[*columns, "trials", "runs"]]


def diverged_settings(trials: pd.DataFrame, spaces: Spaces) -> pd.DataFrame:
    """Settings of a method whose median differs most between trials that diverged and sound ones.

    Args:
        trials: as `kdtune.reports.tables.log_tables.trials_table` makes it.
        spaces: as `kdtune.reports.tables.settings.distributions` gives them.

    Columns:
        method, hyperparameter: the setting.
        diverged_median, other_median: of the trials that diverged, and of the sound ones.
        distance: between the two in standard deviations of all (of the logarithms where the space
            has a log scale).
    """
    columns = ["method", "hyperparameter", "diverged_median", "other_median", "distance"]
    tables = [pd.DataFrame(columns=columns)]
    for method, own in trials.groupby("method", sort=False):
        rows = []
        fell, sound = own["state"] == "diverged", own["state"].isin(SOUND)
        for name, distribution in spaces.get(str(method), {}).items():
            if name not in own or name in TRIAL or not pd.api.types.is_numeric_dtype(own[name]):
                continue
            values = own[name].astype(float)
            scaled = np.log(values) if is_logarithmic(distribution) else values
            distance = abs(scaled[fell].median() - scaled[sound].median()) / scaled.std()
            if np.isfinite(distance):
                medians = values[fell].median(), values[sound].median()
                rows.append((method, name, *medians, distance))
        if rows:
            of_method = pd.DataFrame(rows, columns=columns)
            tables.append(of_method.nlargest(MOST_SETTINGS, "distance"))
    return pd.concat(tables[1:] or tables, ignore_index=True)
