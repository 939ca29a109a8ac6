"""Statistics of confirmed runs: interval, verdict, search luck, and advice.

The interval is that of the multi-reader multi-case analysis of variance, with seeds as readers and
test images as cases, and Hillis' degrees of freedom (Hillis 2007, Statistics in Medicine 26); the
luck of the searches is added. Points are hundredths of accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm, t

from kdtune.config.sweep import MIN_DIFFERENCE

MIN_SEEDS = 3
"""Seeds that both methods must have finished before they are compared."""

SIGNIFICANCE_LEVEL, _POWER = 0.05, 0.8
"""Accepted rate of false alarms; chance of finding a difference."""

_MAX_MORE_SEEDS, _MAX_IMAGE_STEPS = 20, 20
"""Limits of advice: further seeds, and steps by a quarter in the number of test images."""

IMAGE_VARIANCE_SHARE, RESIDUAL_VARIANCE_SHARE = 0.12, 0.30
"""Parts of the variance accuracy · (1 − accuracy) of an image: methods; methods by seeds."""

_CROSS_MODEL_SHARE = 0.27
"""Share of the difference between methods that is the same on another student."""

REFERENCE_TRIALS = 40
"""Trials per cell of the searches that these constants were measured on."""

SEED_SD_POINTS, SEARCH_SD_POINTS = 0.12, 0.13
"""Standard deviations of a cell's accuracy over seeds (on infinite images) and searches."""


