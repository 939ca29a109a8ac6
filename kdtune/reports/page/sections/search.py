"""Section: was the search fair and long enough."""

from collections.abc import Iterator

import pandas as pd

from kdtune.log.events import ENDED_STATES, Completed
from kdtune.log.folder import SweepFolder
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_search_curves
from kdtune.reports.tables.columns import LEADERBOARD_VIEW, PLAN, SEARCH_CURVE
from kdtune.reports.tables.figure_data import search_curve_steps
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, unequal_search_notes
from kdtune.reports.tables.plan import is_changed_since_plan, plan_vs_actual, read_plan
from kdtune.reports.tables.sentences import display_name
from kdtune.units import format_duration

COLUMNS = (
    "model", "method", "trials_started", *(f"trials_{state}" for state in ENDED_STATES),
    "trials_repeated", "search_epochs", "device_hours",
)  # fmt: skip

RESULTS = ("search_noise_sd_points", "search_luck_points", "left_to_gain_points")

MIN_FINISHED_TRIALS = 6  # of a cell; fewer say little about its space

CAPTION = (
    "Trials by state, and their cost. Search luck: by how much a repeated search would change the "
    "result (standard deviation). Left to gain: the best of the space minus what was found, at "
    "most (90 %), by the model of the cell."
)
REPEATS_CAPTION = (
    " Repeats: trials with the settings of an earlier one and another seed, among the others. "
    "Seed noise: the standard deviation of trials that differ in the seed alone."
)


def search_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield the search curves, and the trials and costs of each cell."""
    leaderboard = sweep.tables.leaderboard
    if leaderboard.empty:
        yield Paragraph(NO_TRIAL_NOTE, "missing", "search")
        return
    curve = sweep.named_tables.get("search_curve", SEARCH_CURVE.make_frame())
    if len(steps := search_curve_steps(curve)):
        expected = curve if sweep.config.get("sampler") == "random" else None
        figure = plot_search_curves(steps, leaderboard, expected)
        yield FigureBlock("search", figure, _caption(leaderboard, expected is not None))
    else:
        yield Paragraph("No figure: no trial has ended with a score yet.", "missing", "search")
    yield from map(Paragraph, unequal_search_notes(leaderboard))
    hours = leaderboard["search_device_seconds"] / 3600
    methods = leaderboard["method"]
    shown = leaderboard.assign(device_hours=hours, method=methods.map(display_name))
    has_noise = bool(leaderboard["search_noise_sd_points"].notna().any())
    if not has_noise and not leaderboard["trials_repeated"].any():
        shown = shown.drop(columns=["trials_repeated", "search_noise_sd_points"])
    columns = LEADERBOARD_VIEW.to_texts(shown, *COLUMNS, *RESULTS)
    for i, method in enumerate(methods):
        if not sweep.spaces.get(method):
            columns["search luck, points"][i] = "not searched"
    yield TableBlock(CAPTION + REPEATS_CAPTION * ("repeats" in columns), columns)
    yield from plan_section(sweep.folder)


def _describe_left_to_gain(leaderboard: pd.DataFrame) -> str:
    points = leaderboard["left_to_gain_points"].dropna()
    if points.empty:
        return "How far the searches are from the best of their spaces is unknown without models."
    if (least := leaderboard["trials_finished"].min()) < MIN_FINISHED_TRIALS:
        return (
            "How far the searches are from the best of their spaces is unknown: that takes "
            f"{MIN_FINISHED_TRIALS} finished trials a cell, and one has {least}."
        )
    text = " to ".join(dict.fromkeys(f"{end:.2f}" for end in (points.min(), points.max())))
    return (
        f"By the models of the cells, each search has come within {text} points of the best of "
        "its space (90 %)."
    )


def _caption(leaderboard: pd.DataFrame, has_expected: bool) -> str:
    gap = leaderboard["optimism_gap_points"].mean()
    text = _describe_left_to_gain(leaderboard)
    if leaderboard["validation_accuracy_percent"].notna().any():
        text += " Open marks at the right: the chosen candidates, retrained with fresh seeds "
        text += "(mean ± standard deviation)."
        change = f"{'loses' if gap > 0 else 'gains'} {abs(gap):.1f} points on average"
        if pd.notna(gap):
            text += f" The best trial of a search {change} when it is retrained"
            text += "." if gap > 0 else ", so the search was not too optimistic."
    return text + " Dotted: the expected best of fewer trials." * has_expected


def plan_section(folder: SweepFolder) -> Iterator[Block]:
    """Yield a table of the plan and what the sweep took, if there is a plan."""
    if (plan := read_plan(folder)) is None:
        return
    events = folder.load_events()
    table = plan_vs_actual(plan, events)
    columns = {
        column: [
            format_duration(value) if quantity.endswith("seconds") else f"{value:,.0f}"
            for quantity, value in zip(table["what"], table[column], strict=True)
        ]
        for column in ("planned", "actual")
    }
    caption = f"The plan, and what the sweep took with {plan['slots']} slots."
    caption += "" if isinstance(events[-1], Completed) else " The sweep is not complete."
    caption += " The sweep was changed after the plan." if is_changed_since_plan(events) else ""
    quantities = [str(quantity).removesuffix(" seconds") for quantity in table["what"]]
    ratios = PLAN.to_texts(table, "actual_over_planned")
    yield TableBlock(caption, {"": quantities, **columns, **ratios})
    yield from map(Paragraph, plan["notes"][1:2])
