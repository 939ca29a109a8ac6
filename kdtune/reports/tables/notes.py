"""Notes below a table: what its numbers cover, and what is missing."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from kdtune.reports.tables.comparison import first_pair
from kdtune.reports.tables.log_tables import bad_images_table
from kdtune.reports.tables.sentences import in_points, name_of


def bad_images_note(events: Iterable[dict[str, Any]]) -> str | None:
    """Say that images were left out; None if all were read."""
    table = bad_images_table(events)
    if table.empty:
        return None
    counts = ", ".join(
        f"{count} {split}" for split, count in table["split"].value_counts().items()
    )
    return f"Images that cannot be read were left out: {counts} (bad_images.csv)."


CAVEAT = (
    "Best single runs, not yet a comparison: seed noise and search luck are not in it; run "
    "`kdtune confirm`."
)
"""Said wherever a search's ranking is shown."""


COVERS = (
    "± is the 95 % half width: new seeds, new test images of the same kind and a repeated search "
    "(of a test accuracy: seeds and images)."
)


FEW_SEEDS = "With 3 seeds the false-alarm rate is about 7 %."


NO_STUDENT = "Without the method student, what is gained over plain training is unknown."


NOT_BEGUN = "No trial has begun yet."


def with_width(table: pd.DataFrame, value: str, width: str, sign: str = "") -> list[str]:
    """Values with their half widths; without where that is not known."""
    return [
        "" if pd.isna(v) else f"{v:{sign}.2f}" if pd.isna(w) else f"{v:{sign}.2f} ± {w:.2f}"
        for v, w in zip(table[value], table[width], strict=True)
    ]


def result_notes(board: pd.DataFrame, comparison: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """What a sweep's confirm runs say, and what that covers; nothing before test was read.

    Args:
        board: the sweep's, as `kdtune.reports.tables.leaderboard.leaderboard_table` makes it.
        comparison: as `kdtune.reports.tables.comparison.comparison_table` makes it.
        runs: as `kdtune.reports.tables.log_tables.runs_table` makes it.
    """
    tested = board.dropna(subset="test_accuracy_percent")
    if tested.empty:
        if board["validation_accuracy_percent"].isna().all():
            return []
        return ["Test was not read: validation accuracies alone say nothing of who is better."]
    notes = verdict_sentences(comparison) or reached(tested)
    notes += unequal_searches(tested)
    if "student" not in board["method"].values:
        notes.append(NO_STUDENT)
    notes.append(COVERS)
    if (comparison["seeds"] == 3).any():
        notes.append(FEW_SEEDS)
    return [*notes, test_reads(runs)]


def verdict_sentences(comparison: pd.DataFrame) -> list[str]:
    """The verdict on the first pair, over all models and on each; then each method's on student.

    Args:
        comparison: as `kdtune.reports.tables.comparison.comparison_table` makes it.
    """
    if comparison.empty:
        return []
    widest = comparison.sort_values("models", ascending=False, kind="stable")
    against = widest[widest["method_b"] == "student"].drop_duplicates("method_a").sort_index()
    return list(dict.fromkeys([*first_pair(comparison)["sentence"], *against["sentence"]]))


def reached(tested: pd.DataFrame) -> list[str]:
    """Say what each cell reaches on the test images."""
    return [
        f"{name_of(cell.method)} reaches "
        f"{in_points(cell.test_accuracy_percent, cell.test_half_width_points)} ± "
        f"{in_points(cell.test_half_width_points, cell.test_half_width_points)} % on {cell.model}."
        for cell in tested.dropna(subset="test_half_width_points").itertuples()
    ]


def unequal_searches(tested: pd.DataFrame) -> list[str]:
    """Say where cells that are compared were searched with unequal numbers of trials."""
    found = []
    for model, cells in tested.groupby("model"):
        counts = dict(zip(cells["method"], cells["trials_started"], strict=True))
        if min(counts.values()) < 0.9 * max(counts.values()):
            listed = ", ".join(f"{method} {count}" for method, count in counts.items())
            found.append(f"on {model} {listed}")
    if not found:
        return []
    return [f"Unequal searches, and more trials alone help: trials {'; '.join(found)}."]


def test_reads(runs: pd.DataFrame) -> str:
    """Say how often the test images were read."""
    read = runs.dropna(subset="test_accuracy").groupby(["method", "model"])["trial_id"]
    configurations, cells = int(read.nunique().sum()), read.ngroups
    networks = int(read.count().sum())
    counted = (
        f"{configurations} configuration{'s' * (configurations != 1)}, "
        f"{networks} network{'s' * (networks != 1)}"
    )
    if configurations == cells:
        return f"Test was read once, for the chosen configuration of each cell: {counted}."
    return f"Test was read for more than one configuration of a cell: {counted}, {cells} cells."
