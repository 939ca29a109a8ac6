"""The section on accuracy against cost: which student to ship."""

import pandas as pd

from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Grid, Picture, Words, each, texts
from kdtune.reports.page.figures import (
    ship_figure,
)
from kdtune.reports.tables.figure_data import (
    ship_points,
)
from kdtune.reports.tables.sentences import name_of


def ship(sweep: Sweep) -> list[Block]:
    """What each student costs, and what it reaches for that."""
    points = ship_points(sweep.tables.leaderboard)
    if points.empty:
        return [Words("No cell has a sound trial yet.", "missing", "ship")]
    test = points["split"].iloc[0] == "test"
    blocks: list[Block] = []
    cost = "latency_ms" if points["latency_ms"].notna().any() else "macs"
    drawn = points.dropna(subset=cost)
    if len(drawn):
        teacher = (sweep.opened[0].get("teacher") or {}).get(f"{points['split'].iloc[0]}_accuracy")
        figure = ship_figure(drawn, None if teacher is None else 100 * teacher)
        best = drawn.loc[drawn["accuracy_percent"].idxmax()]
        what = "test accuracy" if test else "search score, which is no result,"
        price = f"{best[cost]:.2f} ms" if cost == "latency_ms" else f"{best[cost]:,} multiply-adds"
        caption = (
            f"The highest {what} is {best['accuracy_percent']:.1f} %: {name_of(best['method'])} "
            f"on {best['model']}, {price} for one image."
            f"{' Bars: 95 %.' if test else ''} Methods of one student cost the same and are drawn "
            "side by side. The line joins what no other beats for less, by figures."
            f"{'' if teacher is not None else _unknown_teacher(sweep, test)}"
        )
        blocks.append(Picture("ship", figure, caption))
    else:
        blocks.append(
            Words(
                "No figure: what the students cost is measured when the sweep is confirmed; run "
                f"`{sweep.command('confirm')}`.",
                "missing",
                "ship",
            )
        )
    costs = sweep.tables.models
    if len(costs):
        measured = ", ".join(sorted({*texts(costs["latency_device"])} - {""}))
        blocks.append(
            Grid(
                "The student alone, without teacher; the median time for one image on "
                f"{measured or 'an unknown device'}. A student is unbeaten in a cost if no other "
                "is as accurate for less of it, by figures, not by intervals.",
                {
                    "model": texts(costs["model"]),
                    "parameters": each(costs["parameters"], ",d"),
                    "multiply-adds for one image": each(costs["macs"], ",d"),
                    "milliseconds for one image": each(costs["latency_ms"], ".2f"),
                    "unbeaten in": [_unbeaten(points, model) for model in costs["model"]],
                },
            )
        )
    return blocks


def _unbeaten(points: pd.DataFrame, model: str) -> str:
    own = points[points["model"] == model]
    words = {
        "front_parameters": "parameters",
        "front_macs": "multiply-adds",
        "front_latency": "milliseconds",
    }
    return ", ".join(word for column, word in words.items() if own[column].any())


def _unknown_teacher(sweep: Sweep, test: bool) -> str:
    if not test or not sweep.opened[0].get("teacher"):
        return ""
    return " No line for the teacher: its test accuracy is not known."
