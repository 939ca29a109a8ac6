"""Sentences about a comparison: the difference, its interval, and what to do next."""

import math

from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.reports.tables.statistics import (
    TRIALS,
    Estimate,
    _target,
    expected,
    images_needed,
    more_seeds,
)

NAMES = {
    "at_paper": "AT (paper)",
    "fitnets": "FitNets",
    **{name: name.upper() for name in ("at", "kd", "dkd", "dist", "vid", "sp", "rkd", "pkt")},
}
"""Methods as sentences call them; the others are called as they are."""


def visible(test_images: int, seeds: int, models: int, accuracy: float = 0.75) -> str:
    """Say which differences the test images will show; args as `expected`."""
    alone = expected(test_images, seeds, 1, accuracy).half_width
    said = (
        f"with {test_images:,} test images and {seeds} seeds no difference under "
        f"{in_points(alone, alone)} points can be seen on a student"
    )
    if models > 1:
        together = expected(test_images, seeds, models, accuracy).half_width
        said += f", none under {in_points(together, together)} on average over {models}"
    return (
        f"{said} (at {100 * accuracy:.0f} % accuracy, after {TRIALS} trials a cell; fewer show "
        "less)"
    )


def in_points(value: float, half_width: float) -> str:
    """A number of points for people: two decimals where the interval is narrow, else one."""
    return f"{value:z.{2 if half_width < 1 else 1}f}"


def name_of(method: str) -> str:
    """A method as sentences call it."""
    return NAMES.get(method, method)


def sentence(
    verdict: str,
    methods: tuple[str, str],
    model: str | None,
    models: int,
    found: Estimate,
    advice: str,
    counted: str = "",
    min_difference: float = MIN_DIFFERENCE,
) -> str:
    """Say a verdict, as `decide` gives it.

    Args:
        verdict: as `decide` gives it.
        methods: A and B.
        model: None if it is about the mean over all models.
        models: how many are checked, or averaged.
        found: A minus B.
        advice: as `advise` gives it.
        counted: who won how often.
        min_difference: points below which a difference does not matter.
    """
    a, b = map(name_of, methods)
    if verdict.endswith("_b"):
        a, b, found = b, a, found.swapped
    width = found.half_width
    difference = f"{in_points(found.mean, width)} ± {in_points(width, width)} points"
    largest = in_points(max(abs(found.low), abs(found.high)), width)
    where = f"on {model}" if model else f"on average over {models} models"
    if verdict.startswith("better"):
        size = ""
        if found.high < min_difference:
            size = f" This is less than the {min_difference:g} points that matter here."
        elif found.low > min_difference:
            size = f" The gain is more than the {min_difference:g} points that matter."
        who = f"{a} beats {b} {where}" if model else f"O{where[1:]} {a} beats {b}"
        return f"{who} by {difference} ({counted}).{size}"
    if verdict.startswith("leaning"):
        return (
            f"{a} is ahead of {b} {where} by {difference}, but with {models} models checked this "
            f"is not safe. {advice}"
        )
    if verdict == "equal":
        return (
            f"{a} and {b} do equally well {where}: a difference above {largest} points is "
            "excluded."
        )
    return (
        f"It cannot be said which is better {where}: {a} minus {b} is {difference}; differences "
        f"up to {largest} points cannot be excluded. {advice}"
    )


def advise(found: Estimate, test_images: int, min_difference: float = MIN_DIFFERENCE) -> str:
    """What would settle what could not be said: more seeds, more images, or a longer search."""
    target = in_points(_target(found, min_difference), found.half_width)
    if (more := more_seeds(found, min_difference)) is not None:
        return f"Too few seeds: about {more} more would probably settle {target} points."
    images = images_needed(found, test_images, min_difference)
    if images is not None:
        return (
            f"More seeds would not help: {test_images:,} test images are too few; about "
            f"{images:,} would settle {target} points."
        )
    moved = in_points(2 * math.sqrt(found.v_search), found.half_width)
    return (
        "Neither seeds nor images would settle it; the search is the limit (a repeated search "
        f"moves the result by about ±{moved}): give every cell more trials."
    )
