"""The section on how good each method is on each student."""

from collections.abc import Sequence

import pandas as pd

from kdtune.reports.page.blocks import Block, Grid, Words, each, texts
from kdtune.reports.tables.notes import (
    CAVEAT,
    NOT_BEGUN,
    with_width,
)
from kdtune.reports.tables.sentences import name_of


def leaderboard(board: pd.DataFrame) -> list[Block]:
    """The table of a sweep, or of comparable ones, grouped by model.

    Args:
        board: as `kdtune.reports.tables.several_sweeps.join_sweeps` makes it.
    """
    if board.empty:
        return [Words(NOT_BEGUN, "missing")]
    tested = board["test_accuracy_percent"].notna()
    seconds = board["search_device_seconds"] + board["confirm_device_seconds"].fillna(0)
    score = "search score, % (not a result)"
    columns: dict[str, Sequence[str] | None] = {
        "sweep": texts(board["sweep"]) if "sweep" in board else None,
        "model": texts(board["model"]),
        "rank": each(board["rank"], "d") if tested.any() else None,
        "method": [name_of(method) for method in board["method"]],
        "test accuracy, %": with_width(board, "test_accuracy_percent", "test_half_width_points")
        if tested.any()
        else None,
        "gain over student, points": with_width(
            board, "gain_over_student_points", "gain_over_student_half_width_points", "+"
        )
        if board["gain_over_student_points"].notna().any()
        else None,
        score: each(board["search_best_percent"].mask(tested), ".2f")
        if not tested.all()
        else None,
        "optimism of the search, points": each(board["optimism_gap_points"], ".2f")
        if tested.any()
        else None,
        "seeds": each(board["seeds_ok"], "d") if tested.any() else None,
        "status": [s.replace("_", " ") for s in board["status"]]
        if (board["status"] != "ok").any()
        else None,
        "trials": each(board["trials_started"], "d"),
        "device hours": each(seconds / 3600, ".2f"),
        "settings": texts(board["settings"]),
    }
    caption = (
        "± is the 95 % half width. Methods between which nothing is decided share a rank. "
        "Optimism: the best score of the search minus what the same trial reaches when it is "
        "trained again."
        if tested.any()
        else CAVEAT
    )
    blocks: list[Block] = [Grid(caption, {h: c for h, c in columns.items() if c is not None})]
    if tested.any() and not tested.all():
        blocks.append(Words(f"Rows without test accuracy: {CAVEAT[0].lower()}{CAVEAT[1:]}"))
    if tested.any() and board["gain_over_student_points"].isna().all():
        blocks.append(Words("Gain over student is left out: it was not confirmed, or not run."))
    return blocks
