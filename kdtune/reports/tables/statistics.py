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

LEAST_SEEDS = 3
"""Seeds that both sides must have finished before anything is compared."""

LEVEL, POWER = 0.05, 0.8
"""False alarms that are accepted; chance with which a difference shall be found."""

MOST_SEEDS, MOST_IMAGES = 20, 20
"""How far advice looks: further seeds, and how often the test images grow by a quarter."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and test images, and what its error consists of.

    Attributes:
        mean: in points.
        seeds, images: counts; of groups where images belong to groups.
        seeds_won, seeds_lost: seeds whose mean is above 0, and below.
        v_seeds, v_images, v_search: parts of the variance of the mean, in squared points.
        v_rest: that of seed and image together, which more of either make smaller; a part of the
            first two.
    """

    mean: float
    seeds: int
    images: int
    seeds_won: int
    seeds_lost: int
    v_seeds: float
    v_images: float
    v_search: float
    v_rest: float

    @property
    def variance(self) -> float:
        """Of the mean: V."""
        return self.v_seeds + self.v_images + self.v_search

    @property
    def df(self) -> float:
        """Degrees of freedom: V² / (v_seeds² / (S − 1))."""
        of_seeds = self.v_seeds**2 / (self.seeds - 1)
        return self.variance**2 / of_seeds if of_seeds else math.inf

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval, in points."""
        return float(t.ppf(1 - LEVEL / 2, self.df)) * math.sqrt(self.variance)

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
    def needed(self) -> float:
        """The difference that is found with the chance `POWER`, in points."""
        found = float(t.ppf(1 - LEVEL / 2, self.df) + norm.ppf(POWER))
        return found * math.sqrt(self.variance)

    @property
    def swapped(self) -> "Estimate":
        """The same for B minus A."""
        return replace(self, mean=-self.mean, seeds_won=self.seeds_lost, seeds_lost=self.seeds_won)


def estimate(
    x: np.ndarray, v_search: float = 0.0, groups: Sequence[object] | None = None
) -> Estimate:
    """Estimate the mean of x over seeds and test images.

    Args:
        x: points [n, S], image by seed, n and S at least 2: of one cell
            100 · (predicted == label), of a pair the difference of two such arrays.
        v_search: see `Estimate`.
        groups: of each image, where several show the same patient or scene; then groups take the
            place of images.
    """
    if groups is not None:
        x = _by_group(x, groups)
    n, seeds = x.shape
    mean, of_image, of_seed = x.mean(), x.mean(axis=1), x.mean(axis=0)
    ms_images = seeds * of_image.var(ddof=1)
    ms_seeds = n * of_seed.var(ddof=1)
    rest = x - of_image[:, None] - of_seed + mean
    ms_rest = (rest**2).sum() / ((n - 1) * (seeds - 1))
    return Estimate(
        mean=float(mean),
        seeds=seeds,
        images=n,
        seeds_won=int((of_seed > 0).sum()),
        seeds_lost=int((of_seed < 0).sum()),
        v_seeds=float(ms_seeds / (n * seeds)),
        v_images=float(max(ms_images - ms_rest, 0) / (n * seeds)),
        v_search=v_search,
        v_rest=float(ms_rest / (n * seeds)),
    )


def _by_group(x: np.ndarray, groups: Sequence[object]) -> np.ndarray:
    """Sums over groups, scaled so that their mean is that of the images."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), x.shape[1]))
    np.add.at(sums, codes, x)
    return sums * (len(names) / len(x))


