"""The section on whether the search was fair and long enough."""

import pandas as pd

from kdtune.log.events import ENDED_STATES
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock, format_each
from kdtune.reports.page.figures import plot_search_curves
from kdtune.reports.page.sections.plan import plan_section
from kdtune.reports.tables.columns import LEADERBOARD_VIEW, SEARCH_CURVE
from kdtune.reports.tables.figure_data import search_curve_steps
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, unequal_search_notes
from kdtune.reports.tables.sentences import display_name


def search_section(sweep: LoadedSweep) -> list[Block]:
    """How each search got on, and what it was given."""
    leaderboard = sweep.tables.leaderboard
    if leaderboard.empty:
        return [Paragraph(NO_TRIAL_NOTE, "missing", "search")]
    curve = sweep.named_tables.get("search_curve", SEARCH_CURVE.make_frame())
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
    shown = leaderboard.assign(
        device_hours=leaderboard["search_device_seconds"] / 3600,
        method=[display_name(method) for method in leaderboard["method"]],
    )
    luck = [
        text if sweep.spaces.get(method) else "not searched"
        for method, text in zip(
            leaderboard["method"],
            format_each(leaderboard["search_luck_points"], ".2f"),
            strict=True,
        )
    ]
    blocks.append(
        TableBlock(
            "Trials by outcome and what they cost. Search luck: by how much a repeated search "
            "would move the result. Late gain: best of all trials minus best of the first half.",
            LEADERBOARD_VIEW.to_texts(
                shown,
                "model",
                "method",
                "trials_started",
                *(f"trials_{state}" for state in ENDED_STATES),
                "search_epochs",
                "device_hours",
            )
            | {"search luck, points": luck}
            | LEADERBOARD_VIEW.to_texts(shown, "late_gain_points", "search_still_improving"),
        )
    )
    return blocks + plan_section(sweep.folder)
