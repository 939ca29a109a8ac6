"""Section: which student to ship, how sure that is, and what each one costs."""

from collections.abc import Iterator

import pandas as pd

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_accuracy_vs_cost
from kdtune.reports.tables.figure_data import accuracy_vs_cost
from kdtune.reports.tables.ship_sentences import cell_name, ship_view


def ship_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield the student to ship, all candidates beside it, and accuracy against cost."""
    ship, (first, *smallest) = sweep.tables.ship, sweep.tables.ship_sentences
    if ship.empty:
        yield Paragraph(first, "missing", "ship")
        return
    yield Paragraph(first, "lead")
    yield from map(Paragraph, smallest)
    if limits := sweep.ship_limits.describe():
        yield Paragraph(f"Limits: {limits}.")
    if "best" in ship["in_ship_set"].values:
        if ship["behind_best_points"].notna().any():
            yield Paragraph(_resolution_sentence(sweep))
        yield TableBlock(_table_caption(ship), ship_view(ship))
    cost = "latency_ms" if ship["latency_ms"].notna().any() else "macs"
    if len(points := accuracy_vs_cost(ship, cost)):
        yield _figure(sweep, points, cost)
    else:
        text = f"No figure: `{sweep.command('confirm')}` measures the costs of the students."
        yield Paragraph(text, "missing", "ship")


def _resolution_sentence(sweep: LoadedSweep) -> str:
    """Return which students the seeds and test images cannot tell from the best, and why."""
    compared = sweep.tables.ship.dropna(subset="behind_best_points")
    leaderboard = sweep.tables.leaderboard
    seeds = min(leaderboard["seeds_finished"][leaderboard["status"] == "ok"])
    images = int(sweep.tested_cells["test_images"].max())
    groups = int(compared["independent_images"].max())
    images_text = f"{images:,} test images" + f" in {groups:,} groups" * (groups != images)
    error = compared["behind_best_high_points"] - compared["behind_best_points"]
    resolution = compared["min_difference_points"].iloc[0] + error.median()
    causes = compared["limited_by"].value_counts().items()
    counts = ", ".join(f"{cause} for {count} of the students" for cause, count in causes)
    return (
        f"With {seeds} seeds and {images_text} a student must be about {resolution:.1f} "
        f"points behind to be excluded. The largest part of the error: {counts}."
    )


def _table_caption(ship: pd.DataFrame) -> str:
    devices = ", ".join(sorted({*ship["latency_device"].dropna()} - {""}))
    minimum = ship["min_difference_points"].iloc[0]
    return (
        "In the order of validation, which alone chooses. ship: `no` if test shows that it is "
        f"more than {minimum:g} points behind the best; at most: 95 % for all of them together. "
        f"Costs of the student alone; the median time is that of {devices or 'no device'}."
    )


def _figure(sweep: LoadedSweep, points: pd.DataFrame, cost: str) -> FigureBlock:
    is_test = points["split"].iloc[0] == "test"
    teacher, accuracy = sweep.opening_events[0].teacher, None
    if teacher is not None:
        accuracy = teacher.test_accuracy if is_test else teacher.validation_accuracy
    figure = plot_accuracy_vs_cost(points, cost, None if accuracy is None else 100 * accuracy)
    best = points.iloc[0]
    label = "test accuracy" if is_test else "search score, which is not a result"
    amount = f"{best[cost]:.2f} ms" if cost == "latency_ms" else f"{best[cost]:,} multiply-adds"
    caption = (
        f"{cell_name(best)}: {label} {best['accuracy_percent']:.1f} %, {amount} for one image."
        f"{' Bars: 95 %.' * is_test} Methods on one student have the same cost and are drawn side "
        "by side. The line joins the students that no other beats at a lower cost, by estimates."
    )
    if "best" in points["in_ship_set"].values:
        caption += " Filled marks: the best, which has a ring, and those not shown to be worse."
    if is_test and teacher is not None and accuracy is None:
        caption += " No line for the teacher: its test accuracy is not known."
    return FigureBlock("ship", figure, caption)
