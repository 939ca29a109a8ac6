"""Section: accuracy against cost, to choose the student to ship."""

from collections.abc import Iterator

import pandas as pd

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_accuracy_vs_cost
from kdtune.reports.tables.columns import MODELS
from kdtune.reports.tables.figure_data import accuracy_vs_cost_table
from kdtune.reports.tables.sentences import display_name

FRONTS = {"parameters": "parameters", "macs": "multiply-adds", "latency": "milliseconds"}
"""Name of the cost of each Pareto front."""


def ship_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield accuracy and cost of each student."""
    points = accuracy_vs_cost_table(sweep.tables.leaderboard)
    if points.empty:
        yield Paragraph("No cell has a successful trial yet.", "missing", "ship")
        return
    cost = "latency_ms" if points["latency_ms"].notna().any() else "macs"
    if len(measured := points.dropna(subset=cost)):
        yield _figure(sweep, measured, cost)
    else:
        text = f"No figure: `{sweep.command('confirm')}` measures the costs of the students."
        yield Paragraph(text, "missing", "ship")
    if len(costs := sweep.tables.models):
        devices = ", ".join(sorted({*costs["latency_device"].dropna()} - {""}))
        caption = (
            "The student alone, without teacher; the median time for one image on "
            f"{devices or 'an unknown device'}. A student is unbeaten in a cost if no other is as "
            "accurate at a lower cost, by estimates, not by intervals."
        )
        columns = MODELS.to_texts(costs, "model", "parameters", "macs", "latency_ms")
        unbeaten = [_unbeaten_costs(points, model) for model in costs["model"]]
        yield TableBlock(caption, {**columns, "unbeaten in": unbeaten})


def _figure(sweep: LoadedSweep, points: pd.DataFrame, cost: str) -> FigureBlock:
    is_test = points["split"].iloc[0] == "test"
    teacher, accuracy = sweep.opening_events[0].teacher, None
    if teacher is not None:
        accuracy = teacher.test_accuracy if is_test else teacher.validation_accuracy
    figure = plot_accuracy_vs_cost(points, None if accuracy is None else 100 * accuracy)
    best = points.loc[points["accuracy_percent"].idxmax()]
    label = "test accuracy" if is_test else "search score, which is no result,"
    amount = f"{best[cost]:.2f} ms" if cost == "latency_ms" else f"{best[cost]:,} multiply-adds"
    caption = (
        f"The highest {label} is {best['accuracy_percent']:.1f} %: {display_name(best['method'])} "
        f"on {best['model']}, {amount} for one image.{' Bars: 95 %.' * is_test} Methods on one "
        "student have the same cost and are drawn side by side. The line joins the students that "
        "no other beats at a lower cost, by estimates."
    )
    if is_test and teacher is not None and accuracy is None:
        caption += " No line for the teacher: its test accuracy is not known."
    return FigureBlock("ship", figure, caption)


def _unbeaten_costs(points: pd.DataFrame, model: str) -> str:
    model_points = points[points["model"] == model]
    return ", ".join(name for cost, name in FRONTS.items() if model_points[f"front_{cost}"].any())
