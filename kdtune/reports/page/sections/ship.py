"""The section on accuracy against cost: which student to ship."""

import pandas as pd

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock, to_texts
from kdtune.reports.page.figures import plot_accuracy_vs_cost
from kdtune.reports.tables.columns import MODELS
from kdtune.reports.tables.figure_data import accuracy_vs_cost_table
from kdtune.reports.tables.sentences import display_name


def accuracy_vs_cost_section(sweep: LoadedSweep) -> list[Block]:
    """What each student costs, and what it reaches for that."""
    points = accuracy_vs_cost_table(sweep.tables.leaderboard)
    if points.empty:
        return [Paragraph("No cell has a sound trial yet.", "missing", "ship")]
    test = points["split"].iloc[0] == "test"
    blocks: list[Block] = []
    cost = "latency_ms" if points["latency_ms"].notna().any() else "macs"
    measured_points = points.dropna(subset=cost)
    if len(measured_points):
        teacher = sweep.opening_events[0].teacher
        teacher_percent = None
        if teacher is not None:
            accuracy = teacher.test_accuracy if test else teacher.validation_accuracy
            teacher_percent = None if accuracy is None else 100 * accuracy
        figure = plot_accuracy_vs_cost(measured_points, teacher_percent)
        best = measured_points.loc[measured_points["accuracy_percent"].idxmax()]
        label = "test accuracy" if test else "search score, which is no result,"
        cost_text = (
            f"{best[cost]:.2f} ms" if cost == "latency_ms" else f"{best[cost]:,} multiply-adds"
        )
        caption = (
            f"The highest {label} is {best['accuracy_percent']:.1f} %: {display_name(best['method'])} "
            f"on {best['model']}, {cost_text} for one image."
            f"{' Bars: 95 %.' if test else ''} Methods of one student cost the same and are drawn "
            "side by side. The line joins what no other beats for less, by figures."
            f"{'' if teacher is not None else _unknown_teacher_note(sweep, test)}"
        )
        blocks.append(FigureBlock("ship", figure, caption))
    else:
        blocks.append(
            Paragraph(
                "No figure: what the students cost is measured when the sweep is confirmed; run "
                f"`{sweep.command('confirm')}`.",
                "missing",
                "ship",
            )
        )
    costs = sweep.tables.models
    if len(costs):
        devices = ", ".join(sorted({*to_texts(costs["latency_device"])} - {""}))
        blocks.append(
            TableBlock(
                "The student alone, without teacher; the median time for one image on "
                f"{devices or 'an unknown device'}. A student is unbeaten in a cost if no other "
                "is as accurate for less of it, by figures, not by intervals.",
                {
                    **MODELS.to_texts(costs, "model", "parameters", "macs", "latency_ms"),
                    "unbeaten in": [_unbeaten_costs(points, model) for model in costs["model"]],
                },
            )
        )
    return blocks


def _unbeaten_costs(points: pd.DataFrame, model: str) -> str:
    model_points = points[points["model"] == model]
    cost_labels = {
        "front_parameters": "parameters",
        "front_macs": "multiply-adds",
        "front_latency": "milliseconds",
    }
    return ", ".join(label for column, label in cost_labels.items() if model_points[column].any())


def _unknown_teacher_note(sweep: LoadedSweep, test: bool) -> str:
    if not test or sweep.opening_events[0].teacher is None:
        return ""
    return " No line for the teacher: its test accuracy is not known."
