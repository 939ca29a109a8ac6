"""Notes below a table: what its numbers cover, and what is missing."""

from collections.abc import Iterable

import pandas as pd

from kdtune.log.events import Event
from kdtune.reports.tables.comparison import select_main_pair
from kdtune.reports.tables.log_tables import bad_images_table
from kdtune.reports.tables.sentences import display_name, format_points


def bad_images_note(events: Iterable[Event]) -> str | None:
    """Say that images were left out; None if all were read."""
    table = bad_images_table(events)
    if table.empty:
        return None
    counts = ", ".join(
        f"{count} {split}" for split, count in table["split"].value_counts().items()
    )
    return f"Images that cannot be read were left out: {counts} (bad_images.csv)."


SEARCH_CAVEAT = (
    "Best single runs, not yet a comparison: seed noise and search luck are not in it; run "
    "`kdtune confirm`."
)
"""Said wherever a search's ranking is shown."""


INTERVAL_NOTE = (
    "± is the 95 % half width: new seeds, new test images of the same kind and a repeated search "
    "(of a test accuracy: seeds and images)."
)


FEW_SEEDS_NOTE = "With 3 seeds the false-alarm rate is about 7 %."


NO_STUDENT_NOTE = "Without the method student, what is gained over plain training is unknown."


NO_TRIAL_NOTE = "No trial has begun yet."


def format_with_half_width(
    table: pd.DataFrame, value_column: str, half_width_column: str, sign: str = ""
) -> list[str]:
    """Values with their half widths; without where that is not known."""
    return [
        "" if pd.isna(v) else f"{v:{sign}.2f}" if pd.isna(w) else f"{v:{sign}.2f} ± {w:.2f}"
        for v, w in zip(table[value_column], table[half_width_column], strict=True)
    ]


def result_notes(
    leaderboard: pd.DataFrame, comparison: pd.DataFrame, runs: pd.DataFrame
) -> list[str]:
    """What a sweep's confirm runs say, and what that covers; nothing before test was read.

    Args:
        leaderboard: the sweep's, as `kdtune.reports.tables.leaderboard.leaderboard_table` makes it.
        comparison: as `kdtune.reports.tables.comparison.comparison_table` makes it.
        runs: as `kdtune.reports.tables.log_tables.runs_table` makes it.
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
    """The verdict on the first pair, over all models and on each; then each method's on student.

    Args:
        comparison: as `kdtune.reports.tables.comparison.comparison_table` makes it.
    """
    if comparison.empty:
        return []
    overall_first = comparison.sort_values("models", ascending=False, kind="stable")
    student_rows = (
        overall_first[overall_first["method_b"] == "student"]
        .drop_duplicates("method_a")
        .sort_index()
    )
    return list(
        dict.fromkeys([*select_main_pair(comparison)["sentence"], *student_rows["sentence"]])
    )


def accuracy_sentences(tested: pd.DataFrame) -> list[str]:
    """Say what each cell reaches on the test images."""
    return [
        f"{display_name(cell.method)} reaches "
        f"{format_points(cell.test_accuracy_percent, cell.test_half_width_points)} ± "
        f"{format_points(cell.test_half_width_points, cell.test_half_width_points)} % on {cell.model}."
        for cell in tested.dropna(subset="test_half_width_points").itertuples()
    ]


def unequal_search_notes(tested: pd.DataFrame) -> list[str]:
    """Say where cells that are compared were searched with unequal numbers of trials."""
    unequal = []
    for model, cells in tested.groupby("model"):
        counts = dict(zip(cells["method"], cells["trials_started"], strict=True))
        if min(counts.values()) < 0.9 * max(counts.values()):
            counts_text = ", ".join(f"{method} {count}" for method, count in counts.items())
            unequal.append(f"on {model} {counts_text}")
    if not unequal:
        return []
    return [f"Unequal searches, and more trials alone help: trials {'; '.join(unequal)}."]


def describe_test_reads(runs: pd.DataFrame) -> str:
    """Say how often the test images were read."""
    tested_trials = runs.dropna(subset="test_accuracy").groupby(["method", "model"])["trial_id"]
    configurations, cells = int(tested_trials.nunique().sum()), tested_trials.ngroups
    networks = int(tested_trials.count().sum())
    counts_text = (
        f"{configurations} configuration{'s' * (configurations != 1)}, "
        f"{networks} network{'s' * (networks != 1)}"
    )
    if configurations == cells:
        return f"Test was read once, for the chosen configuration of each cell: {counts_text}."
    return (
        f"Test was read for more than one configuration of a cell: {counts_text}, {cells} cells."
    )
