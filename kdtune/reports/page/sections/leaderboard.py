"""The section on how good each method is on each student."""

from collections.abc import Sequence

import pandas as pd

from kdtune.reports.page.blocks import Block, Paragraph, TableBlock, format_each, to_texts
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, SEARCH_CAVEAT, format_with_half_width
from kdtune.reports.tables.sentences import display_name


def leaderboard_section(leaderboard: pd.DataFrame) -> list[Block]:
    """The table of a sweep, or of comparable ones, grouped by model.

    Args:
        leaderboard: as `kdtune.reports.tables.several_sweeps.join_leaderboards` makes it.
    """
    if leaderboard.empty:
        return [Paragraph(NO_TRIAL_NOTE, "missing")]
    tested = leaderboard["test_accuracy_percent"].notna()
    seconds = leaderboard["search_device_seconds"] + leaderboard["confirm_device_seconds"].fillna(
        0
    )
    score_heading = "search score, % (not a result)"
    columns: dict[str, Sequence[str] | None] = {
        "sweep": to_texts(leaderboard["sweep"]) if "sweep" in leaderboard else None,
        "model": to_texts(leaderboard["model"]),
        "rank": format_each(leaderboard["rank"], "d") if tested.any() else None,
        "method": [display_name(method) for method in leaderboard["method"]],
        "test accuracy, %": format_with_half_width(
            leaderboard, "test_accuracy_percent", "test_half_width_points"
        )
        if tested.any()
        else None,
        "gain over student, points": format_with_half_width(
            leaderboard, "gain_over_student_points", "gain_over_student_half_width_points", "+"
        )
        if leaderboard["gain_over_student_points"].notna().any()
        else None,
        score_heading: format_each(leaderboard["search_best_percent"].mask(tested), ".2f")
        if not tested.all()
        else None,
        "optimism of the search, points": format_each(leaderboard["optimism_gap_points"], ".2f")
        if tested.any()
        else None,
        "seeds": format_each(leaderboard["seeds_ok"], "d") if tested.any() else None,
        "status": [s.replace("_", " ") for s in leaderboard["status"]]
        if (leaderboard["status"] != "ok").any()
        else None,
        "trials": format_each(leaderboard["trials_started"], "d"),
        "device hours": format_each(seconds / 3600, ".2f"),
        "settings": to_texts(leaderboard["settings"]),
    }
    caption = (
        "± is the 95 % half width. Methods between which nothing is decided share a rank. "
        "Optimism: the best score of the search minus what the same trial reaches when it is "
        "trained again."
        if tested.any()
        else SEARCH_CAVEAT
    )
    blocks: list[Block] = [
        TableBlock(caption, {h: c for h, c in columns.items() if c is not None})
    ]
    if tested.any() and not tested.all():
        blocks.append(
            Paragraph(f"Rows without test accuracy: {SEARCH_CAVEAT[0].lower()}{SEARCH_CAVEAT[1:]}")
        )
    if tested.any() and leaderboard["gain_over_student_points"].isna().all():
        blocks.append(
            Paragraph("Gain over student is left out: it was not confirmed, or not run.")
        )
    return blocks
