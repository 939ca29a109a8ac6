"""Sentences about comparisons: difference, interval and advice."""

import math

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.reports.tables import statistics
from kdtune.reports.tables.statistics import REFERENCE_TRIALS, Estimate


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


def describe_verdict(
    verdict: str,
    methods: tuple[str, str],
    model: str | None,
    models: int,
    difference: Estimate,
    advice: str,
    win_counts: str = "",
    min_difference: float = MIN_DIFFERENCE,
) -> str:
    """Return a verdict as a sentence.

    Args:
        verdict: result of `decide_verdict`.
        methods: A and B.
        model: the model; None for the mean over all models.
        models: number of models that are checked or averaged.
        difference: A minus B.
        advice: result of `advise_next_step`.
        win_counts: numbers of wins, as text.
        min_difference: smallest difference that matters, in points.
    """
    a, b = map(display_name, methods)
    if verdict.endswith("_b"):
        a, b, difference = b, a, difference.swapped
    width = difference.half_width
    points_text = f"{format_interval(difference.mean, width)} points"
    largest = format_points(max(abs(difference.low), abs(difference.high)), width)
    scope = f"on {model}" if model else f"on average over {models} models"
    if verdict.startswith("better"):
        relevance = ""
        if difference.high < min_difference:
            relevance = f" This is less than the {min_difference:g} points that matter here."
        elif difference.low > min_difference:
            relevance = f" The gain is more than the {min_difference:g} points that matter."
        claim = f"{a} beats {b} {scope}" if model else f"O{scope[1:]} {a} beats {b}"
        return f"{claim} by {points_text} ({win_counts}).{relevance}"
    if verdict.startswith("leaning"):
        caveat = f"but with {models} models checked this is not safe. {advice}"
        return f"{a} is ahead of {b} {scope} by {points_text}, {caveat}"
    if verdict == "equal":
        limit = f"a difference above {largest} points is excluded"
        return f"{a} and {b} do equally well {scope}: {limit}."
    return (
        f"It cannot be said which is better {scope}: {a} minus {b} is {points_text}; differences "
        f"up to {largest} points cannot be excluded. {advice}"
    )


def advise_next_step(
    difference: Estimate, test_images: int, min_difference: float = MIN_DIFFERENCE
) -> str:
    """Return what would settle an unclear comparison: more seeds, images, or trials.

    Args:
        difference: A minus B.
        test_images: number of test images.
        min_difference: smallest difference that matters, in points.
    """
    target = format_points(difference.target(min_difference), difference.half_width)
    if (extra_seeds := statistics.more_seeds_needed(difference, min_difference)) is not None:
        return f"Too few seeds: about {extra_seeds} more would probably settle {target} points."
    if images := statistics.needed_test_images(difference, test_images, min_difference):
        problem = f"{test_images:,} test images are too few"
        return (
            f"More seeds would not help: {problem}; about {images:,} would settle {target} points."
        )
    search_shift = format_points(2 * math.sqrt(difference.variance_search), difference.half_width)
    return (
        "Neither seeds nor images would settle it; the search is the limit (a repeated search "
        f"moves the result by about ±{search_shift}): give every cell more trials."
    )
