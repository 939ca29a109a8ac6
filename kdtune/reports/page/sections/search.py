"""The section on whether the search was fair and long enough."""

import pandas as pd

from kdtune.log.events import STATES
from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Grid, Picture, Words, each, texts
from kdtune.reports.page.figures import (
    search_figure,
)
from kdtune.reports.page.sections.plan import planned
from kdtune.reports.tables.figure_data import (
    curve_points,
)
from kdtune.reports.tables.notes import (
    NOT_BEGUN,
    unequal_searches,
)
from kdtune.reports.tables.search_curve import CURVE
from kdtune.reports.tables.sentences import name_of


def search(sweep: Sweep) -> list[Block]:
    """How each search got on, and what it was given."""
    board = sweep.tables.leaderboard
    if board.empty:
        return [Words(NOT_BEGUN, "missing", "search")]
    curve = sweep.known.get("search_curve", pd.DataFrame(columns=CURVE))
    points = curve_points(curve)
    blocks: list[Block] = []
    if len(points):
        expected = curve if sweep.config.get("sampler") == "random" else None
        late = int(board["search_still_improving"].fillna(False).sum())
        gap = board["optimism_gap_points"].mean()
        caption = f"{late} of {len(board)} searches still improved in their second half."
        if board["validation_accuracy_percent"].notna().any():
            caption += (
                " Open marks at the right: what was chosen, trained again with fresh seeds (mean "
                "± standard deviation)."
            )
            if pd.notna(gap):
                caption += (
                    f" The search's best trial loses {gap:.1f} points on average when it is "
                    "trained again."
                    if gap > 0
                    else f" The search's best trial gains {-gap:.1f} points on average when it is "
                    "trained again, so the search was not too optimistic."
                )
        if expected is not None:
            caption += " Dotted: what fewer trials would have found on average."
        blocks.append(Picture("search", search_figure(points, board, expected), caption))
    else:
        why = "No figure: no trial has ended with a score yet."
        blocks.append(Words(why, "missing", "search"))
    blocks += map(Words, unequal_searches(board))
    fixed = [not sweep.spaces.get(method) for method in board["method"]]
    blocks.append(
        Grid(
            "Trials by outcome and what they cost. Search luck: by how much a repeated search "
            "would move the result. Late gain: best of all trials minus best of the first half.",
            {
                "model": texts(board["model"]),
                "method": [name_of(method) for method in board["method"]],
                "trials": each(board["trials_started"], "d"),
                **{state: each(board[f"trials_{state}"], "d") for state in STATES},
                "epochs": each(board["search_epochs"], "d"),
                "device hours": each(board["search_device_seconds"] / 3600, ".2f"),
                "search luck, points": [
                    "not searched" if known else luck
                    for known, luck in zip(
                        fixed, each(board["search_luck_points"], ".2f"), strict=True
                    )
                ],
                "late gain, points": each(board["late_gain_points"], ".2f"),
                "still improving": [
                    "" if pd.isna(value) else "yes" if value else "no"
                    for value in board["search_still_improving"]
                ],
            },
        )
    )
    return blocks + planned(sweep.folder)