class Verdict(StrEnum):
    """The result of comparing method A with method B."""

    NOT_CONFIRMED = "not_confirmed"
    UNSTABLE = "unstable"  # a seed diverged
    BETTER_A = "better_a"
    BETTER_B = "better_b"
    LEANING_A = "leaning_a"  # better, if no other model were compared
    LEANING_B = "leaning_b"
    EQUAL = "equal"
    UNCLEAR = "unclear"
    DEPENDS = "depends"  # A is better on one model, B on another


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and test images, and the parts of its variance.

    Attributes:
        images: number of images; of groups if images belong to groups.
        seeds_won, seeds_lost: numbers of seeds with a mean above 0, and below.
        variance_residual: interaction of seeds and images; contained in those of both.
        level: rate of false alarms of its interval.
    """

    mean: float
    seeds: int
    images: int
    seeds_won: int
    seeds_lost: int
    variance_seeds: float
    variance_images: float
    variance_search: float
    variance_residual: float
    level: float = SIGNIFICANCE_LEVEL

    @property
    def variance(self) -> float:
        """Variance V of the mean."""
        return self.variance_seeds + self.variance_images + self.variance_search

    @property
    def df(self) -> float:
        """Degrees of freedom: V² / (variance_seeds² / (S − 1))."""
        seed_term = self.variance_seeds**2 / (self.seeds - 1)
        return self.variance**2 / seed_term if seed_term else math.inf

    @property
    def half_width(self) -> float:
        """Half width of the interval, in points."""
        return float(t.ppf(1 - self.level / 2, self.df)) * math.sqrt(self.variance)

    @property
    def low(self) -> float:
        """Lower end of the interval, in points."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval, in points."""
        return self.mean + self.half_width

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a mean of 0; 1 if nothing varies."""
        if not self.variance:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / math.sqrt(self.variance), self.df))

    @property
    def minimum_detectable(self) -> float:
        """Difference that is found with a chance of 80 %, in points."""
        quantiles = float(t.ppf(1 - self.level / 2, self.df) + norm.ppf(_POWER))
        return quantiles * math.sqrt(self.variance)

    def target(self, min_difference: float) -> float:
        """Return the difference that advice aims to settle, in points."""
        return max(abs(self.mean), min_difference)

    @property
    def swapped(self) -> "Estimate":
        """The estimate of B minus A."""
        return replace(self, mean=-self.mean, seeds_won=self.seeds_lost, seeds_lost=self.seeds_won)


def estimate_mean(
    points: np.ndarray, variance_search: float = 0.0, groups: Sequence[object] | None = None
) -> Estimate:
    """Estimate the mean of points over seeds and test images.

    Args:
        points: [n, S], at least 2 each: 100 · (predicted == label), or a difference of two such.
        variance_search: see `Estimate`.
        groups: the group of each image if several show one patient or scene; it replaces images.
    """
    if groups is not None:  # sums over groups, scaled so that their mean is that of the images
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        sums = np.zeros((len(names), points.shape[1]))
        np.add.at(sums, codes, points)
        points = sums * (len(names) / len(points))
    images, seeds = points.shape
    mean, image_means, seed_means = points.mean(), points.mean(axis=1), points.mean(axis=0)
    ms_images = seeds * image_means.var(ddof=1)
    ms_seeds = images * seed_means.var(ddof=1)
    residuals = points - image_means[:, None] - seed_means + mean
    ms_rest = (residuals**2).sum() / ((images - 1) * (seeds - 1))
    return Estimate(
        mean=float(mean),
        seeds=seeds,
        images=images,
        seeds_won=int((seed_means > 0).sum()),
        seeds_lost=int((seed_means < 0).sum()),
        variance_seeds=float(ms_seeds / (images * seeds)),
        variance_images=float(max(ms_images - ms_rest, 0) / (images * seeds)),
        variance_search=variance_search,
        variance_residual=float(ms_rest / (images * seeds)),
    )


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy of one network on new images (Wilson 1927).

    Args:
        correct: number of images that are classified correctly.
        images: number of all images.

    >>> [round(end, 3) for end in wilson_interval(45, 50)]
    [0.786, 0.957]
    """
    interval = binomtest(correct, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_best_sd(scores: ArrayLike) -> float:
    """Return the standard deviation of the best of B draws from B scores, with replacement."""
    ascending = np.sort(np.asarray(scores, dtype=float))
    count = len(ascending)
    probability = np.diff((np.arange(count + 1) / max(count, 1)) ** count)
    mean_best = (probability * ascending).sum()
    return math.sqrt((probability * (ascending - mean_best) ** 2).sum())


def late_gain(scores: ArrayLike) -> float:
    """Return the best of all scores, in the order of proposals, minus that of the first half."""
    values = np.asarray(scores, dtype=float)
    first_half = values[: len(values) // 2]
    if np.isnan(first_half).all():
        return math.nan
    return float(np.nanmax(values) - np.nanmax(first_half))


def search_luck(scores: ArrayLike, seed_sd: float = 0.0) -> float:
    """Return the search luck of a cell, in points: how much a repeated search would move it.

    Searches that still improve can differ by more than their scores show, so a late gain is added
    if it matters and is above what luck (twice) and seeds would explain.

    Args:
        scores: scores of the trials in points, as for `late_gain`.
        seed_sd: standard deviation over seeds of the validation accuracy of the chosen trial.
    """
    values = np.asarray(scores, dtype=float)
    gain, luck = late_gain(values), bootstrap_best_sd(values[~np.isnan(values)])
    is_settled = not gain > max(MIN_DIFFERENCE, 2 * luck, 0.75 * seed_sd)
    return luck if is_settled else math.hypot(luck, gain)


def adjust_holm(p_values: Sequence[float]) -> np.ndarray:
    """Return the p-values of a family, adjusted by Holm's method."""
    p = np.asarray(p_values, dtype=float)
    order, adjusted = np.argsort(p), np.empty_like(p)
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def decide_verdict(
    difference: Estimate, p_value_holm: float, min_difference: float = MIN_DIFFERENCE
) -> Verdict:
    """Return the verdict on a pair of methods.

    Args:
        difference: A minus B.
        p_value_holm: its adjusted p-value.
        min_difference: smallest difference that matters, in points.
    """
    a_leads = difference.mean > 0
    if p_value_holm < difference.level:
        return Verdict.BETTER_A if a_leads else Verdict.BETTER_B
    if difference.p_value < difference.level:
        return Verdict.LEANING_A if a_leads else Verdict.LEANING_B
    if -min_difference < difference.low and difference.high < min_difference:
        return Verdict.EQUAL
    return Verdict.UNCLEAR


def more_seeds_needed(difference: Estimate, min_difference: float = MIN_DIFFERENCE) -> int | None:
    """Return how many further seeds would probably settle it; None if more than 20.

    Args:
        difference: A minus B.
        min_difference: smallest difference that matters, in points.
    """
    target = difference.target(min_difference)
    for extra in range(1, _MAX_MORE_SEEDS + 1):
        seeds = difference.seeds + extra
        variance_seeds = difference.variance_seeds * difference.seeds / seeds
        projected = replace(difference, seeds=seeds, variance_seeds=variance_seeds)
        if projected.minimum_detectable <= target:
            return extra
    return None


def needed_test_images(
    difference: Estimate, test_images: int, min_difference: float = MIN_DIFFERENCE
) -> int | None:
    """Return how many test images would settle it, to two digits; None beyond 80 times as many.

    Args:
        difference: A minus B.
        test_images: number of test images at present.
        min_difference: smallest difference that matters, in points.
    """
    target = difference.target(min_difference)
    residual = min(difference.variance_seeds, difference.variance_residual)
    for step in range(1, _MAX_IMAGE_STEPS + 1):
        factor = 1.25**step
        seeds = difference.variance_seeds - residual + residual / factor
        images = difference.variance_images / factor
        projected = replace(difference, variance_seeds=seeds, variance_images=images)
        if projected.minimum_detectable <= target:
            needed = test_images * factor
            unit = 10 ** (math.floor(math.log10(needed)) - 1)
            return round(needed / unit) * unit if unit >= 1 else math.ceil(needed)
    return None


def limited_by(difference: Estimate) -> str:
    """Return the largest part of the variance: ``seeds``, ``images`` or ``search``."""
    names = ("seeds", "images", "search")
    return max(names, key=lambda name: getattr(difference, f"variance_{name}"))


def expected_error(
    test_images: int, seeds: int, models: int = 1, accuracy: float = 0.75
) -> Estimate:
    """Return the error that a comparison will probably have, before anything is trained.

    Its parts come from simulated classifiers after searches of `REFERENCE_TRIALS` trials a cell.

    Args:
        test_images: number of test images.
        seeds: seeds of every cell.
        models: students that the difference is averaged over.
        accuracy: accuracy of the students, share of 1.
    """
    image_variance = 2e4 * accuracy * (1 - accuracy) / test_images
    shared_share = _CROSS_MODEL_SHARE + (1 - _CROSS_MODEL_SHARE) / models
    residual = image_variance * RESIDUAL_VARIANCE_SHARE / seeds / models
    variances = {
        "variance_seeds": residual + 2 * SEED_SD_POINTS**2 / seeds / models,
        "variance_images": image_variance * IMAGE_VARIANCE_SHARE * shared_share,
        "variance_search": 2 * SEARCH_SD_POINTS**2 / models,
        "variance_residual": residual,
    }
    return Estimate(0.0, seeds, test_images, seeds_won=0, seeds_lost=0, **variances)
