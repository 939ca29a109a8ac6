"""Section: how good each method is on each student."""

from collections.abc import Iterator

import pandas as pd

from kdtune.reports.page.blocks import Block, Paragraph, TableBlock
from kdtune.reports.tables.columns import LEADERBOARD_VIEW
from kdtune.reports.tables.leaderboard import redundant_columns
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, SEARCH_CAVEAT
from kdtune.reports.tables.sentences import display_name

COLUMNS = (
    "sweep", "model", "rank", "method", "test_accuracy_percent", "test_balanced_accuracy_percent",
    "gain_over_student_points",
    "search_best_percent", "optimism_gap_points", "seeds_finished", "status", "trials_started",
    "device_hours", "settings",
)  # fmt: skip

TEST_COLUMNS = ("rank", "test_accuracy_percent", "optimism_gap_points", "seeds_finished")

TEST_CAPTION = (
    "± is the 95 % half width. Methods share a rank if no difference between them is decided. "
    "Optimism: the best score of the search minus the score of the same trial when retrained."
)


def leaderboard_section(leaderboard: pd.DataFrame) -> Iterator[Block]:
    """Yield a leaderboard that `join_leaderboards` returned, grouped by model."""
    if leaderboard.empty:
        yield Paragraph(NO_TRIAL_NOTE, "missing")
        return
    tested = leaderboard["test_accuracy_percent"].notna()
    without_gain = leaderboard["gain_over_student_points"].isna().all()
    seconds = leaderboard["search_device_seconds"] + leaderboard["confirm_device_seconds"]
    shown = leaderboard.assign(
        device_hours=seconds / 3600,
        method=leaderboard["method"].map(display_name),
        status=[status.replace("_", " ") for status in leaderboard["status"]],
        search_best_percent=leaderboard["search_best_percent"].mask(tested),
    )
    hidden = set() if tested.any() else set(TEST_COLUMNS)
    hidden |= {"search_best_percent"} if tested.all() else set()
    hidden |= {"gain_over_student_points"} if without_gain else set()
    hidden |= redundant_columns(leaderboard)
    hidden |= {"status"} if (leaderboard["status"] == "ok").all() else set()
    columns = LEADERBOARD_VIEW.to_texts(shown, *(name for name in COLUMNS if name not in hidden))
    yield TableBlock(TEST_CAPTION if tested.any() else SEARCH_CAVEAT, columns)
    if tested.any() and not tested.all():
        yield Paragraph(f"Rows without test %: {SEARCH_CAVEAT[0].lower()}{SEARCH_CAVEAT[1:]}")
    if tested.any() and without_gain:
        yield Paragraph("The gain over student is missing: student was not run or not confirmed.")
