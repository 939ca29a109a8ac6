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
    numbers = find_needed_numbers(difference, test_images, trials, target)
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


def find_needed_numbers(
    difference: Estimate, test_images: int, trials: int, target: float
) -> dict[str, int | None]:
    """Return how many further seeds, trials of a cell or test images would settle a comparison.

    Each is the least that probably would, of trials and images to two digits; None if too many.
    The luck of a search falls like 1 / trials: in points 0.26, 0.14 and 0.09 after 12, 24 and 40
    (`make bench-verdict`).

    Args:
        difference: A minus B.
        test_images: number of test images at present.
        trials: number of trials of a cell at present; 0 if unknown.
        target: the difference that is to be found, in points.
    """
    luck, seeds = difference.variance_search, range(difference.seeds + 1, LAST_LOOK + 1)
    more_trials = _quarter_steps(trials, _MAX_TRIAL_FACTOR * trials if luck else 0)
    max_images = max(_MAX_IMAGE_FACTOR * test_images, _MAX_TEST_IMAGES)
    more_images = _quarter_steps(test_images, max_images)
    forecasts = {
        "seeds": ((n - difference.seeds, difference.with_seeds(n)) for n in seeds),
        "trials": (
            (n, replace(difference, variance_search=luck * (trials / n) ** 2)) for n in more_trials
        ),
        "images": ((n, difference.with_more_images(n / test_images)) for n in more_images),
    }
    return {
        step: next((n for n, later in pairs if later.minimum_detectable <= target), None)
        for step, pairs in forecasts.items()
    }


def _quarter_steps(number: int, limit: int) -> Iterator[int]:
    """Yield numbers up to a limit that grow by a quarter, rounded up to two digits."""
    while 0 < (number := math.ceil(1.25 * number)) <= limit:
        unit = 10 ** max(0, len(str(number)) - 2)
        number = math.ceil(number / unit) * unit
        yield number
