"""Joins the leaderboards of several sweeps."""

import json
from collections.abc import Mapping
from itertools import combinations

import pandas as pd

from kdtune.reports.tables.leaderboard import SweepTables, sort_leaderboard
from kdtune.reports.tables.log_tables import TRIAL_COLUMNS


def explain_separate_tables(conditions: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Say which sweeps cannot stand in one table, and why; nothing if all can.

    Args:
        conditions: by the sweep's name, what must be the same: data, teacher, image size, epochs.

    >>> explain_separate_tables({"a": {"data": "x", "epochs": 5}, "b": {"data": "y", "epochs": 5}})
    ['a and b are kept apart: they differ in data.']
    """
    sentences = []
    for first, second in combinations(_group_comparable(conditions), 2):
        a, b = conditions[first[0]], conditions[second[0]]
        differences = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        sentences.append(
            f"{', '.join(first)} and {', '.join(second)} are kept apart: they differ in "
            f"{' and '.join(differences)}."
        )
    return sentences


def _group_comparable(conditions: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    """Names of the sweeps that can stand in one table, table by table."""
    tables: dict[str, list[str]] = {}
    for name, sweep_conditions in conditions.items():
        tables.setdefault(json.dumps(sweep_conditions, sort_keys=True), []).append(name)
    return list(tables.values())


def join_leaderboards(
    sweeps: Mapping[str, SweepTables], conditions: Mapping[str, Mapping[str, object]]
) -> list[pd.DataFrame]:
    """The leaderboards of one or several sweeps, of comparable ones together.

    Args:
        sweeps: by name.
        conditions: as in `explain_separate_tables`, of the same names.

    Returns:
        Tables as `leaderboard_table` makes them; with a column ``settings``, the searched values
        of the trial in short, and with a first column ``sweep`` where there is more than one.
        Ranks are those within a sweep.
    """
    leaderboards = {}
    for name, tables in sweeps.items():
        settings = [
            _trial_settings(tables.trials, trial) for trial in tables.leaderboard["trial_id"]
        ]
        leaderboards[name] = tables.leaderboard.assign(settings=pd.Series(settings, dtype=object))
        if len(sweeps) > 1:
            leaderboards[name].insert(0, "sweep", name)
    name_groups = _group_comparable({name: conditions[name] for name in leaderboards})
    return [
        sort_leaderboard(pd.concat([leaderboards[name] for name in names], ignore_index=True))
        for names in name_groups
    ]


def _trial_settings(trials: pd.DataFrame, trial_id: str | None) -> str:
    if pd.isna(trial_id):
        return ""
    trial = trials.set_index("trial_id").loc[trial_id]
    return format_settings(trial.drop([*TRIAL_COLUMNS[1:], "configuration"]).dropna().to_dict())


def format_settings(values: Mapping[str, object]) -> str:
    """Settings for people.

    >>> format_settings({"lr": 0.0123456, "batch_size": 64})
    'lr=0.0123 batch_size=64'
    """
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
