"""Sentences about comparisons: difference, interval and advice."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.reports.tables import statistics
from kdtune.reports.tables.statistics import REFERENCE_TRIALS, Estimate, Verdict


def describe_detectable_difference(
    test_images: int, seeds: int, models: int, accuracy: float = 0.75
) -> str:
    """Return which differences the test images will show.

    Args:
        test_images: number of test images.
        seeds: seeds of every cell.
        models: number of students.
        accuracy: accuracy of the students, share of 1.
    """
    errors = [statistics.expected_error(test_images, seeds, n, accuracy) for n in (1, models)]
    one_model, all_models = (format_points(e.half_width, e.half_width) for e in errors)
    average = f", none under {all_models} on average over {models}" if models > 1 else ""
    conditions = f"at {100 * accuracy:.0f} % accuracy, after {REFERENCE_TRIALS} trials a cell"
    return (
        f"with {test_images:,} test images and {seeds} seeds no difference under {one_model} "
        f"points can be seen on a student{average} ({conditions}; fewer show less)"
    )


def format_points(value: float, half_width: float) -> str:
    """Return points as text: two decimals if the half width is below 1, else one.

    Args:
        value: the points.
        half_width: half width of their interval, in points.
    """
    return f"{value:z.{2 if half_width < 1 else 1}f}"


def format_interval(value: float, half_width: float) -> str:
    """Return points and their half width as text.

    Args:
        value: the points.
        half_width: half width of their interval, in points.
    """
    return f"{format_points(value, half_width)} ± {format_points(half_width, half_width)}"


def display_name(method: str) -> str:
    """Return the name of a method in sentences; that of a plug-in's method is its own."""
    return BUILTIN_METHODS[method].display_name if method in BUILTIN_METHODS else method


def list_names(names: Sequence[str], plural: str) -> str:
    """Return names as text, or their number if they are more than three.

    Args:
        names: the names.
        plural: what they are.
    """
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} {plural}"


def describe_verdict(
    verdict: str,
    methods: tuple[str, str],
    model: str | None,
    models: int,
    difference: Estimate,
    min_difference: float = MIN_DIFFERENCE,
) -> str:
    """Return a verdict as a sentence of at most 25 words.

    Args:
        verdict: result of `decide_verdict`.
        methods: A and B.
        model: the model; None for the mean over all models.
        models: number of models that are checked or averaged.
        difference: A minus B.
        min_difference: smallest difference that matters, in points.
    """
    a, b = map(display_name, methods)
    scope = f"on {model}" if model else f"on average over {models} students"
    width = difference.half_width
    if verdict == Verdict.EQUAL:
        largest = format_points(max(abs(difference.low), abs(difference.high)), width)
        limit = f"a difference above {largest} points is excluded"
        return f"{a} and {b} do equally well {scope}: {limit}."
    subject = f"{a} or {b} {scope}"
    if difference.mean < 0:
        a, b, difference = b, a, difference.swapped
    points_text = f"{format_interval(difference.mean, width)} points"
    if verdict in (Verdict.BETTER_A, Verdict.BETTER_B):
        is_small = difference.high < min_difference
        relevance = f", less than the {min_difference:g} that matter" * is_small
        return f"{a} is better than {b} {scope} by {points_text}{relevance}."
    if verdict in (Verdict.LEANING_A, Verdict.LEANING_B):
        caveat = f"but not safely, since {models} students were compared"
        return f"{a} is ahead of {b} {scope} by {points_text}, {caveat}."
    return f"{subject}: it cannot be said; {a} minus {b} is {points_text}."


def advise_next_step(comparison_row: Mapping[str, Any], folder: str) -> str | None:
    """Return the command that would settle a comparison, in at most 25 words; None if decided.

    Args:
        comparison_row: a row of `COMPARISON`.
        folder: the sweep's folder.
    """
    row, path = comparison_row, shlex.quote(folder)
    if pd.isna(row["next_step"]):
        return None
    column = {"seeds": "more_seeds", "trials": "trials_needed", "images": "test_images_needed"}
    number = row[column[row["next_step"]]]
    if pd.isna(number):
        return f"It stays open: {row['next_step']} limit it, and no step is left."
    action = {
        "seeds": f"`kdtune confirm {path} --seeds {row['seeds'] + number}`",
        "trials": f"a new sweep (`kdtune sweep ... --trials {number} --warm-start {path}`)",
        "images": f"{number:,} test images",
    }[row["next_step"]]
    if not row["next_step_settles"]:
        return f"Nothing alone would settle it; begin with what limits it most: {action}."
    target = max(abs(row["difference_points"]), row["min_difference_points"])
    points_text = format_points(target, row["half_width_points"])
    return f"A difference of {points_text} points would probably be settled by {action}."