def share_interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the share that one network classifies rightly (Wilson 1927).

    It counts which images were drawn, and nothing else: neither seeds nor what was chosen.

    >>> [round(end, 3) for end in share_interval(45, 50)]
    [0.786, 0.957]
    """
    found = binomtest(right, images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def search_luck(best: ArrayLike) -> float:
    """How much a repeated search would move its result: standard deviation of the best of B.

    Args:
        best: the best validation accuracy of each of a cell's trials, in any unit.

    Returns:
        In the unit of `best`: the standard deviation of the maximum of B draws with replacement.
    """
    ascending = np.sort(np.asarray(best, dtype=float))
    count = len(ascending)
    ranks = np.arange(count + 1) / max(count, 1)
    chance = np.diff(ranks**count)
    expected = (chance * ascending).sum()
    return math.sqrt((chance * (ascending - expected) ** 2).sum())


def late_gain(best: ArrayLike) -> float:
    """What the second half of a search gained over its first.

    Args:
        best: as for `search_luck`, in the order in which trials were proposed; NaN of those that
            say nothing.

    Returns:
        In the unit of `best`: the best of all minus the best of the first half; NaN if there is
        none.
    """
    values = np.asarray(best, dtype=float)
    first = values[: len(values) // 2]
    if np.isnan(first).all():
        return math.nan
    return float(np.nanmax(values) - np.nanmax(first))


def luck_of_search(best: ArrayLike, seed_sd: float = 0.0) -> float:
    """Search luck of a cell in points, that of a search which has not come to its end included.

    The trials of a search say what they might have found, not what it has not come to yet: two
    searches of one method that still improve can be many points apart while the luck of each is
    small. So a late gain that matters, above what luck (twice) and seeds would explain, is added.

    Args:
        best: as for `late_gain`, in points.
        seed_sd: standard deviation of the validation accuracy of what was chosen over seeds.
    """
    values = np.asarray(best, dtype=float)
    late, luck = late_gain(values), search_luck(values[~np.isnan(values)])
    settled = not late > max(MIN_DIFFERENCE, 2 * luck, 0.75 * seed_sd)
    return luck if settled else math.hypot(luck, late)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjustment of the p-values of a family.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def decide(found: Estimate, p_value_holm: float, min_difference: float = MIN_DIFFERENCE) -> str:
    """The verdict on a pair of which both sides have finished seeds enough."""
    side = "a" if found.mean > 0 else "b"
    if p_value_holm < LEVEL:
        return f"better_{side}"
    if found.p_value < LEVEL:
        return f"leaning_{side}"
    if -min_difference < found.low and found.high < min_difference:
        return "equal"
    return "unclear"


def more_seeds(found: Estimate, min_difference: float = MIN_DIFFERENCE) -> int | None:
    """Further seeds that would probably settle it; None if `MOST_SEEDS` would not."""
    for more in range(1, MOST_SEEDS + 1):
        seeds = found.seeds + more
        then = replace(found, seeds=seeds, v_seeds=found.v_seeds * found.seeds / seeds)
        if then.needed <= _target(found, min_difference):
            return more
    return None


def images_needed(
    found: Estimate, test_images: int, min_difference: float = MIN_DIFFERENCE
) -> int | None:
    """Test images that would probably settle it, two digits; None if 80 times as many would not.

    Args:
        found: the estimate.
        test_images: images that there are.
        min_difference: points.
    """
    of_rest = min(found.v_seeds, found.v_rest)
    for step in range(1, MOST_IMAGES + 1):
        times = 1.25**step
        v_seeds = found.v_seeds - of_rest + of_rest / times
        then = replace(found, v_seeds=v_seeds, v_images=found.v_images / times)
        if then.needed <= _target(found, min_difference):
            needed = test_images * times
            unit = 10 ** (math.floor(math.log10(needed)) - 1)
            return round(needed / unit) * unit if unit >= 1 else math.ceil(needed)
    return None


def _target(found: Estimate, min_difference: float) -> float:
    return max(abs(found.mean), min_difference)


def limited_by(found: Estimate) -> str:
    """The largest part of the variance: ``seeds``, ``images`` or ``search``."""
    parts = {"seeds": found.v_seeds, "images": found.v_images, "search": found.v_search}
    return max(parts, key=parts.__getitem__)


def expected(test_images: int, seeds: int, models: int = 1, accuracy: float = 0.75) -> Estimate:
    """The error that a comparison will probably have, before anything is trained.

    Its half width is what can be seen at all. The parts are those of a simulation of small image
    classifiers after searches of `TRIALS` a cell; shorter ones have more luck. That of the images
    scales with accuracy · (1 − accuracy). How near they come: ``make bench-verdict``.

    Args:
        test_images: of the data.
        seeds: of every cell.
        models: students over which is averaged.
        accuracy: of the students, share of 1.
    """
    of_image = 2e4 * accuracy * (1 - accuracy) / test_images
    shared = OF_MODELS + (1 - OF_MODELS) / models
    v_rest = of_image * OF_REST / seeds / models
    return Estimate(
        mean=0.0,
        seeds=seeds,
        images=test_images,
        seeds_won=0,
        seeds_lost=0,
        v_seeds=v_rest + 2 * OF_SEED**2 / seeds / models,
        v_images=of_image * OF_IMAGES * shared,
        v_search=2 * OF_SEARCH**2 / models,
        v_rest=v_rest,
    )


OF_IMAGES, OF_REST = 0.12, 0.30
"""Of the variance of whether an image is classified rightly: what differs between two methods
whatever the seed, and what another seed changes."""

OF_MODELS = 0.27
"""Of what differs between methods: what is the same on another student."""

TRIALS = 40
"""Of a cell: so many the searches had from which these figures are."""

OF_SEED, OF_SEARCH = 0.12, 0.13
"""Standard deviations of a cell's accuracy in points: from seed to seed, on infinitely many
images, and from search to search."""
