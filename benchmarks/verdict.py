"""How often a report names a winner where there is none, and how often it finds one.

    make bench-verdict

A naive leaderboard (the winner is who had the best single validation accuracy of the search)
against ours: the 3 best of a search are trained again with S fresh seeds, the mean validation
accuracy chooses among them, and `kdtune.reports.tables.comparison` compares on the test images.
First in a simulation, then on recorded predictions (``predictions/*.npz``, see
`record_predictions.py`), then with searches by kdtune itself.

The simulation. A search has 40 trials. Their true accuracies are drawn from those of the random
settings of a cell of ``curves/fashion-mnist.jsonl`` (the four cells in turn): the noise-free ones
that the surrogate of `curves.py` gives, since the recorded ones contain the noise of their runs,
which is added here; moved so that the best one is at 75 %. Whether an image is classified rightly
is a threshold on a sum of normal variables: how hard the image is for all, what the configuration
makes of it, what the run makes of it; weights are such that of the variance p · (1 − p)
configurations share 58 % and runs of one configuration 70 %, as
`kdtune.reports.tables.statistics.expected` has it. Each run also has a normal effect on its
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
from recipes import RECIPES, Recipe, Trial
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from search import CURVES, problem, quiet, simulate

from kdtune.log.events import Cell
from kdtune.reports.tables.comparison import Confirmed, comparison_table
from kdtune.reports.tables.statistics import (
    OF_IMAGES,
    OF_REST,
    OF_SEARCH,
    OF_SEED,
    estimate,
    expected,
    luck_of_search,
    search_luck,
)
from kdtune.tuning.planning.recorded_curves import read_runs

HERE = Path(__file__).parent
PREDICTIONS = HERE / "predictions" / "fashion-mnist.npz"

TEST_IMAGES = (500, 2_000, 10_000)
SEEDS = (3, 5, 10)
GAPS = (0.0, 0.5, 1.0)
"""True differences, in points."""

TRIALS, TOP = 40, 3
SETTINGS = 80
"""Random settings of a cell of the curves; what follows are repetitions of some."""

ACCURACY = 75.0
"""Of the best configuration that there is, in percent."""

VALIDATION_IMAGES = 2_000
SEARCHES = 1_000
"""Searches of each method that say how much a repeated one moves what is chosen."""

BUDGETS = (12, 24, 40)
"""Of searches by kdtune, in whole trials."""

OWN_SEEDS, OWN_IMAGES = 5, (2_000, 10_000)
"""With which those are confirmed and tested."""

VARIANCE = 1e4 * ACCURACY / 100 * (1 - ACCURACY / 100)
"""Of whether an image is classified rightly, in squared points."""


def latent_correlation(share: float) -> float:
    """The correlation of two normal variables whose being below a threshold correlates so much."""
    p = ACCURACY / 100
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def excess(correlation: float) -> float:
        below = ndtr((ndtri(p) - math.sqrt(correlation) * nodes) / math.sqrt(1 - correlation))
        return float((weights * below**2).sum() - p**2 - share * p * (1 - p))

    return float(brentq(excess, 0, 0.99))


OF_ALL = latent_correlation(1 - OF_IMAGES - OF_REST)
OF_CONFIGURATION = latent_correlation(1 - OF_REST)


@dataclass(frozen=True)
class Search:
    """A search and its confirmation, in percent.

    Attributes:
        chosen: true accuracy of what was chosen.
        scores: validation accuracies of the trials, in order of proposal.
        again: those of what was chosen, one a seed.
    """

    chosen: float
    scores: np.ndarray
    again: np.ndarray

    @property
    def best(self) -> float:
        """What a naive leaderboard shows."""
        return float(self.scores.max())

    @cached_property
    def plain(self) -> float:
        """Luck by the trials alone."""
        return search_luck(self.scores)

    @cached_property
    def luck(self) -> float:
        """Luck as `kdtune.reports.tables.confirmed.confirmed_cells` has it."""
        return luck_of_search(self.scores, float(self.again.std(ddof=1)))


class Method:
    """What can be searched: a distribution of true accuracies in percent.

    Args:
        accuracies: to be drawn from.
    """

    def __init__(self, accuracies: np.ndarray):
        self.accuracies = accuracies

    def search(self, random: np.random.Generator, seeds: int) -> Search:
        """Search, confirm, choose."""
        truth = random.choice(self.accuracies, TRIALS)
        # What a configuration makes of the validation images stays when it is trained again.
        lasting = truth + random.normal(0, spread(OF_IMAGES), TRIALS)
        scores = validated(lasting, random)
        top = np.argsort(-scores, kind="stable")[:TOP]
        again = validated(np.repeat(lasting[top, None], seeds, axis=1), random)
        best = again.mean(axis=1).argmax()
        return Search(float(truth[top[best]]), scores, again[best])

    def moved(self, points: float) -> "Method":
        """The same method, but worse by so much."""
        return Method(self.accuracies - points)


def spread(share: float) -> float:
    """Standard deviation of a validation accuracy in points, of a share of an image's variance."""
    return math.sqrt(share * VARIANCE / VALIDATION_IMAGES)


