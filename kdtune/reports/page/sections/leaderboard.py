"""The section on how good each method is on each student."""

import pandas as pd

from kdtune.reports.page.blocks import Block, Paragraph, TableBlock
from kdtune.reports.tables.columns import LEADERBOARD_VIEW
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, SEARCH_CAVEAT
from kdtune.reports.tables.sentences import display_name

COLUMNS = (
    "sweep", "model", "rank", "method", "test_accuracy_percent", "gain_over_student_points",
    "search_best_percent", "optimism_gap_points", "seeds_ok", "status", "trials_started",
    "device_hours", "settings",
)  # fmt: skip

TEST_COLUMNS = ("rank", "test_accuracy_percent", "optimism_gap_points", "seeds_ok")
"""Columns that are empty until a cell is tested."""


def leaderboard_section(leaderboard: pd.DataFrame) -> list[Block]:
    """The table of a sweep, or of comparable ones, grouped by model.

    Args:
        leaderboard: as `kdtune.reports.tables.several_sweeps.join_leaderboards` makes it.
    """
    if leaderboard.empty:
        return [Paragraph(NO_TRIAL_NOTE, "missing")]
    tested = leaderboard["test_accuracy_percent"].notna()
    seconds = leaderboard["search_device_seconds"] + leaderboard["confirm_device_seconds"]
    shown = leaderboard.assign(
        device_hours=seconds / 3600,
        method=[display_name(method) for method in leaderboard["method"]],
        status=[status.replace("_", " ") for status in leaderboard["status"]],
        search_best_percent=leaderboard["search_best_percent"].mask(tested),
    )
    hidden = set() if tested.any() else set(TEST_COLUMNS)
    if tested.all():
        hidden.add("search_best_percent")
    if leaderboard["gain_over_student_points"].isna().all():
        hidden.add("gain_over_student_points")
    if (leaderboard["status"] == "ok").all():
        hidden.add("status")
    names = [name for name in COLUMNS if name not in hidden]
    caption = (
        "± is the 95 % half width. Methods between which nothing is decided share a rank. "
        "Optimism: the best score of the search minus what the same trial reaches when it is "
        "trained again."
        if tested.any()
        else SEARCH_CAVEAT
    )
    blocks: list[Block] = [TableBlock(caption, LEADERBOARD_VIEW.to_texts(shown, *names))]
    if tested.any() and not tested.all():
        blocks.append(
            Paragraph(f"Rows without test %: {SEARCH_CAVEAT[0].lower()}{SEARCH_CAVEAT[1:]}")
        )
    if tested.any() and leaderboard["gain_over_student_points"].isna().all():
        blocks.append(
            Paragraph("Gain over student is left out: it was not confirmed, or not run.")
        )
    return blocks
