"""Error rates of verdicts: false winners, and winners that are missed.

    make bench-verdict

A naive leaderboard (the winner is who had the best single validation accuracy of the search)
against ours: the 3 best of a search are trained again with S fresh seeds, the mean validation
accuracy chooses among them, and `kdtune.reports.tables.comparison` compares on the test images.
First in a simulation, then on recorded predictions (``predictions/*.npz``, see
`record_predictions.py`), then with searches by kdtune itself.

The simulation. A search has 40 trials. Their true accuracies are drawn from those of the random
settings of a cell of ``curves/fashion-mnist.jsonl`` (the four cells in turn): the noise-free ones
that the surrogate of `surrogate.py` gives, since the recorded ones contain the noise of their
runs, which is added here; moved so that the best one is at 75 %. The correctness of an image is a
threshold on a sum of normal variables: how hard the image is for all, what the configuration
makes of it, what the run makes of it; weights are such that of the variance p · (1 − p)
configurations share 58 % and runs of one configuration 70 %, as
`kdtune.reports.tables.statistics.expected_error` has it. Each run also has a normal effect on its
accuracy (sd 0.12 points). Validation accuracies, of other images, are drawn with the variance
that follows, from rounded normal variables. The true difference of two methods is that of the
expected true accuracies of what searches choose; a method is made worse by moving its
distribution.

Its limits: the surrogate smooths, so settings may differ too little; trials are drawn at random,
none is stopped and none diverges; images are independent, and so are runs, also those of two
methods with one seed; all configurations have the same variances; there is one student, so nothing
is adjusted for several; and the shares are those that the forecast is made from, so the simulation
tests the procedure, and only the recorded runs test the shares.

On recorded runs, seeds and images are drawn from those that there are: for one configuration
against itself two sets without a common seed, for one against another S seeds with replacement,
images always with replacement, so that those recorded are the population. Few recorded seeds make
few really different draws.

Searches by kdtune itself, the recipe ``kdtune`` of `recipes.py` in simulated time as `search.py`
has it: independent ones of every cell of the curves, each looked at after as many epochs as 12, 24
and 40 whole trials have (one is stopped early and another started, so there are more of them).
Every two of a cell are compared as if they were two methods: confirmed by the surrogate (a run is
its noise-free curve with the noise of a recorded repetition), and tested on the images of the
simulation, at the noise-free accuracy of what was chosen, moved so that the best of the space is
at 75 %. Pairs share searches, so they are not independent; the standard errors are by leaving out
a search at a time. What the surrogate is wrong in, these searches do not see; a run's noise on
test images is that of the simulation, not that of the curves.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recipes import RECIPES, SimulatedTrial
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from search import CURVES, silence_libraries
from simulate import Simulation, load_problems
from surrogate import Surrogate

from kdtune.log.events import Cell
from kdtune.reports.tables.comparison import CellResult, comparison_table
from kdtune.reports.tables.statistics import (
    IMAGE_VARIANCE_SHARE,
    RESIDUAL_VARIANCE_SHARE,
    SEARCH_SD_POINTS,
    SEED_SD_POINTS,
    bootstrap_best_sd,
    estimate_mean,
    expected_error,
    search_luck,
)
from kdtune.tuning.planning.recorded_curves import load_recorded_runs

HERE = Path(__file__).parent
PREDICTIONS = HERE / "predictions" / "fashion-mnist.npz"

TEST_IMAGES = (500, 2_000, 10_000)
SEEDS = (3, 5, 10)
TRUE_DIFFERENCES = (0.0, 0.5, 1.0)
"""True differences, in points."""

NUM_TRIALS, NUM_CANDIDATES = 40, 3
NUM_SETTINGS = 80
"""Random settings of a cell of the curves; what follows are repetitions of some."""

BEST_ACCURACY_PERCENT = 75.0
"""Accuracy of the best configuration, in percent."""

VALIDATION_IMAGES = 2_000
NUM_SEARCHES = 1_000
"""Searches of each method that say how much a repeated one moves what is chosen."""

BUDGETS = (12, 24, 40)
"""Budgets of searches by kdtune, in whole trials."""

KDTUNE_SEEDS, KDTUNE_TEST_IMAGES = 5, (2_000, 10_000)
"""With which those are confirmed and tested."""

VARIANCE = 1e4 * BEST_ACCURACY_PERCENT / 100 * (1 - BEST_ACCURACY_PERCENT / 100)
"""Variance of the correctness of an image, in squared points."""


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
class SimulatedSearch:
    """A search and its confirmation, in percent.

    Attributes:
        chosen: true accuracy of what was chosen.
        scores: validation accuracies of the trials, in order of proposal.
        confirm_scores: those of what was chosen, one per seed.
    """

    chosen: float
    scores: np.ndarray
    confirm_scores: np.ndarray

    @property
    def best_score(self) -> float:
        """Score that a naive leaderboard shows."""
        return float(self.scores.max())

    @cached_property
    def trials_luck(self) -> float:
        """Luck by the trials alone."""
        return bootstrap_best_sd(self.scores)

    @cached_property
    def luck(self) -> float:
        """Luck as `kdtune.reports.tables.cells.CellData.result` has it."""
        return search_luck(self.scores, float(self.confirm_scores.std(ddof=1)))


class SimulatedMethod:
    """A distribution of true accuracies in percent, which can be searched.

    Args:
        accuracies: to be drawn from.
    """

    def __init__(self, accuracies: np.ndarray):
        self.accuracies = accuracies

    def search(self, rng: np.random.Generator, seeds: int) -> SimulatedSearch:
        """Search, confirm, choose."""
        true_accuracies = rng.choice(self.accuracies, NUM_TRIALS)
        # What a configuration makes of the validation images stays when it is trained again.
        lasting_accuracies = true_accuracies + rng.normal(
            0, validation_sd(IMAGE_VARIANCE_SHARE), NUM_TRIALS
        )
        scores = draw_validation_scores(lasting_accuracies, rng)
        top = np.argsort(-scores, kind="stable")[:NUM_CANDIDATES]
        confirm_scores = draw_validation_scores(
            np.repeat(lasting_accuracies[top, None], seeds, axis=1), rng
        )
        best = confirm_scores.mean(axis=1).argmax()
        return SimulatedSearch(float(true_accuracies[top[best]]), scores, confirm_scores[best])

    def worsened(self, points: float) -> "SimulatedMethod":
        """Return the same method, but worse by some points."""
        return SimulatedMethod(self.accuracies - points)


def validation_sd(share: float) -> float:
    """Return the sd of a validation accuracy in points from a share of an image's variance."""
    return math.sqrt(share * VARIANCE / VALIDATION_IMAGES)


