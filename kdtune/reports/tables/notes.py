"""Notes below a leaderboard: verdicts, what the numbers cover, and what is missing."""

from collections.abc import Iterable

import pandas as pd

from kdtune.log.events import Event
from kdtune.reports.tables.comparison import select_main_pair
from kdtune.reports.tables.log_tables import bad_images_table
from kdtune.reports.tables.sentences import display_name, format_interval

SEARCH_CAVEAT = (
    "Best single runs, not yet a comparison: seed noise and search luck are not in it; run "
    "`kdtune confirm`."
)
"""Stands below every ranking by search scores."""

INTERVAL_NOTE = (
    "± is the 95 % half width: new seeds, new test images of the same kind and a repeated search "
    "(of a test accuracy: seeds and images)."
)

FEW_SEEDS_NOTE = "With 3 seeds the false-alarm rate is about 7 %."
NO_STUDENT_NOTE = "Without the method student, what is gained over plain training is unknown."
NO_TRIAL_NOTE = "No trial has started yet."


def bad_images_note(events: Iterable[Event]) -> str | None:
    """Return the note that images were left out; None if all were read."""
    table = bad_images_table(events)
    if table.empty:
        return None
    counts = ", ".join(f"{n} {split}" for split, n in table["split"].value_counts().items())
    return f"Images that cannot be read were left out: {counts} (bad_images.csv)."


def result_notes(
    leaderboard: pd.DataFrame, comparison: pd.DataFrame, runs: pd.DataFrame
) -> list[str]:
    """Return the notes on a sweep's confirmation; none before anything is confirmed.

    Args:
        leaderboard: the table `LEADERBOARD` of one sweep.
        comparison: the table `COMPARISON`.
        runs: the table `RUNS`.
    """
    tested = leaderboard.dropna(subset="test_accuracy_percent")
    if tested.empty:
        if leaderboard["validation_accuracy_percent"].isna().all():
            return []
        return ["Test was not read: validation accuracies alone say nothing of who is better."]
    notes = verdict_sentences(comparison) or accuracy_sentences(tested)
    notes += unequal_search_notes(tested)
    if "student" not in leaderboard["method"].values:
        notes.append(NO_STUDENT_NOTE)
    notes.append(INTERVAL_NOTE)
    if (comparison["seeds"] == 3).any():
        notes.append(FEW_SEEDS_NOTE)
    return [*notes, describe_test_reads(runs)]


def verdict_sentences(comparison: pd.DataFrame) -> list[str]:
    """Return the sentences on the first pair, then on each method against student."""
    tables = select_main_pair(comparison), select_student_gains(comparison)
    return list(dict.fromkeys(sentence for table in tables for sentence in table["sentence"]))


def select_student_gains(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method against student, that of all models if there is one."""
    overall_first = comparison.sort_values("models", ascending=False, kind="stable")
    student_rows = overall_first[overall_first["method_b"] == "student"]
    return student_rows.drop_duplicates("method_a").sort_index()


def accuracy_sentences(tested: pd.DataFrame) -> list[str]:
    """Return a sentence per cell with its test accuracy, if that has an interval."""
    columns = ["method", "model", "test_accuracy_percent", "test_half_width_points"]
    return [
        f"{display_name(method)} reaches {format_interval(accuracy, width)} % on {model}."
        for method, model, accuracy, width in tested[columns].dropna().itertuples(index=False)
    ]


def unequal_search_notes(tested: pd.DataFrame) -> list[str]:
    """Return the note that compared cells had unequal numbers of trials, if they had."""
    unequal = []
    for model, cells in tested.groupby("model"):
        counts = dict(zip(cells["method"], cells["trials_started"], strict=True))
        if min(counts.values()) < 0.9 * max(counts.values()):
            unequal.append(f"on {model} {', '.join(f'{k} {v}' for k, v in counts.items())}")
    text = f"Unequal searches, and more trials alone help: trials {'; '.join(unequal)}."
    return [text] if unequal else []


def describe_test_reads(runs: pd.DataFrame) -> str:
    """Return a sentence that says how often the test images were read."""
    tested_trials = runs.dropna(subset="test_accuracy").groupby(["method", "model"])["trial_id"]
    configurations, cells = int(tested_trials.nunique().sum()), tested_trials.ngroups
    networks = int(tested_trials.count().sum())
    counts = f"{configurations} configuration{'s' * (configurations != 1)}, "
    counts += f"{networks} network{'s' * (networks != 1)}"
    if configurations == cells:
        return f"Test was read once, for the chosen configuration of each cell: {counts}."
    return f"Test was read for more than one configuration of a cell: {counts}, {cells} cells."
