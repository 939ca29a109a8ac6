"""The section on whether the search was fair and long enough."""

import pandas as pd

from kdtune.log.events import ENDED_STATES
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import (
    Block,
    FigureBlock,
    Paragraph,
    TableBlock,
    format_each,
    to_texts,
)
from kdtune.reports.page.figures import plot_search_curves
from kdtune.reports.page.sections.plan import plan_section
from kdtune.reports.tables.figure_data import search_curve_steps
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, unequal_search_notes
from kdtune.reports.tables.search_curve import SEARCH_CURVE_COLUMNS
from kdtune.reports.tables.sentences import display_name


def search_section(sweep: LoadedSweep) -> list[Block]:
    """How each search got on, and what it was given."""
    leaderboard = sweep.tables.leaderboard
    if leaderboard.empty:
        return [Paragraph(NO_TRIAL_NOTE, "missing", "search")]
    curve = sweep.named_tables.get("search_curve", pd.DataFrame(columns=SEARCH_CURVE_COLUMNS))
    points = search_curve_steps(curve)
    blocks: list[Block] = []
    if len(points):
        expected = curve if sweep.config.get("sampler") == "random" else None
        improved = int(leaderboard["search_still_improving"].fillna(False).sum())
        gap = leaderboard["optimism_gap_points"].mean()
        caption = f"{improved} of {len(leaderboard)} searches still improved in their second half."
        if leaderboard["validation_accuracy_percent"].notna().any():
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
        blocks.append(
            FigureBlock("search", plot_search_curves(points, leaderboard, expected), caption)
        )
    else:
        reason = "No figure: no trial has ended with a score yet."
        blocks.append(Paragraph(reason, "missing", "search"))
    blocks += map(Paragraph, unequal_search_notes(leaderboard))
    is_not_searched = [not sweep.spaces.get(method) for method in leaderboard["method"]]
    blocks.append(
        TableBlock(
            "Trials by outcome and what they cost. Search luck: by how much a repeated search "
            "would move the result. Late gain: best of all trials minus best of the first half.",
            {
                "model": to_texts(leaderboard["model"]),
                "method": [display_name(method) for method in leaderboard["method"]],
                "trials": format_each(leaderboard["trials_started"], "d"),
                **{
                    state: format_each(leaderboard[f"trials_{state}"], "d")
                    for state in ENDED_STATES
                },
                "epochs": format_each(leaderboard["search_epochs"], "d"),
                "device hours": format_each(leaderboard["search_device_seconds"] / 3600, ".2f"),
                "search luck, points": [
                    "not searched" if is_fixed else luck
                    for is_fixed, luck in zip(
                        is_not_searched,
                        format_each(leaderboard["search_luck_points"], ".2f"),
                        strict=True,
                    )
                ],
                "late gain, points": format_each(leaderboard["late_gain_points"], ".2f"),
                "still improving": [
                    "" if pd.isna(value) else "yes" if value else "no"
                    for value in leaderboard["search_still_improving"]
                ],
            },
        )
    )
    return blocks + plan_section(sweep.folder)
