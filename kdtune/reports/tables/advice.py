"""Advice on the next step of an open comparison: further seeds, more trials, or more images."""

import math
from collections.abc import Iterator
from dataclasses import replace

from kdtune.reports.tables.looks import LAST_LOOK
from kdtune.reports.tables.statistics import Estimate

_MAX_TRIAL_FACTOR, _MAX_IMAGE_FACTOR, _MAX_TEST_IMAGES = 4, 80, 10_000
"""Limits of advice: for trials as far as their effect is measured; for images the larger one."""


def limited_by(difference: Estimate) -> str:
    """Return the largest part of the variance: ``seeds``, ``images`` or ``search``."""
    names = ("seeds", "images", "search")
    return max(names, key=lambda name: getattr(difference, f"variance_{name}"))


def next_step_columns(
    difference: Estimate, test_images: int, trials: int, min_difference: float
) -> dict[str, object]:
    """Return the columns of `COMPARISON` about the next step.

    It is the cheapest that would probably settle the comparison alone: seeds, then trials, then
    images. If none would, it is to double what limits the comparison.

    Args:
        difference: A minus B, undecided.
        test_images: number of test images at present.
        trials: number of trials of a cell at present; 0 if unknown.
        min_difference: smallest difference that matters, in points.
    """
    target = max(abs(difference.mean), min_difference)
    numbers = {
        "seeds": more_seeds_needed(difference, target),
        "trials": needed_trials(difference, trials, target),
        "images": needed_test_images(difference, test_images, target),
    }
    settling = [step for step, number in numbers.items() if number is not None]
    if not settling:
        step = {"search": "trials"}.get(limit := limited_by(difference), limit)
        seeds = min(difference.seeds, LAST_LOOK - difference.seeds)
        doubled = {"seeds": max(seeds, 0), "trials": 2 * trials, "images": 2 * test_images}
        numbers[step] = doubled[step] or None
    return {
        "next_step": settling[0] if settling else step,
        "next_step_settles": bool(settling),
        "more_seeds": numbers["seeds"],
        "trials_needed": numbers["trials"],
        "test_images_needed": numbers["images"],
    }


def more_seeds_needed(difference: Estimate, target: float) -> int | None:
    """Return how many further seeds would probably settle it; None if no planned look would.

    Args:
        difference: A minus B.
        target: the difference that is to be found, in points.
    """
    for seeds in range(difference.seeds + 1, LAST_LOOK + 1):
        if difference.with_seeds(seeds).minimum_detectable <= target:
            return seeds - difference.seeds
    return None


def needed_trials(difference: Estimate, trials: int, target: float) -> int | None:
    """Return how many trials a cell would settle it, to two digits; None if too many.

    The luck of a search falls like 1 / trials: in points 0.26, 0.14 and 0.09 after 12, 24 and 40
    (`make bench-verdict`).

    Args:
        difference: A minus B.
        trials: number of trials of a cell at present.
        target: the difference that is to be found, in points.
    """
    if not trials or not difference.variance_search:
        return None
    for needed in _quarter_steps(trials, _MAX_TRIAL_FACTOR * trials):
        variance_search = difference.variance_search * (trials / needed) ** 2
        if replace(difference, variance_search=variance_search).minimum_detectable <= target:
            return needed
    return None


def needed_test_images(difference: Estimate, test_images: int, target: float) -> int | None:
    """Return how many test images would settle it, to two digits; None if too many.

    Args:
        difference: A minus B.
        test_images: number of test images at present.
        target: the difference that is to be found, in points.
    """
    limit = max(_MAX_IMAGE_FACTOR * test_images, _MAX_TEST_IMAGES)
    for needed in _quarter_steps(test_images, limit):
        if difference.with_more_images(needed / test_images).minimum_detectable <= target:
            return needed
    return None


def _quarter_steps(number: int, limit: int) -> Iterator[int]:
    """Yield numbers up to a limit that grow by a quarter, rounded up to two digits."""
    while (number := math.ceil(1.25 * number)) <= limit:
        unit = 10 ** max(0, len(str(number)) - 2)
        number = math.ceil(number / unit) * unit
        yield number
