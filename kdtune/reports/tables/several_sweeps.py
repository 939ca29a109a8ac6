"""Leaderboards of several sweeps in common tables."""

import json
from collections.abc import Mapping
from itertools import combinations

import pandas as pd

from kdtune.config.strengths import STRENGTHS
from kdtune.reports.tables.leaderboard import SweepTables, sort_leaderboard
from kdtune.reports.tables.log_tables import hyperparameter_columns


def explain_separate_tables(conditions: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return sentences that say which sweeps need separate tables, and why."""
    sentences = []
    for first, second in combinations(_group_comparable(conditions), 2):
        a, b = conditions[first[0]], conditions[second[0]]
        differences = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        reason = f"they differ in {' and '.join(differences)}"
        sentences.append(f"{', '.join(first)} and {', '.join(second)} are kept apart: {reason}.")
    return sentences


def _group_comparable(conditions: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    tables: dict[str, list[str]] = {}
    for name, sweep_conditions in conditions.items():
        tables.setdefault(json.dumps(sweep_conditions, sort_keys=True), []).append(name)
    return list(tables.values())


def join_leaderboards(
    sweeps: Mapping[str, SweepTables], conditions: Mapping[str, Mapping[str, object]]
) -> list[pd.DataFrame]:
    """Return the leaderboards of sweeps; comparable sweeps share a table.

    Args:
        sweeps: tables by the sweep's name.
        conditions: result of `comparison_conditions` by name.

    Returns:
        Leaderboards with the column ``settings``, after a column ``sweep`` if there are several.
    """
    leaderboards = {}
    for name, tables in sweeps.items():
        by_id = tables.trials.set_index("trial_id")
        by_id = by_id[[k for k in hyperparameter_columns(by_id) if k not in STRENGTHS]]
        settings = [
            "" if pd.isna(trial) else format_settings(by_id.loc[trial].dropna().to_dict())
            for trial in tables.leaderboard["trial_id"]
        ]
        leaderboards[name] = tables.leaderboard.assign(settings=pd.Series(settings, dtype=object))
        if len(sweeps) > 1:
            leaderboards[name].insert(0, "sweep", name)
    return [
        sort_leaderboard(pd.concat([leaderboards[name] for name in names], ignore_index=True))
        for names in _group_comparable(conditions)
    ]


def format_settings(values: Mapping[str, object]) -> str:
    """Return settings as text.

    >>> format_settings({"lr": 0.0123456, "batch_size": 64})
    'lr=0.0123 batch_size=64'
    """
    texts = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in values.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())
