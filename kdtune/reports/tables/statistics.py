"""Statistics of confirmed runs: intervals, verdict, and search luck.

The interval of a difference is that of the multi-reader multi-case analysis of variance, with
seeds as readers and test images as cases (Hillis 2007, Statistics in Medicine 26). Few images or
seeds that agree by chance do not close it: pseudo images and the residual keep it open. The luck
of the searches is added. Points are hundredths of accuracy.
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
"""Accepted rate of false alarms, over all looks; chance of finding a difference."""

_PSEUDO_IMAGES = 3
"""Further images that differ by 100 points, as in the rule of three: 0 of n is below 3 / n."""

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
        variance_seeds: at least the residual, since its expectation is.
        variance_residual: interaction of seeds and images; contained in variance_seeds.
        variance_pseudo: of the pseudo images; contained in variance_images.
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
    variance_pseudo: float = 0.0
    level: float = SIGNIFICANCE_LEVEL

    @property
    def variance(self) -> float:
        """Variance V of the mean."""
        return self.variance_seeds + self.variance_images + self.variance_search

    @property
    def df(self) -> float:
        """Degrees of freedom: (S − 1) · V² / (variance_seeds² − variance_residual²).

        The residual is known from all images, so only what is above it is as uncertain as seeds.
        """
        uncertain = self.variance_seeds**2 - self.variance_residual**2
        return (self.seeds - 1) * self.variance**2 / uncertain if uncertain > 0 else math.inf

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

    def with_seeds(self, seeds: int) -> "Estimate":
        """Return the estimate with the variance that another number of seeds would have."""
        factor = self.seeds / seeds
        return replace(
            self,
            seeds=seeds,
            variance_seeds=self.variance_seeds * factor,
            variance_residual=self.variance_residual * factor,
        )

    def with_more_images(self, factor: float) -> "Estimate":
        """Return the estimate with the variance that `factor` times as many images would have."""
        residual = min(self.variance_residual, self.variance_seeds)
        pseudo_images = (self.images + _PSEUDO_IMAGES, self.images * factor + _PSEUDO_IMAGES)
        pseudo = self.variance_pseudo * (pseudo_images[0] / pseudo_images[1]) ** 2
        return replace(
            self,
            images=round(self.images * factor),
            variance_seeds=self.variance_seeds - residual + residual / factor,
            variance_residual=residual / factor,
            variance_images=(self.variance_images - self.variance_pseudo) / factor + pseudo,
            variance_pseudo=pseudo,
        )

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
    pseudo = _pseudo_variance(images)
    return Estimate(
        mean=float(mean),
        seeds=seeds,
        images=images,
        seeds_won=int((seed_means > 0).sum()),
        seeds_lost=int((seed_means < 0).sum()),
        variance_seeds=float(max(ms_seeds, ms_rest) / (images * seeds)),
        variance_images=float(max(ms_images - ms_rest, 0) / (images * seeds)) + pseudo,
        variance_search=variance_search,
        variance_residual=float(ms_rest / (images * seeds)),
        variance_pseudo=pseudo,
    )


def _pseudo_variance(images: int) -> float:
    return _PSEUDO_IMAGES * (100 / (images + _PSEUDO_IMAGES)) ** 2


def accuracy_interval(
    points: np.ndarray, groups: Sequence[object] | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy for new seeds and test images, in percent.

    It is Wilson's (1927), with the number of independent images that have the same variance. For
    few images that number is near that of the images, so where all are right it is theirs.

    Args:
        points: 100 · (predicted == label), see `estimate_mean`.
        groups: see `estimate_mean`.
    """
    estimate = estimate_mean(points, groups=groups)
    pseudo = estimate.variance_pseudo
    raw = replace(estimate, variance_images=estimate.variance_images - pseudo)
    binomial = raw.mean * (100 - raw.mean) / raw.images
    images = raw.images * (binomial + pseudo) / (raw.variance + pseudo)
    quantile = float(t.ppf(1 - raw.level / 2, raw.df))
    share = quantile**2 / images
    centre = (raw.mean + 50 * share) / (1 + share)
    variance = raw.mean * (100 - raw.mean) / images + (50 * quantile / images) ** 2
    half_width = quantile * math.sqrt(variance) / (1 + share)
    return max(centre - half_width, 0.0), min(centre + half_width, 100.0)


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


def adjust_holm(p_values: Sequence[float], levels: Sequence[float] = ()) -> np.ndarray:
    """Return the p-values of a family, adjusted by Holm's method.

    Args:
        p_values: of all members.
        levels: the level of each, if they differ; a lower one makes a p-value count for more.
    """
    weights = np.asarray(levels, dtype=float) / min(levels) if len(levels) else 1.0
    p = np.asarray(p_values, dtype=float) / weights
    order, adjusted = np.argsort(p), np.empty_like(p)
    adjusted[order] = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return np.minimum(1.0, adjusted * weights)


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
    pseudo = _pseudo_variance(test_images)
    variances = {
        "variance_seeds": residual + 2 * SEED_SD_POINTS**2 / seeds / models,
        "variance_images": image_variance * IMAGE_VARIANCE_SHARE * shared_share + pseudo,
        "variance_search": 2 * SEARCH_SD_POINTS**2 / models,
        "variance_residual": residual,
        "variance_pseudo": pseudo,
    }
    return Estimate(0.0, seeds, test_images, seeds_won=0, seeds_lost=0, **variances)
