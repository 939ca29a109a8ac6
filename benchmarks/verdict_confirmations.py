"""Confirmations of searches on simulated test images, for `verdict.py`.

A confirmation trains each candidate of a search with fresh seeds: its validation accuracies are
drawn from those that the search holds, and the candidate with the highest mean is chosen. What is
chosen is tested on simulated images, on which it has its noise-free accuracy:

The correctness of an image is a threshold on a sum of normal variables: how hard the image is for
all, what the configuration makes of it, what the run makes of it. Weights are such that of the
variance p · (1 − p) configurations share 58 % and runs of one configuration 70 %, as
`kdtune.reports.tables.statistics.expected_error` has it. Each run also has a normal effect on its
accuracy (sd 0.12 points, or another).

Its limits: images are independent, and so are runs, also those of two methods with one seed; all
configurations have the same variances; and the shares are those that the forecast is made from,
so only recorded runs (`verdict_recorded.py`) test the shares.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from verdict_searches import BEST_ACCURACY_PERCENT, Candidate, FinishedSearch

from kdtune.reports.tables.comparison import CellResult
from kdtune.reports.tables.statistics import (
    IMAGE_VARIANCE_SHARE,
    RESIDUAL_VARIANCE_SHARE,
    SEED_SD_POINTS,
)


def latent_correlation(share: float) -> float:
    """Return the correlation of normal variables from that of their being below a threshold."""
    p = BEST_ACCURACY_PERCENT / 100
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def excess(correlation: float) -> float:
        below = ndtr((ndtri(p) - math.sqrt(correlation) * nodes) / math.sqrt(1 - correlation))
        return float((weights * below**2).sum() - p**2 - share * p * (1 - p))

    return float(brentq(excess, 0, 0.99))


SHARED_CORRELATION = latent_correlation(1 - IMAGE_VARIANCE_SHARE - RESIDUAL_VARIANCE_SHARE)
CONFIGURATION_CORRELATION = latent_correlation(1 - RESIDUAL_VARIANCE_SHARE)


@dataclass(frozen=True)
class ConfirmedCell:
    """A search whose candidates were trained again, and what was chosen of them.

    Attributes:
        validation: accuracies of the candidates by seed, in percent, [candidates, S].
        chosen: the candidate with the highest mean over the seeds that decided.
        configuration: how hard each image is for it, [n].
        correct: which images its runs classified correctly, [S, n].
    """

    search: FinishedSearch
    validation: np.ndarray
    chosen: Candidate
    configuration: np.ndarray
    correct: np.ndarray

    def result(self, looks: Sequence[int] = (), luck: float | None = None) -> CellResult:
        """Return the results at the last of some looks.

        Args:
            looks: numbers of seeds; without them all seeds are read once, and no others ever.
            luck: instead of that of the search.
        """
        correct = dict(enumerate(self.correct[: looks[-1] if looks else None], start=1))
        search_luck = self.search.luck if luck is None else luck
        return CellResult(correct, len(correct), 0, search_luck, looks=tuple(looks))

    def validation_percent(self, seeds: int) -> float:
        """Return the mean validation accuracy of what was chosen, over the first seeds."""
        chosen = self.search.candidates.index(self.chosen)
        return float(self.validation[chosen, :seeds].mean())


class TestImages:
    """Simulated test images, each as hard as it is; cells that share them can be compared.

    Args:
        count: number of images.
        rng: draws images and runs.
        seed_sd: points by which a seed moves an accuracy.
    """

    __test__ = False  # pytest would collect it

    def __init__(self, count: int, rng: np.random.Generator, seed_sd: float = SEED_SD_POINTS):
        self.count, self.rng, self.seed_sd = count, rng, seed_sd
        self._difficulty = self._normal(SHARED_CORRELATION, count)

    def _normal(self, variance: float, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(variance))

    def draw_configuration(self) -> np.ndarray:
        """Return how hard each image is for a new configuration, [n]."""
        variance = CONFIGURATION_CORRELATION - SHARED_CORRELATION
        difficulty: np.ndarray = self._difficulty + self._normal(variance, self.count)
        return difficulty

    def test(self, configuration: np.ndarray, accuracy: float, seeds: int) -> np.ndarray:
        """Return which images runs of a configuration classify correctly, [S, n].

        Args:
            configuration: result of `draw_configuration`.
            accuracy: expected accuracy, in percent.
            seeds: number of runs.
        """
        accuracies = accuracy + self.rng.normal(0, self.seed_sd, seeds)
        noise = self._normal(1 - CONFIGURATION_CORRELATION, seeds, self.count)
        correct: np.ndarray = configuration + noise < ndtri(accuracies / 100)[:, np.newaxis]
        return correct

    def confirm(
        self, search: FinishedSearch, seeds: int, deciding_seeds: int | None = None
    ) -> ConfirmedCell:
        """Train the candidates of a search again, choose one, and test it.

        Args:
            search: the search.
            seeds: number of seeds.
            deciding_seeds: the number of seeds by which it is chosen; all without it.
        """
        validation, chosen = choose_candidate(search, seeds, self.rng, deciding_seeds)
        configuration = self.draw_configuration()
        correct = self.test(configuration, chosen.accuracy, seeds)
        return ConfirmedCell(search, validation, chosen, configuration, correct)

    def choose_again(self, confirmed: ConfirmedCell, deciding_seeds: int) -> ConfirmedCell:
        """Return what another number of seeds chooses of the same runs; the same, if it is that.

        Args:
            confirmed: result of `confirm`.
            deciding_seeds: the number of seeds by which it is chosen.
        """
        means = confirmed.validation[:, :deciding_seeds].mean(axis=1)
        chosen = confirmed.search.candidates[int(means.argmax())]
        if chosen is confirmed.chosen:
            return confirmed
        configuration = self.draw_configuration()
        correct = self.test(configuration, chosen.accuracy, len(confirmed.correct))
        return replace(confirmed, chosen=chosen, configuration=configuration, correct=correct)

    def test_again(self, confirmed: ConfirmedCell) -> ConfirmedCell:
        """Return the same configuration with other runs."""
        seeds, accuracy = len(confirmed.correct), confirmed.chosen.accuracy
        return replace(confirmed, correct=self.test(confirmed.configuration, accuracy, seeds))


def choose_candidate(
    search: FinishedSearch, seeds: int, rng: np.random.Generator, deciding_seeds: int | None = None
) -> tuple[np.ndarray, Candidate]:
    """Return validation accuracies of new runs, [candidates, S], and the candidate they choose.

    Args:
        search: the search.
        seeds: number of seeds.
        rng: draws the runs.
        deciding_seeds: see `TestImages.confirm`.
    """
    validation = np.array([rng.choice(c.validation, seeds) for c in search.candidates])
    means = validation[:, :deciding_seeds].mean(axis=1)
    return validation, search.candidates[int(means.argmax())]