def validated(lasting: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Validation accuracies of runs, such as that many images can have."""
    noise = random.normal(0, math.hypot(spread(OF_REST), OF_SEED), lasting.shape)
    return np.round((lasting + noise) * VALIDATION_IMAGES / 100) * (100 / VALIDATION_IMAGES)


def methods() -> list[Method]:
    """One method for each cell of the curves."""
    own = []
    for cell, runs in read_runs(CURVES).items():
        _, surrogate, _, _ = problem(CURVES, cell, False)
        settings = [run.settings for run in runs if not run.late][:SETTINGS]
        accuracies = 100 * surrogate.curves(settings).max(axis=1)
        own.append(Method(accuracies - accuracies.max() + ACCURACY))
    return own


class Images:
    """Test images, each as hard as it is."""

    def __init__(self, random: np.random.Generator, count: int):
        self.random = random
        self.hard = self._normal(OF_ALL, count)

    def _normal(self, variance: float, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape, np.float32) * np.float32(math.sqrt(variance))

    def configuration(self) -> np.ndarray:
        """What is hard for a configuration."""
        hard: np.ndarray = self.hard + self._normal(OF_CONFIGURATION - OF_ALL, len(self.hard))
        return hard

    def confirm(self, configuration: np.ndarray, search: Search, seeds: int) -> Confirmed:
        """Runs of the configuration that a search has chosen."""
        accuracies = search.chosen + self.random.normal(0, OF_SEED, seeds)
        right = {
            seed: configuration + self._normal(1 - OF_CONFIGURATION, len(configuration))
            < ndtri(accuracy / 100)
            for seed, accuracy in enumerate(accuracies, start=1)
        }
        return Confirmed(right, seeds, 0, search.luck)


def compare(a: Confirmed, b: Confirmed) -> Any:
    """The row of the report on two methods."""
    table = comparison_table({("at", "student"): a, ("fitnets", "student"): b})
    return next(table.itertuples())


def compare_plainly(a: Confirmed, b: Confirmed, searches: Sequence[Search], row: Any) -> Any:
    """The row that there would be with luck by the trials alone, instead of this one."""
    if all(search.plain == search.luck for search in searches):
        return row
    first, second = searches
    return compare(replace(a, luck=first.plain), replace(b, luck=second.plain))


@dataclass
class Count:
    """How often something happened, of how many times."""

    hits: int = 0
    times: int = 0

    def add(self, hit: bool) -> None:
        """Count a time."""
        self.hits += int(hit)
        self.times += 1

    @property
    def share(self) -> float:
        """Hits of all times."""
        return self.hits / self.times

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return math.sqrt(self.share * (1 - self.share) / self.times)


def pooled(counts: Iterable[Count]) -> Count:
    """All counts together."""
    own = list(counts)
    return Count(sum(count.hits for count in own), sum(count.times for count in own))


Place = tuple[int, int]
"""Test images and seeds."""

PLACES: list[Place] = [(images, seeds) for images in TEST_IMAGES for seeds in SEEDS]


def is_winner(row: Any) -> bool:
    """Whether the report names one."""
    return str(row.verdict).startswith("better")


def same_search(own: list[Method], repeats: int) -> tuple[dict[Place, Count], Count, Count]:
    """One search under two names.

    Returns:
        How often ours names a winner, when what was chosen is trained for each name with seeds
        of its own; and when the runs, too, are the same. And the naive leaderboard, when the 40
        configurations are trained for each name with seeds of its own.
    """
    random = np.random.default_rng(1)
    winners = {place: Count() for place in PLACES}
    identical, naive = Count(), Count()
    for images, seeds in PLACES:
        for repeat in range(repeats):
            method = own[repeat % len(own)]
            search, test = method.search(random, seeds), Images(random, images)
            configuration = test.configuration()
            a, b = (test.confirm(configuration, search, seeds) for _ in range(2))
            winners[images, seeds].add(is_winner(compare(a, b)))
            if repeat < 20:
                identical.add(is_winner(compare(a, a)))
            lasting = random.choice(method.accuracies, TRIALS)
            lasting += random.normal(0, spread(OF_IMAGES), TRIALS)
            first, second = (validated(lasting, random).max() for _ in range(2))
            naive.add(first != second)
    return winners, identical, naive


@dataclass(frozen=True)
class Findings:
    """Of two methods with a known difference, each with a search of its own.

    Attributes:
        found, wrong, covered: how often the better one is found, the worse one is called better,
            the interval holds the difference; where there is none, a winner is found.
        plain: how often there is a winner, without a difference, with luck by the trials alone.
        widths: mean half widths.
        naive: how often a naive leaderboard has a winner.
        late: how often the late gain is a part of the luck.
        luck, plain_luck: means.
    """

    found: dict[tuple[Place, float], Count]
    wrong: dict[tuple[Place, float], Count]
    covered: dict[tuple[Place, float], Count]
    plain: dict[Place, Count]
    widths: dict[Place, float]
    naive: Count
    late: Count
    luck: float
    plain_luck: float


def two_searches(own: list[Method], repeats: int) -> Findings:
    """Two independent searches, of the same method, or of one that is worse by a gap."""
    random = np.random.default_rng(2)
    keys = [(place, gap) for place in PLACES for gap in GAPS]
    found, wrong, covered = ({key: Count() for key in keys} for _ in range(3))
    widths: dict[Place, list[float]] = {place: [] for place in PLACES}
    plain = {place: Count() for place in PLACES}
    naive, late, lucks = Count(), Count(), []
    for (images, seeds), gap in keys:
        for repeat in range(repeats):
            method = own[repeat % len(own)]
            searches = method.search(random, seeds), method.moved(gap).search(random, seeds)
            test = Images(random, images)
            a, b = (test.confirm(test.configuration(), s, seeds) for s in searches)
            row = compare(a, b)
            key = (images, seeds), gap
            found[key].add(is_winner(row) if gap == 0 else row.verdict == "better_a")
            wrong[key].add(row.verdict == "better_b")
            covered[key].add(bool(row.low_points <= gap <= row.high_points))
            widths[key[0]].append(row.half_width_points)
            lucks.append((searches[0].luck, searches[0].plain))
            late.add(searches[0].luck != searches[0].plain)
            if gap == 0:
                plain[key[0]].add(is_winner(compare_plainly(a, b, searches, row)))
                naive.add(searches[0].best != searches[1].best)
    means = {place: float(np.mean(values)) for place, values in widths.items()}
    luck, plain_luck = np.mean(lucks, axis=0).tolist()
    return Findings(found, wrong, covered, plain, means, naive, late, luck, plain_luck)


def spread_of_searches(own: list[Method]) -> float:
    """From search to search: sd of the true accuracy of what is chosen with 5 seeds, in points."""
    random = np.random.default_rng(3)
    chosen = [[m.search(random, 5).chosen for _ in range(SEARCHES)] for m in own]
    return math.sqrt(np.mean(np.var(chosen, axis=1)))


@dataclass(frozen=True)
class Recorded:
    """Whether runs of a configuration classify each test image rightly: bool [seeds, images]."""

    name: str
    right: np.ndarray
    validation: np.ndarray


def read_predictions(path: Path) -> list[Recorded]:
    """Read what `record_predictions.py` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        images = int(arrays["images"])
        names = [key.removeprefix("right_") for key in arrays.files if key.startswith("right_")]
        return [
            Recorded(
                name,
                np.unpackbits(arrays[f"right_{name}"], axis=1, count=images).astype(bool),
                arrays[f"validation_{name}"],
            )
            for name in names
        ]


def drawn(recorded: Recorded, seeds: np.ndarray, images: np.ndarray) -> Confirmed:
    """Some runs on some images, without a search."""
    right = {s: recorded.right[own][images] for s, own in enumerate(seeds, start=1)}
    return Confirmed(right, len(seeds), 0, 0.0)


def recorded_alone(recorded: list[Recorded], draws: int) -> dict[Place, Count]:
    """How often recorded configurations win against themselves."""
    random = np.random.default_rng(4)
    winners = {place: Count() for place in PLACES}
    for images, seeds in PLACES:
        for draw in range(draws):
            own = recorded[draw % len(recorded)]
            if 2 * seeds > len(own.right):
                continue
            order = random.permutation(len(own.right))
            some = random.integers(0, own.right.shape[1], images)
            sides = (drawn(own, half, some) for half in (order[:seeds], order[seeds : 2 * seeds]))
            winners[images, seeds].add(is_winner(compare(*sides)))
    return winners


def recorded_pair(
    a: Recorded, b: Recorded, draws: int
) -> tuple[float, dict[Place, Count], dict[Place, Count]]:
    """Two recorded configurations: the difference by all runs and images, in points.

    Returns:
        Also how often the better one is found, and how often the interval holds the difference.
    """
    random = np.random.default_rng(5)
    truth = 100 * float(a.right.mean() - b.right.mean())
    right_one = "better_a" if truth > 0 else "better_b"
    found, covered = ({place: Count() for place in PLACES} for _ in range(2))
    shared = min(len(a.right), len(b.right))
    for images, seeds in PLACES:
        for _ in range(draws):
            runs = random.integers(0, shared, seeds)
            some = random.integers(0, a.right.shape[1], images)
            row = compare(drawn(a, runs, some), drawn(b, runs, some))
            found[images, seeds].add(row.verdict == right_one)
            covered[images, seeds].add(bool(row.low_points <= truth <= row.high_points))
    return truth, found, covered


def parts(a: Recorded, b: Recorded) -> str:
    """What the variance of two recorded configurations consists of, beside what is forecast."""
    found = estimate(100.0 * a.right.T - 100.0 * b.right.T)
    p = (a.right.mean() + b.right.mean()) / 2
    of_image = 2e4 * p * (1 - p) / found.images
    of_seed = math.sqrt(max(found.v_seeds - found.v_rest, 0) * found.seeds / 2)
    validation = 100 * math.sqrt(np.mean([own.validation.var(ddof=1) for own in (a, b)]))
    return (
        f"At {100 * p:.1f} % accuracy, of an image's variance {found.v_images / of_image:.2f} are "
        f"the configurations' ({OF_IMAGES} forecast) and "
        f"{found.v_rest * found.seeds / of_image:.2f} the runs' ({OF_REST}); seeds move a test "
        f"accuracy by {of_seed:.2f} points ({OF_SEED}), and a validation accuracy, its images "
        f"included, by {validation:.2f} (sd)."
    )


Trials = dict[Trial, float]
"""Best validation accuracies in percent, in order of proposal."""


class Watched:
    """Kdtune's recipe; keeps what is proposed and reported.

    Args:
        about: what the recipe is made from.
    """

    def __init__(self, *about: Any):
        self._recipe = RECIPES["kdtune"](*about)
        self._trials: list[Trial] = []
        self._reports: list[tuple[Trial, float]] = []

    def suggest(self) -> Trial:
        """See `Recipe`."""
        self._trials.append(self._recipe.suggest())
        return self._trials[-1]

    def report(self, trial: Trial, accuracy: float, best: float) -> bool:
        """See `Recipe`."""
        self._reports.append((trial, best))
        return self._recipe.report(trial, accuracy, best)

    def after(self, epochs: int) -> Trials:
        """What a search is that ends after so many."""
        bests = dict(self._reports[:epochs])
        return {trial: 100 * bests[trial] for trial in self._trials if trial in bests}


def searched(cell: Cell, seed: int) -> dict[int, Trials]:
    """Search a cell as kdtune does; the trials by budget."""
    watched: list[Watched] = []

    def build(*about: Any) -> Recipe:
        watched.append(Watched(*about))
        return watched[0]

    of = CURVES, cell, False
    simulate(of, build, max(BUDGETS), seed)
    return {budget: watched[0].after(budget * problem(*of)[3]) for budget in BUDGETS}


def confirmed(cell: Cell, trials: Trials, random: np.random.Generator) -> Search:
    """Train the best again, choose."""
    _, surrogate, optimum, _ = problem(CURVES, cell, False)
    scores, known = np.array(list(trials.values())), list(trials)
    top = [known[place] for place in np.argsort(-scores, kind="stable")[:TOP]]
    runs = [[surrogate.draw(t.settings, random)[0].max() for _ in range(OWN_SEEDS)] for t in top]
    again = 100 * np.array(runs)
    best = again.mean(axis=1).argmax()
    return Search(ACCURACY + 100 * (top[best].truth - optimum), scores, again[best])


def own_pairs(searches: int) -> pd.DataFrame:
    """Compare searches by kdtune, every two of a cell.

    Returns:
        One row a pair, budget and number of test images: what was searched, by which two searches;
        whether there is a winner, and the half width, with luck and with luck by the trials
        alone; whether the first wins if the second is worse by a point; means of both over the
        two; half the squared difference of what was chosen, of which the mean is the variance from
        search to search; share of luck with late gain; trials.
    """
    random = np.random.default_rng(6)
    rows = []
    for number, cell in enumerate(read_runs(CURVES)):
        found = [searched(cell, number * searches + seed) for seed in range(searches)]
        for (i, j), budget in product(combinations(range(searches), 2), BUDGETS):
            pair = [confirmed(cell, found[k][budget], random) for k in (i, j)]
            for images in OWN_IMAGES:
                test = Images(random, images)
                a, b = (test.confirm(test.configuration(), s, OWN_SEEDS) for s in pair)
                row = compare(a, b)
                plain = compare_plainly(a, b, pair, row)
                worse = replace(pair[1], chosen=pair[1].chosen - 1)
                against = compare(a, test.confirm(test.configuration(), worse, OWN_SEEDS))
                rows.append(
                    {
                        "cell": "-".join(cell),
                        "first": i,
                        "second": j,
                        "budget": budget,
                        "images": images,
                        "winner": is_winner(row),
                        "winner_plain": is_winner(plain),
                        "found": against.verdict == "better_a",
                        "half_width": row.half_width_points,
                        "half_width_plain": plain.half_width_points,
                        "luck": np.mean([s.luck for s in pair]),
                        "luck_plain": np.mean([s.plain for s in pair]),
                        "variance": (pair[0].chosen - pair[1].chosen) ** 2 / 2,
                        "late": np.mean([s.luck != s.plain for s in pair]),
                        "trials": np.mean([len(s.scores) for s in pair]),
                    }
                )
    return pd.DataFrame(rows)


def error_of_share(pairs: pd.DataFrame, column: str) -> float:
    """Standard error of a share among pairs that share searches, by leaving out one at a time."""
    numbers = sorted({*pairs["first"], *pairs["second"]})
    without = [
        pairs.loc[(pairs["first"] != n) & (pairs["second"] != n), column].mean() for n in numbers
    ]
    return math.sqrt((len(numbers) - 1) * np.var(without))


def matching(images: int, seeds: int, half_width: float) -> float:
    """The `OF_SEARCH` with which the forecast has this half width; 0 if it is wider anyway."""
    forecast = expected(images, seeds)

    def excess(luck: float) -> float:
        return replace(forecast, v_search=2 * luck**2).half_width - half_width

    return float(brentq(excess, 0, 10)) if excess(0) < 0 else 0.0


def print_table(title: str, shares: Mapping[Place, Count]) -> None:
    """Print percentages, a row for each number of test images."""
    print(f"\n{title}\n\n| test images | {' | '.join(f'{s} seeds' for s in SEEDS)} |")
    print("|---" * (len(SEEDS) + 1) + "|")
    for images in TEST_IMAGES:
        own = (shares[images, seeds] for seeds in SEEDS)
        cells = (f"{100 * count.share:.1f}" if count.times else "" for count in own)
        print(f"| {images:,} | {' | '.join(cells)} |", flush=True)


def by_simulation(repeats: int) -> dict[str, float]:
    """Print what the simulation gives; returns its figures."""
    own = methods()
    alone, identical, naive_alone = same_search(own, repeats)
    print_table("A winner of one search under two names, % of repeats", alone)
    print(f"\nThe same with the same runs: {100 * identical.share:.1f} %.")
    findings = two_searches(own, repeats)
    at = {gap: {p: findings.found[p, gap] for p in PLACES} for gap in GAPS}
    covered = {p: pooled(findings.covered[p, gap] for gap in GAPS) for p in PLACES}
    print_table("A winner of two searches of one method, % of repeats", at[0.0])
    print_table("The same with luck by the trials alone, % of repeats", findings.plain)
    for gap in GAPS[1:]:
        print_table(f"The better one is found, by {gap:g} points, % of repeats", at[gap])
    print_table("The interval holds the true difference, % of repeats", covered)
    wrong = pooled(findings.wrong[p, gap] for p in PLACES for gap in GAPS[1:])
    print(f"\nThe worse one is called better: {100 * wrong.share:.2f} %.")
    print(
        "\nHalf width in points, mean of the simulation (forecast before the run; OF_SEARCH with "
        "which the forecast would be the same)\n"
    )
    print(f"| test images | {' | '.join(f'{s} seeds' for s in SEEDS)} |\n|---|---|---|---|")
    for images in TEST_IMAGES:
        cells = (
            f"{findings.widths[images, s]:.2f} ({expected(images, s).half_width:.2f}; "
            f"{matching(images, s, findings.widths[images, s]):.2f})"
            for s in SEEDS
        )
        print(f"| {images:,} | {' | '.join(cells)} |")
    print(
        f"\nFrom search to search what is chosen differs by {spread_of_searches(own):.2f} points "
        f"(sd); luck, as estimated, is {findings.luck:.2f} ({OF_SEARCH} forecast), by the "
        f"trials alone {findings.plain_luck:.2f}; late gain counts in "
        f"{100 * findings.late.share:.1f} %.\n"
        f"The naive leaderboard names a winner of one search under two names in "
        f"{100 * naive_alone.share:.1f} %, of two searches in {100 * findings.naive.share:.1f} %."
    )
    one, two, held = (pooled(counts.values()) for counts in (alone, at[0.0], covered))
    print(
        f"Standard errors in points of percent: one search {100 * one.error:.2f}, two "
        f"searches {100 * two.error:.2f}, coverage {100 * held.error:.2f}, an entry of a table up "
        f"to {50 / math.sqrt(repeats):.1f}."
    )
    return {
        "aa_rate_naive": naive_alone.share,
        "aa_rate_naive_two_searches": findings.naive.share,
        "aa_rate": one.share,
        "aa_rate_identical": identical.share,
        "aa_rate_two_searches": two.share,
        "power_1pt_5seeds": at[1.0][10_000, 5].share,
        "coverage": held.share,
    }


def by_recorded_runs(draws: int) -> dict[str, float]:
    """Print what recorded runs give; returns its figures."""
    if not PREDICTIONS.is_file():
        print(f"\nNo recorded runs: {PREDICTIONS.relative_to(HERE)} is missing.")
        return {}
    recorded = read_predictions(PREDICTIONS)
    alone = recorded_alone(recorded, draws)
    names = ", ".join(f"{own.name} {len(own.right)} runs" for own in recorded)
    print_table(f"A winner of a recorded configuration and itself, % of draws ({names})", alone)
    figures = {"aa_rate_recorded": pooled(alone.values()).share}
    for a, b in combinations(recorded, 2):
        truth, found, covered = recorded_pair(a, b, draws)
        pair = f"{a.name} minus {b.name}, {truth:.2f} points by all runs and images"
        print_table(f"The better one is found, % of draws ({pair})", found)
        print_table("The interval holds that difference, % of draws", covered)
        print(f"\n{parts(a, b)}")
        figures[f"coverage_recorded_{a.name}_{b.name}"] = pooled(covered.values()).share
    return figures


def by_kdtune(searches: int) -> dict[str, float]:
    """Print what searches by kdtune itself give; returns its figures."""
    pairs = own_pairs(searches)
    print(
        f"\nTwo searches of one cell by kdtune itself, {searches} of each cell, {OWN_SEEDS} "
        "seeds; plain: with luck by the trials alone\n"
    )
    print(
        "| whole trials | test images | winners %, plain | winners % ± standard error "
        "| 1 point is found % | half width, plain | half width | forecast | OF_SEARCH, plain "
        "| OF_SEARCH |"
    )
    print("|---" * 10 + "|")
    for (budget, images), own in pairs.groupby(["budget", "images"]):
        widths = own["half_width_plain"].mean(), own["half_width"].mean()
        plain, luck = (matching(images, OWN_SEEDS, width) for width in widths)
        print(
            f"| {budget} | {images:,} | {100 * own['winner_plain'].mean():.1f} "
            f"| {100 * own['winner'].mean():.1f} ± {100 * error_of_share(own, 'winner'):.1f} "
            f"| {100 * own['found'].mean():.1f} | {widths[0]:.2f} | {widths[1]:.2f} "
            f"| {expected(images, OWN_SEEDS).half_width:.2f} | {plain:.2f} | {luck:.2f} |"
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
    every = pairs.assign(cell="all")
    for (budget, cell), own in pd.concat([pairs, every]).groupby(["budget", "cell"], sort=False):
        print(
            f"| {budget} | {cell} | {own['trials'].mean():.0f} "
            f"| {math.sqrt(own['variance'].mean()):.2f} | {own['luck_plain'].mean():.2f} "
            f"| {own['luck'].mean():.2f} | {100 * own['late'].mean():.0f} "
            f"| {100 * own['winner_plain'].mean():.1f} | {100 * own['winner'].mean():.1f} |"
        )
    few, _, many = (pairs.loc[pairs["budget"] == budget, "winner"].mean() for budget in BUDGETS)
    most = pairs[(pairs["budget"] == max(BUDGETS)) & (pairs["images"] == max(OWN_IMAGES))]
    return {
        "aa_rate_kdtune_searches": many,
        "aa_rate_kdtune_searches_12_trials": few,
        "power_1pt_5seeds_kdtune_searches": most["found"].mean(),
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
    quiet()
    main()
