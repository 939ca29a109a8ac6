"""Joins the leaderboards of several sweeps."""

import json
from collections.abc import Mapping
from itertools import combinations

import pandas as pd

from kdtune.reports.tables.leaderboard import SweepTables, _sorted
from kdtune.reports.tables.log_tables import TRIAL


def kept_apart(abouts: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Say which sweeps cannot stand in one table, and why; nothing if all can.

    Args:
        abouts: by the sweep's name, what must be the same: data, teacher, image size, epochs.

    >>> kept_apart({"a": {"data": "x", "epochs": 5}, "b": {"data": "y", "epochs": 5}})
    ['a and b are kept apart: they differ in data.']
    """
    said = []
    for first, second in combinations(_agreeing(abouts), 2):
        a, b = abouts[first[0]], abouts[second[0]]
        differ = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        said.append(
            f"{', '.join(first)} and {', '.join(second)} are kept apart: they differ in "
            f"{' and '.join(differ)}."
        )
    return said


def _agreeing(abouts: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    """Names of the sweeps that can stand in one table, table by table."""
    tables: dict[str, list[str]] = {}
    for name, about in abouts.items():
        tables.setdefault(json.dumps(about, sort_keys=True), []).append(name)
    return list(tables.values())


def join_sweeps(
    sweeps: Mapping[str, SweepTables], abouts: Mapping[str, Mapping[str, object]]
) -> list[pd.DataFrame]:
    """The leaderboards of one or several sweeps, of comparable ones together.

    Args:
        sweeps: by name.
        abouts: as in `kept_apart`, of the same names.

    Returns:
        Tables as `leaderboard_table` makes them; with a column ``settings``, the searched values
        of the trial in short, and with a first column ``sweep`` where there is more than one.
        Ranks are those within a sweep.
    """
    boards = {}
    for name, tables in sweeps.items():
        short = [_short(tables.trials, trial) for trial in tables.leaderboard["trial_id"]]
        boards[name] = tables.leaderboard.assign(settings=pd.Series(short, dtype=object))
        if len(sweeps) > 1:
            boards[name].insert(0, "sweep", name)
    together = _agreeing({name: abouts[name] for name in boards})
    return [
        _sorted(pd.concat([boards[name] for name in names], ignore_index=True))
        for names in together
    ]


def _short(trials: pd.DataFrame, trial_id: str | None) -> str:
    if pd.isna(trial_id):
        return ""
    trial = trials.set_index("trial_id").loc[trial_id]
    return settings_in_short(trial.drop([*TRIAL[1:], "configuration"]).dropna().to_dict())


def settings_in_short(values: Mapping[str, object]) -> str:
    """Settings for people.

    >>> settings_in_short({"lr": 0.0123456, "batch_size": 64})
    'lr=0.0123 batch_size=64'
    """
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
