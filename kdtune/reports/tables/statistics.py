"""What confirmed runs say: one interval, one rule that decides, one sentence.

The interval is that of the multi-reader multi-case analysis of variance, with seeds as readers and
test images as cases, and Hillis' degrees of freedom (Hillis 2007, "A comparison of denominator
degrees of freedom methods for multiple observer ROC analysis", Statistics in Medicine 26), to
which the luck of the searches is added. It covers new seeds, new images of the same kind and a
repeated search; not another split, another teacher or other students.

How often it names a winner where there is none, and finds one that there is: ``make
bench-verdict``. Points are hundredths of accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm, t

from kdtune.config.sweep import MIN_DIFFERENCE

MIN_SEEDS = 3
"""Seeds that both sides must have finished before anything is compared."""

SIGNIFICANCE_LEVEL, POWER = 0.05, 0.8
"""False alarms that are accepted; chance with which a difference shall be found."""

MAX_MORE_SEEDS, MAX_IMAGE_STEPS = 20, 20
"""How far advice looks: further seeds, and how often the test images grow by a quarter."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and test images, and what its error consists of.

    Attributes:
        mean: in points.
        seeds, images: counts; of groups where images belong to groups.
        seeds_won, seeds_lost: seeds whose mean is above 0, and below.
        variance_seeds, variance_images, variance_search: parts of the variance of the mean, in squared points.
        variance_residual: that of seed and image together, which more of either make smaller; a part of the
            first two.
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

    @property
    def variance(self) -> float:
        """Of the mean: V."""
        return self.variance_seeds + self.variance_images + self.variance_search

    @property
    def df(self) -> float:
        """Degrees of freedom: V² / (variance_seeds² / (S − 1))."""
        seed_term = self.variance_seeds**2 / (self.seeds - 1)
        return self.variance**2 / seed_term if seed_term else math.inf

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval, in points."""
        return float(t.ppf(1 - SIGNIFICANCE_LEVEL / 2, self.df)) * math.sqrt(self.variance)

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
        """Two-sided, for a mean of 0; 1 if nothing varies."""
        if not self.variance:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / math.sqrt(self.variance), self.df))

    @property
    def minimum_detectable(self) -> float:
        """The difference that is found with the chance `POWER`, in points."""
        quantiles = float(t.ppf(1 - SIGNIFICANCE_LEVEL / 2, self.df) + norm.ppf(POWER))
        return quantiles * math.sqrt(self.variance)

    @property
    def swapped(self) -> "Estimate":
        """The same for B minus A."""
        return replace(self, mean=-self.mean, seeds_won=self.seeds_lost, seeds_lost=self.seeds_won)


def estimate_mean(
    points: np.ndarray, variance_search: float = 0.0, groups: Sequence[object] | None = None
) -> Estimate:
    """Estimate the mean of points over seeds and test images.

    Args:
        points: [n, S], image by seed, n and S at least 2: of one cell
            100 · (predicted == label), of a pair the difference of two such arrays.
        variance_search: see `Estimate`.
        groups: of each image, where several show the same patient or scene; then groups take the
            place of images.
    """
    if groups is not None:
        points = _sum_by_group(points, groups)
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


def _sum_by_group(points: np.ndarray, groups: Sequence[object]) -> np.ndarray:
    """Sums over groups, scaled so that their mean is that of the images."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), points.shape[1]))
    np.add.at(sums, codes, points)
    return sums * (len(names) / len(points))


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the share that one network classifies rightly (Wilson 1927).

    It counts which images were drawn, and nothing else: neither seeds nor what was chosen.

    >>> [round(end, 3) for end in wilson_interval(45, 50)]
    [0.786, 0.957]
    """
    interval = binomtest(correct, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_best_sd(scores: ArrayLike) -> float:
    """How much a repeated search would move its result: standard deviation of the best of B.

    Args:
        scores: the best validation accuracy of each of a cell's trials, in any unit.

    Returns:
        In the unit of `scores`: the standard deviation of the maximum of B draws with replacement.
    """
    ascending = np.sort(np.asarray(scores, dtype=float))
    count = len(ascending)
    ranks = np.arange(count + 1) / max(count, 1)
    probability = np.diff(ranks**count)
    mean_best = (probability * ascending).sum()
    return math.sqrt((probability * (ascending - mean_best) ** 2).sum())


def late_gain(scores: ArrayLike) -> float:
    """What the second half of a search gained over its first.

    Args:
        scores: as for `bootstrap_best_sd`, in the order in which trials were proposed; NaN of those that
            say nothing.

    Returns:
        In the unit of `scores`: the best of all minus the best of the first half; NaN if there is
        none.
    """
    values = np.asarray(scores, dtype=float)
    first_half = values[: len(values) // 2]
    if np.isnan(first_half).all():
        return math.nan
    return float(np.nanmax(values) - np.nanmax(first_half))


def search_luck(scores: ArrayLike, seed_sd: float = 0.0) -> float:
    """Search luck of a cell in points, that of a search which has not come to its end included.

    The trials of a search say what they might have found, not what it has not come to yet: two
    searches of one method that still improve can be many points apart while the luck of each is
    small. So a late gain that matters, above what luck (twice) and seeds would explain, is added.

    Args:
        scores: as for `late_gain`, in points.
        seed_sd: standard deviation of the validation accuracy of what was chosen over seeds.
    """
    values = np.asarray(scores, dtype=float)
    gain, luck = late_gain(values), bootstrap_best_sd(values[~np.isnan(values)])
    is_settled = not gain > max(MIN_DIFFERENCE, 2 * luck, 0.75 * seed_sd)
    return luck if is_settled else math.hypot(luck, gain)


def adjust_holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjustment of the p-values of a family.

    >>> adjust_holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def decide_verdict(
    difference: Estimate, p_value_holm: float, min_difference: float = MIN_DIFFERENCE
) -> str:
    """The verdict on a pair of which both sides have finished seeds enough."""
    side = "a" if difference.mean > 0 else "b"
    if p_value_holm < SIGNIFICANCE_LEVEL:
        return f"better_{side}"
    if difference.p_value < SIGNIFICANCE_LEVEL:
        return f"leaning_{side}"
    if -min_difference < difference.low and difference.high < min_difference:
        return "equal"
    return "unclear"


def more_seeds_needed(difference: Estimate, min_difference: float = MIN_DIFFERENCE) -> int | None:
    """Further seeds that would probably settle it; None if `MAX_MORE_SEEDS` would not."""
    for extra in range(1, MAX_MORE_SEEDS + 1):
        seeds = difference.seeds + extra
        projected = replace(
            difference,
            seeds=seeds,
            variance_seeds=difference.variance_seeds * difference.seeds / seeds,
        )
        if projected.minimum_detectable <= target_points(difference, min_difference):
            return extra
    return None


def needed_test_images(
    difference: Estimate, test_images: int, min_difference: float = MIN_DIFFERENCE
) -> int | None:
    """Test images that would probably settle it, two digits; None if 80 times as many would not.

    Args:
        difference: the estimate.
        test_images: images that there are.
        min_difference: points.
    """
    residual = min(difference.variance_seeds, difference.variance_residual)
    for step in range(1, MAX_IMAGE_STEPS + 1):
        factor = 1.25**step
        variance_seeds = difference.variance_seeds - residual + residual / factor
        projected = replace(
            difference,
            variance_seeds=variance_seeds,
            variance_images=difference.variance_images / factor,
        )
        if projected.minimum_detectable <= target_points(difference, min_difference):
            images = test_images * factor
            unit = 10 ** (math.floor(math.log10(images)) - 1)
            return round(images / unit) * unit if unit >= 1 else math.ceil(images)
    return None


def target_points(difference: Estimate, min_difference: float) -> float:
    return max(abs(difference.mean), min_difference)


def limited_by(difference: Estimate) -> str:
    """The largest part of the variance: ``seeds``, ``images`` or ``search``."""
    parts = {
        "seeds": difference.variance_seeds,
        "images": difference.variance_images,
        "search": difference.variance_search,
    }
    return max(parts, key=parts.__getitem__)


def expected_error(
    test_images: int, seeds: int, models: int = 1, accuracy: float = 0.75
) -> Estimate:
    """The error that a comparison will probably have, before anything is trained.

    Its half width is what can be seen at all. The parts are those of a simulation of small image
    classifiers after searches of `REFERENCE_TRIALS` a cell; shorter ones have more luck. That of the images
    scales with accuracy · (1 − accuracy). How near they come: ``make bench-verdict``.

    Args:
        test_images: of the data.
        seeds: of every cell.
        models: students over which is averaged.
        accuracy: of the students, share of 1.
    """
    image_variance = 2e4 * accuracy * (1 - accuracy) / test_images
    shared_share = CROSS_MODEL_SHARE + (1 - CROSS_MODEL_SHARE) / models
    variance_residual = image_variance * RESIDUAL_VARIANCE_SHARE / seeds / models
    return Estimate(
        mean=0.0,
        seeds=seeds,
        images=test_images,
        seeds_won=0,
        seeds_lost=0,
        variance_seeds=variance_residual + 2 * SEED_SD_POINTS**2 / seeds / models,
        variance_images=image_variance * IMAGE_VARIANCE_SHARE * shared_share,
        variance_search=2 * SEARCH_SD_POINTS**2 / models,
        variance_residual=variance_residual,
    )


IMAGE_VARIANCE_SHARE, RESIDUAL_VARIANCE_SHARE = 0.12, 0.30
"""Of the variance of whether an image is classified rightly: what differs between two methods
whatever the seed, and what another seed changes."""

CROSS_MODEL_SHARE = 0.27
"""Of what differs between methods: what is the same on another student."""

REFERENCE_TRIALS = 40
"""Of a cell: so many the searches had from which these figures are."""

SEED_SD_POINTS, SEARCH_SD_POINTS = 0.12, 0.13
"""Standard deviations of a cell's accuracy in points: from seed to seed, on infinitely many
images, and from search to search."""