def draw_validation_scores(lasting_accuracies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return validation accuracies of runs, as multiples of an image's share."""
    sd = math.hypot(validation_sd(RESIDUAL_VARIANCE_SHARE), SEED_SD_POINTS)
    noise = rng.normal(0, sd, lasting_accuracies.shape)
    correct = np.round((lasting_accuracies + noise) * VALIDATION_IMAGES / 100)
    return correct * (100 / VALIDATION_IMAGES)


def make_methods() -> list[SimulatedMethod]:
    """Return one method for each cell of the curves."""
    all_methods = []
    for cell, runs in load_recorded_runs(CURVES).items():
        surrogate = load_problems(CURVES)[cell].curves
        assert isinstance(surrogate, Surrogate)
        settings = [run.params for run in runs if not run.late_decay][:NUM_SETTINGS]
        accuracies = 100 * surrogate.predict_curves(settings).max(axis=1)
        all_methods.append(SimulatedMethod(accuracies - accuracies.max() + BEST_ACCURACY_PERCENT))
    return all_methods


class SimulatedTestImages:
    """Test images, each as hard as it is."""

    def __init__(self, rng: np.random.Generator, count: int):
        self.rng = rng
        self.difficulty = self._normal(SHARED_CORRELATION, count)

    def _normal(self, variance: float, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(variance))

    def draw_configuration(self) -> np.ndarray:
        """Return how hard each image is for a new configuration."""
        difficulty: np.ndarray = self.difficulty + self._normal(
            CONFIGURATION_CORRELATION - SHARED_CORRELATION, len(self.difficulty)
        )
        return difficulty

    def confirm_search(
        self, configuration: np.ndarray, search: SimulatedSearch, seeds: int
    ) -> CellResult:
        """Return runs of the configuration that a search chose."""
        accuracies = search.chosen + self.rng.normal(0, SEED_SD_POINTS, seeds)
        correct = {
            seed: configuration + self._normal(1 - CONFIGURATION_CORRELATION, len(configuration))
            < ndtri(accuracy / 100)
            for seed, accuracy in enumerate(accuracies, start=1)
        }
        return CellResult(correct, seeds, 0, search.luck)


def compare(a: CellResult, b: CellResult) -> Any:
    """Return the row of the report about two methods."""
    table = comparison_table({("at", "student"): a, ("fitnets", "student"): b})
    return next(table.itertuples())


def compare_plainly(
    a: CellResult, b: CellResult, searches: Sequence[SimulatedSearch], row: Any
) -> Any:
    """Return the row that there would be with luck by the trials alone, instead of `row`."""
    if all(search.trials_luck == search.luck for search in searches):
        return row
    a, b = (replace(c, search_luck=s.trials_luck) for c, s in zip((a, b), searches, strict=True))
    return compare(a, b)


@dataclass
class HitCount:
    """Number of times that something happened."""

    hits: int = 0
    total: int = 0

    def add(self, hit: bool) -> None:
        """Count a time."""
        self.hits += int(hit)
        self.total += 1

    @property
    def share(self) -> float:
        """Hits of all times."""
        return self.hits / self.total

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return math.sqrt(self.share * (1 - self.share) / self.total)


def pool_counts(counts: Iterable[HitCount]) -> HitCount:
    """All counts together."""
    all_counts = list(counts)
    return HitCount(
        sum(count.hits for count in all_counts), sum(count.total for count in all_counts)
    )


Design = tuple[int, int]
"""Test images and seeds."""

DESIGNS: list[Design] = [(images, seeds) for images in TEST_IMAGES for seeds in SEEDS]


def is_winner(row: Any) -> bool:
    """Return True if the report names a winner."""
    return str(row.verdict).startswith("better")


def compare_same_search(
    all_methods: list[SimulatedMethod], repeats: int
) -> tuple[dict[Design, HitCount], HitCount, HitCount]:
    """One search under two names.

    Returns:
        How often ours names a winner, when what was chosen is trained for each name with seeds
        of its own; and when the runs, too, are the same. And the naive leaderboard, when the 40
        configurations are trained for each name with seeds of its own.
    """
    rng = np.random.default_rng(1)
    winners = {design: HitCount() for design in DESIGNS}
    identical, naive = HitCount(), HitCount()
    for images, seeds in DESIGNS:
        for repeat in range(repeats):
            method = all_methods[repeat % len(all_methods)]
            search, test = method.search(rng, seeds), SimulatedTestImages(rng, images)
            configuration = test.draw_configuration()
            a, b = (test.confirm_search(configuration, search, seeds) for _ in range(2))
            winners[images, seeds].add(is_winner(compare(a, b)))
            if repeat < 20:
                identical.add(is_winner(compare(a, a)))
            lasting_accuracies = rng.choice(method.accuracies, NUM_TRIALS)
            lasting_accuracies += rng.normal(0, validation_sd(IMAGE_VARIANCE_SHARE), NUM_TRIALS)
            first, second = (
                draw_validation_scores(lasting_accuracies, rng).max() for _ in range(2)
            )
            naive.add(first != second)
    return winners, identical, naive


@dataclass(frozen=True)
class Findings:
    """Results for two methods with a known difference, each with its own search.

    Attributes:
        found, wrong, covered: how often the better one is found, the worse one is called better,
            the interval holds the difference; where there is none, a winner is found.
        plain: how often there is a winner, without a difference, with luck by the trials alone.
        widths: mean half widths.
        naive: how often a naive leaderboard has a winner.
        late: how often the late gain is a part of the luck.
        luck, plain_luck: means.
    """

    better_found: dict[tuple[Design, float], HitCount]
    worse_preferred: dict[tuple[Design, float], HitCount]
    interval_covers: dict[tuple[Design, float], HitCount]
    plain_winners: dict[Design, HitCount]
    widths: dict[Design, float]
    naive: HitCount
    late_gain: HitCount
    luck: float
    plain_luck: float


def compare_two_searches(all_methods: list[SimulatedMethod], repeats: int) -> Findings:
    """Two independent searches, of the same method, or of one that is worse by a gap."""
    rng = np.random.default_rng(2)
    keys = [(design, gap) for design in DESIGNS for gap in TRUE_DIFFERENCES]
    better_found, worse_preferred, interval_covers = (
        {key: HitCount() for key in keys} for _ in range(3)
    )
    widths: dict[Design, list[float]] = {design: [] for design in DESIGNS}
    plain_winners = {design: HitCount() for design in DESIGNS}
    naive, late_gain, lucks = HitCount(), HitCount(), []
    for (images, seeds), gap in keys:
        for repeat in range(repeats):
            method = all_methods[repeat % len(all_methods)]
            searches = method.search(rng, seeds), method.worsened(gap).search(rng, seeds)
            test = SimulatedTestImages(rng, images)
            a, b = (test.confirm_search(test.draw_configuration(), s, seeds) for s in searches)
            row = compare(a, b)
            key = (images, seeds), gap
            better_found[key].add(is_winner(row) if gap == 0 else row.verdict == "better_a")
            worse_preferred[key].add(row.verdict == "better_b")
            interval_covers[key].add(bool(row.low_points <= gap <= row.high_points))
            widths[key[0]].append(row.half_width_points)
            lucks.append((searches[0].luck, searches[0].trials_luck))
            late_gain.add(searches[0].luck != searches[0].trials_luck)
            if gap == 0:
                plain_winners[key[0]].add(is_winner(compare_plainly(a, b, searches, row)))
                naive.add(searches[0].best_score != searches[1].best_score)
    means = {design: float(np.mean(values)) for design, values in widths.items()}
    luck, plain_luck = np.mean(lucks, axis=0).tolist()
    return Findings(
        better_found,
        worse_preferred,
        interval_covers,
        plain_winners,
        means,
        naive,
        late_gain,
        luck,
        plain_luck,
    )


def sd_between_searches(all_methods: list[SimulatedMethod]) -> float:
    """From search to search: sd of the true accuracy of what is chosen with 5 seeds, in points."""
    rng = np.random.default_rng(3)
    chosen = [[m.search(rng, 5).chosen for _ in range(NUM_SEARCHES)] for m in all_methods]
    return math.sqrt(np.mean(np.var(chosen, axis=1)))


@dataclass(frozen=True)
class RecordedConfiguration:
    """Correctness of each test image by runs of a configuration: bool [seeds, images]."""

    name: str
    correct: np.ndarray
    validation_accuracies: np.ndarray


def read_predictions(path: Path) -> list[RecordedConfiguration]:
    """Read what `record_predictions.py` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        images = int(arrays["images"])
        names = [key.removeprefix("right_") for key in arrays.files if key.startswith("right_")]
        return [
            RecordedConfiguration(
                name,
                np.unpackbits(arrays[f"right_{name}"], axis=1, count=images).astype(bool),
                arrays[f"validation_{name}"],
            )
            for name in names
        ]


def draw_runs(
    recorded: RecordedConfiguration, seeds: np.ndarray, images: np.ndarray
) -> CellResult:
    """Return some runs on some images, without a search."""
    correct = {s: recorded.correct[row][images] for s, row in enumerate(seeds, start=1)}
    return CellResult(correct, len(seeds), 0, 0.0)


def compare_with_itself(
    recorded: list[RecordedConfiguration], draws: int
) -> dict[Design, HitCount]:
    """Return how often recorded configurations win against themselves."""
    rng = np.random.default_rng(4)
    winners = {design: HitCount() for design in DESIGNS}
    for images, seeds in DESIGNS:
        for draw in range(draws):
            configuration = recorded[draw % len(recorded)]
            if 2 * seeds > len(configuration.correct):
                continue
            order = rng.permutation(len(configuration.correct))
            image_rows = rng.integers(0, configuration.correct.shape[1], images)
            sides = (
                draw_runs(configuration, half, image_rows)
                for half in (order[:seeds], order[seeds : 2 * seeds])
            )
            winners[images, seeds].add(is_winner(compare(*sides)))
    return winners


def compare_recorded_pair(
    a: RecordedConfiguration, b: RecordedConfiguration, draws: int
) -> tuple[float, dict[Design, HitCount], dict[Design, HitCount]]:
    """Two recorded configurations: the difference by all runs and images, in points.

    Returns:
        Also how often the better one is found, and how often the interval holds the difference.
    """
    rng = np.random.default_rng(5)
    true_difference = 100 * float(a.correct.mean() - b.correct.mean())
    better_verdict = "better_a" if true_difference > 0 else "better_b"
    better_found, interval_covers = ({design: HitCount() for design in DESIGNS} for _ in range(2))
    shared = min(len(a.correct), len(b.correct))
    for images, seeds in DESIGNS:
        for _ in range(draws):
            run_rows = rng.integers(0, shared, seeds)
            image_rows = rng.integers(0, a.correct.shape[1], images)
            row = compare(draw_runs(a, run_rows, image_rows), draw_runs(b, run_rows, image_rows))
            better_found[images, seeds].add(row.verdict == better_verdict)
            interval_covers[images, seeds].add(
                bool(row.low_points <= true_difference <= row.high_points)
            )
    return true_difference, better_found, interval_covers


def describe_variance(a: RecordedConfiguration, b: RecordedConfiguration) -> str:
    """Return the parts of the variance of two recorded configurations, and their forecasts."""
    estimated = estimate_mean(100.0 * a.correct.T - 100.0 * b.correct.T)
    p = (a.correct.mean() + b.correct.mean()) / 2
    of_image = 2e4 * p * (1 - p) / estimated.images
    residual, seeds = estimated.variance_residual, estimated.seeds
    of_seed = math.sqrt(max(estimated.variance_seeds - residual, 0) * seeds / 2)
    validation = 100 * math.sqrt(np.mean([c.validation_accuracies.var(ddof=1) for c in (a, b)]))
    return (
        f"At {100 * p:.1f} % accuracy, of an image's variance "
        f"{estimated.variance_images / of_image:.2f} are the configurations' "
        f"({IMAGE_VARIANCE_SHARE} forecast) and {residual * seeds / of_image:.2f} the runs' "
        f"({RESIDUAL_VARIANCE_SHARE}); seeds move a test accuracy by {of_seed:.2f} points "
        f"({SEED_SD_POINTS}), and a validation accuracy, its images included, by "
        f"{validation:.2f} (sd)."
    )


TrialScores = dict[SimulatedTrial, float]
"""Best validation accuracies in percent, in order of proposal."""


def search_with_kdtune(cell: Cell, seed: int) -> dict[int, TrialScores]:
    """Search a cell as kdtune does; the trials by budget."""
    simulation = Simulation({cell: load_problems(CURVES)[cell]}, RECIPES["kdtune"], seed)
    scores = {}
    for budget in BUDGETS:
        while simulation.epochs_used[cell] < budget * simulation.epochs:
            simulation.finish_epoch()
        tried = [trial for trial in simulation.trials[cell] if trial.epoch]
        scores[budget] = {trial: 100 * trial.best for trial in tried}
    return scores


def confirm_with_surrogate(
    cell: Cell, trials: TrialScores, rng: np.random.Generator
) -> SimulatedSearch:
    """Train the best again, choose."""
    problem = load_problems(CURVES)[cell]
    scores, all_trials = np.array(list(trials.values())), list(trials)
    top = [all_trials[place] for place in np.argsort(-scores, kind="stable")[:NUM_CANDIDATES]]
    runs = [
        [problem.curves.sample_run(t.settings, rng)[0].max() for _ in range(KDTUNE_SEEDS)]
        for t in top
    ]
    confirm_scores = 100 * np.array(runs)
    best = confirm_scores.mean(axis=1).argmax()
    return SimulatedSearch(
        BEST_ACCURACY_PERCENT + 100 * (top[best].true_best - problem.optimum),
        scores,
        confirm_scores[best],
    )


def compare_kdtune_searches(searches: int) -> pd.DataFrame:
    """Compare searches by kdtune, every two of a cell.

    Returns:
        One row a pair, budget and number of test images: what was searched, by which two searches;
        whether there is a winner, and the half width, with luck and with luck by the trials
        alone; whether the first wins if the second is worse by a point; means of both over the
        two; half the squared difference of what was chosen, of which the mean is the variance from
        search to search; share of luck with late gain; trials.
    """
    rng = np.random.default_rng(6)
    rows = []
    for number, cell in enumerate(load_recorded_runs(CURVES)):
        searches_by_seed = [
            search_with_kdtune(cell, number * searches + seed) for seed in range(searches)
        ]
        for (i, j), budget in product(combinations(range(searches), 2), BUDGETS):
            pair = [confirm_with_surrogate(cell, searches_by_seed[k][budget], rng) for k in (i, j)]
            for images in KDTUNE_TEST_IMAGES:
                test = SimulatedTestImages(rng, images)
                a, b = (
                    test.confirm_search(test.draw_configuration(), s, KDTUNE_SEEDS) for s in pair
                )
                row = compare(a, b)
                plain_row = compare_plainly(a, b, pair, row)
                worse_search = replace(pair[1], chosen=pair[1].chosen - 1)
                worse_row = compare(
                    a, test.confirm_search(test.draw_configuration(), worse_search, KDTUNE_SEEDS)
                )
                rows.append(
                    {
                        "cell": "-".join(cell),
                        "first": i,
                        "second": j,
                        "budget": budget,
                        "images": images,
                        "winner": is_winner(row),
                        "winner_plain": is_winner(plain_row),
                        "found": worse_row.verdict == "better_a",
                        "half_width": row.half_width_points,
                        "half_width_plain": plain_row.half_width_points,
                        "luck": np.mean([s.luck for s in pair]),
                        "luck_plain": np.mean([s.trials_luck for s in pair]),
                        "variance": (pair[0].chosen - pair[1].chosen) ** 2 / 2,
                        "late": np.mean([s.luck != s.trials_luck for s in pair]),
                        "trials": np.mean([len(s.scores) for s in pair]),
                    }
                )
    return pd.DataFrame(rows)


def error_of_share(pairs: pd.DataFrame, column: str) -> float:
    """Return the jackknife standard error of a share among pairs that share searches."""
    numbers = sorted({*pairs["first"], *pairs["second"]})
    shares_without = [
        pairs.loc[(pairs["first"] != n) & (pairs["second"] != n), column].mean() for n in numbers
    ]
    return math.sqrt((len(numbers) - 1) * np.var(shares_without))


def matching_search_sd(images: int, seeds: int, half_width: float) -> float:
    """Return the `SEARCH_SD_POINTS` of a forecast with this half width, or 0 if it is wider."""
    forecast = expected_error(images, seeds)

    def excess(luck: float) -> float:
        return replace(forecast, variance_search=2 * luck**2).half_width - half_width

    return float(brentq(excess, 0, 10)) if excess(0) < 0 else 0.0


def print_table(title: str, shares: Mapping[Design, HitCount]) -> None:
    """Print percentages, a row for each number of test images."""
    print(f"\n{title}\n\n| test images | {' | '.join(f'{s} seeds' for s in SEEDS)} |")
    print("|---" * (len(SEEDS) + 1) + "|")
    for images in TEST_IMAGES:
        row_counts = (shares[images, seeds] for seeds in SEEDS)
        cells = (f"{100 * count.share:.1f}" if count.total else "" for count in row_counts)
        print(f"| {images:,} | {' | '.join(cells)} |", flush=True)


def by_simulation(repeats: int) -> dict[str, float]:
    """Print and return the figures of the simulation."""
    all_methods = make_methods()
    same_winners, identical, naive_alone = compare_same_search(all_methods, repeats)
    print_table("A winner of one search under two names, % of repeats", same_winners)
    print(f"\nThe same with the same runs: {100 * identical.share:.1f} %.")
    findings = compare_two_searches(all_methods, repeats)
    found_by_gap = {
        gap: {p: findings.better_found[p, gap] for p in DESIGNS} for gap in TRUE_DIFFERENCES
    }
    interval_covers = {
        p: pool_counts(findings.interval_covers[p, gap] for gap in TRUE_DIFFERENCES)
        for p in DESIGNS
    }
    print_table("A winner of two searches of one method, % of repeats", found_by_gap[0.0])
    print_table("The same with luck by the trials alone, % of repeats", findings.plain_winners)
    for gap in TRUE_DIFFERENCES[1:]:
        print_table(f"The better one is found, by {gap:g} points, % of repeats", found_by_gap[gap])
    print_table("The interval holds the true difference, % of repeats", interval_covers)
    worse_preferred = pool_counts(
        findings.worse_preferred[p, gap] for p in DESIGNS for gap in TRUE_DIFFERENCES[1:]
    )
    print(f"\nThe worse one is called better: {100 * worse_preferred.share:.2f} %.")
    print(
        "\nHalf width in points, mean of the simulation (forecast before the run; OF_SEARCH with "
        "which the forecast would be the same)\n"
    )
    print(f"| test images | {' | '.join(f'{s} seeds' for s in SEEDS)} |\n|---|---|---|---|")
    for images in TEST_IMAGES:
        cells = (
            f"{findings.widths[images, s]:.2f} ({expected_error(images, s).half_width:.2f}; "
            f"{matching_search_sd(images, s, findings.widths[images, s]):.2f})"
            for s in SEEDS
        )
        print(f"| {images:,} | {' | '.join(cells)} |")
    between_searches = sd_between_searches(all_methods)
    print(
        f"\nFrom search to search what is chosen differs by {between_searches:.2f} points (sd); "
        f"luck, as estimated, is {findings.luck:.2f} ({SEARCH_SD_POINTS} forecast), by the trials "
        f"alone {findings.plain_luck:.2f}; late gain counts in "
        f"{100 * findings.late_gain.share:.1f} %.\n"
        f"The naive leaderboard names a winner of one search under two names in "
        f"{100 * naive_alone.share:.1f} %, of two searches in {100 * findings.naive.share:.1f} %."
    )
    same_total, two_total, coverage = (
        pool_counts(counts.values())
        for counts in (same_winners, found_by_gap[0.0], interval_covers)
    )
    print(
        f"Standard errors in points of percent: one search {100 * same_total.error:.2f}, two "
        f"searches {100 * two_total.error:.2f}, coverage {100 * coverage.error:.2f}, an entry of "
        f"a table up to {50 / math.sqrt(repeats):.1f}."
    )
    return {
        "aa_rate_naive": naive_alone.share,
        "aa_rate_naive_two_searches": findings.naive.share,
        "aa_rate": same_total.share,
        "aa_rate_identical": identical.share,
        "aa_rate_two_searches": two_total.share,
        "power_1pt_5seeds": found_by_gap[1.0][10_000, 5].share,
        "coverage": coverage.share,
    }


def by_recorded_runs(draws: int) -> dict[str, float]:
    """Print and return the figures of recorded runs."""
    if not PREDICTIONS.is_file():
        print(f"\nNo recorded runs: {PREDICTIONS.relative_to(HERE)} is missing.")
        return {}
    recorded = read_predictions(PREDICTIONS)
    self_winners = compare_with_itself(recorded, draws)
    names = ", ".join(
        f"{configuration.name} {len(configuration.correct)} runs" for configuration in recorded
    )
    print_table(
        f"A winner of a recorded configuration and itself, % of draws ({names})", self_winners
    )
    figures = {"aa_rate_recorded": pool_counts(self_winners.values()).share}
    for a, b in combinations(recorded, 2):
        true_difference, better_found, interval_covers = compare_recorded_pair(a, b, draws)
        pair = f"{a.name} minus {b.name}, {true_difference:.2f} points by all runs and images"
        print_table(f"The better one is found, % of draws ({pair})", better_found)
        print_table("The interval holds that difference, % of draws", interval_covers)
        print(f"\n{describe_variance(a, b)}")
        figures[f"coverage_recorded_{a.name}_{b.name}"] = pool_counts(
            interval_covers.values()
        ).share
    return figures


def by_kdtune(searches: int) -> dict[str, float]:
    """Print what searches by kdtune itself give; returns its figures."""
    pairs = compare_kdtune_searches(searches)
    print(
        f"\nTwo searches of one cell by kdtune itself, {searches} of each cell, {KDTUNE_SEEDS} "
        "seeds; plain: with luck by the trials alone\n"
    )
    print(
        "| whole trials | test images | winners %, plain | winners % ± standard error "
        "| 1 point is found % | half width, plain | half width | forecast | OF_SEARCH, plain "
        "| OF_SEARCH |"
    )
    print("|---" * 10 + "|")
    for (budget, images), group in pairs.groupby(["budget", "images"]):
        widths = group["half_width_plain"].mean(), group["half_width"].mean()
        plain, luck = (matching_search_sd(images, KDTUNE_SEEDS, width) for width in widths)
        print(
            f"| {budget} | {images:,} | {100 * group['winner_plain'].mean():.1f} "
            f"| {100 * group['winner'].mean():.1f} ± {100 * error_of_share(group, 'winner'):.1f} "
            f"| {100 * group['found'].mean():.1f} | {widths[0]:.2f} | {widths[1]:.2f} "
            f"| {expected_error(images, KDTUNE_SEEDS).half_width:.2f} | {plain:.2f} | {luck:.2f} |"
        )
    print(
        "\nFrom search to search, in points: sd of the true accuracy of what is chosen, and the "
        "luck that is estimated\n"
    )
    print(
        "| whole trials | cell | trials | true | plain | luck | late gain counts % "
        "| winners %, plain | winners % |"
    )
    print("|---" * 9 + "|")
    all_cells = pairs.assign(cell="all")
    for (budget, cell), group in pd.concat([pairs, all_cells]).groupby(
        ["budget", "cell"], sort=False
    ):
        print(
            f"| {budget} | {cell} | {group['trials'].mean():.0f} "
            f"| {math.sqrt(group['variance'].mean()):.2f} | {group['luck_plain'].mean():.2f} "
            f"| {group['luck'].mean():.2f} | {100 * group['late'].mean():.0f} "
            f"| {100 * group['winner_plain'].mean():.1f} | {100 * group['winner'].mean():.1f} |"
        )
    few_trials, _, many_trials = (
        pairs.loc[pairs["budget"] == budget, "winner"].mean() for budget in BUDGETS
    )
    largest = pairs[
        (pairs["budget"] == max(BUDGETS)) & (pairs["images"] == max(KDTUNE_TEST_IMAGES))
    ]
    return {
        "aa_rate_kdtune_searches": many_trials,
        "aa_rate_kdtune_searches_12_trials": few_trials,
        "power_1pt_5seeds_kdtune_searches": largest["found"].mean(),
    }


def main() -> None:
    """Simulate, replay, search, and print tables and a line of JSON."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("--repeats", type=int, default=300, help="of every combination")
    parser.add_argument("--searches", type=int, default=10, help="by kdtune, of every cell")
    arguments = parser.parse_args()
    figures = (
        by_simulation(arguments.repeats)
        | by_recorded_runs(arguments.repeats // 2)
        | by_kdtune(arguments.searches)
    )
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    silence_libraries()
    main()
