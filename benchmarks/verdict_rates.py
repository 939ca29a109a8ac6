"""Comparisons of searches drawn at random, and what is right in them, for `verdict.py`."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from itertools import product, repeat
from typing import Any

import numpy as np
import pandas as pd
from verdict_confirmations import ConfirmedCell, TestImages
from verdict_luck import measure_choices, summarize_luck
from verdict_recorded import DESIGNS, compare, is_winner
from verdict_searches import FinishedSearch

IMAGES, SEEDS = 10_000, 5
"""Test images and seeds, where no others are named."""

LOST_POINTS = 1.0
"""By which a worse method is worse."""

REPEATS_PER_JOB = 250


class SearchPool:
    """Searches of one truth, to be drawn from.

    Args:
        searches: of the same cells and budgets in every sweep.
    """

    def __init__(self, searches: Iterable[FinishedSearch]):
        self.searches = {(s.sweep, s.cell, s.budget): s for s in searches}
        self.sweeps = sorted({sweep for sweep, _, _ in self.searches})
        self.cells = sorted({cell for _, cell, _ in self.searches})
        choices = measure_choices(self.searches.values())
        means = choices.groupby(["cell", "budget"])["mean"].mean()
        self.luck, self._means = summarize_luck(choices), means.to_dict()

    def ratios(self) -> dict[str, float]:
        """Return luck over truth by cell and budget."""
        rows = self.luck.itertuples()
        return {f"{row.cell}-{row.budget}": round(row.luck_over_truth, 3) for row in rows}

    def expected_accuracy(self, search: FinishedSearch) -> float:
        """Return the mean true accuracy of what searches of this cell choose, in percent."""
        return float(self._means["-".join(search.cell), search.budget])

    def draw_two_searches(
        self, budget: int, rng: np.random.Generator
    ) -> tuple[FinishedSearch, FinishedSearch]:
        """Return searches of one cell from two sweeps."""
        cell = self.cells[rng.integers(len(self.cells))]
        first, second = rng.choice(self.sweeps, 2, replace=False)
        return self.searches[first, cell, budget], self.searches[second, cell, budget]

    def draw_two_methods(
        self, budget: int, rng: np.random.Generator
    ) -> tuple[FinishedSearch, FinishedSearch]:
        """Return searches of two cells from one sweep."""
        sweep = rng.choice(self.sweeps)
        first, second = rng.permutation(len(self.cells))[:2]
        cells = self.cells[first], self.cells[second]
        a, b = (self.searches[sweep, cell, budget] for cell in cells)
        return a, b

    def draw_twins(
        self, budget: int, rng: np.random.Generator
    ) -> tuple[FinishedSearch, FinishedSearch]:
        """Return two searches of one method from one sweep."""
        sweep = rng.choice(self.sweeps)
        methods = sorted({method for method, _ in self.cells})
        method = methods[rng.integers(len(methods))]
        cells = [cell for cell in self.cells if cell[0] == method]
        a, b = (self.searches[sweep, cell, budget] for cell in cells)
        return a, b


Row = dict[str, Any]


def compare_one_search(pool: SearchPool, budget: int, seed: int, repeats: int) -> list[Row]:
    """Compare searches with themselves, in all `DESIGNS`; return a row per comparison."""
    rng, rows = np.random.default_rng(seed), []
    for (images, seeds), _ in product(DESIGNS, range(repeats)):
        search, _ = pool.draw_two_searches(budget, rng)
        test = TestImages(images, rng)
        a = test.confirm(search, seeds)
        row = judge(a, test.test_again(a), 0.0)
        rows.append({"images": images, "seeds": seeds, **row})
    return rows


def compare_two_searches(pool: SearchPool, budget: int, seed: int, repeats: int) -> list[Row]:
    """Compare two searches of one cell, as they are and with a worse one."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        first, second = pool.draw_two_searches(budget, rng)
        test = TestImages(IMAGES, rng)
        a, b = test.confirm(first, SEEDS), test.confirm(second, SEEDS)
        worse = test.confirm(second.worsen(LOST_POINTS), SEEDS)
        plain = compare(a.result(luck=first.plain_luck), b.result(luck=second.plain_luck))
        found = judge(a, worse, LOST_POINTS)
        row = {
            "plain_winner": is_winner(plain),
            "found": found["right"],
            "worse_wins": found["wrong"],
        }
        rows.append({**judge(a, b, 0.0), **row, "worse_covers": found["covers"]})
    return rows


def compare_twins(pool: SearchPool, budget: int, seed: int, repeats: int) -> list[Row]:
    """Compare two searches of one method in one sweep."""
    rng = np.random.default_rng(seed)
    return [compare_pair(pool.draw_twins(budget, rng), 0.0, rng) for _ in range(repeats)]


def compare_two_methods(pool: SearchPool, budget: int, seed: int, repeats: int) -> list[Row]:
    """Compare two methods of one sweep."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        a, b = pool.draw_two_methods(budget, rng)
        difference = pool.expected_accuracy(a) - pool.expected_accuracy(b)
        rows.append(compare_pair((a, b), difference, rng))
    return rows


def compare_pair(
    pair: tuple[FinishedSearch, FinishedSearch], difference: float, rng: np.random.Generator
) -> Row:
    """Confirm two searches on the same images, and judge their comparison.

    Args:
        pair: the searches.
        difference: the true one, in points.
        rng: draws images and runs.
    """
    test = TestImages(IMAGES, rng)
    a, b = (test.confirm(search, SEEDS) for search in pair)
    return judge(a, b, difference)


def judge(a: ConfirmedCell, b: ConfirmedCell, difference: float) -> Row:
    """Return what is right and wrong in the report about two methods.

    Args:
        a: of the first method.
        b: of the second.
        difference: the true one of the methods, in points.
    """
    row = compare(a.result(), b.result())
    better, worse = ("better_a", "better_b") if difference > 0 else ("better_b", "better_a")
    return {
        "first": a.search.sweep,
        "second": b.search.sweep,
        "winner": is_winner(row),
        "right": row.verdict == better,
        "wrong": row.verdict == worse,
        "covers": row.low_points <= difference <= row.high_points,
        "half_width": row.half_width_points,
    }


def collect_rows(
    compare_many: Any, pool: SearchPool, budgets: Sequence[int], repeats: int, executor: Executor
) -> pd.DataFrame:
    """Compare in several processes; return all rows, with their budgets.

    Args:
        compare_many: one of the functions above.
        pool: of the searches.
        budgets: in whole trials.
        repeats: of every budget.
        executor: runs the comparisons.
    """
    jobs = [(budget, start) for budget in budgets for start in range(0, repeats, REPEATS_PER_JOB)]
    counts = [min(REPEATS_PER_JOB, repeats - start) for _, start in jobs]
    budget_of_job, _ = zip(*jobs, strict=True)
    results = executor.map(compare_many, repeat(pool), budget_of_job, range(len(jobs)), counts)
    frames = [
        pd.DataFrame(rows).assign(budget=b) for b, rows in zip(budget_of_job, results, strict=True)
    ]
    return pd.concat(frames)


def rate_with_error(rows: pd.DataFrame, column: str) -> tuple[float, float]:
    """Return the mean of a column, and its jackknife standard error over sweeps."""
    sweeps = sorted({*rows["first"], *rows["second"]})
    means = [rows.loc[(rows["first"] != s) & (rows["second"] != s), column].mean() for s in sweeps]
    return float(rows[column].mean()), math.sqrt((len(sweeps) - 1) * np.var(means))


def print_rates(title: str, rows: pd.DataFrame, *columns: str) -> None:
    """Print percentages with their standard errors, a row per budget.

    Args:
        title: above them.
        rows: of comparisons.
        columns: whose means are printed.
    """
    print(f"\n{title}\n\n| whole trials | half width | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 2) + "|")
    for budget, group in rows.groupby("budget"):
        rates = (rate_with_error(group, column) for column in columns)
        cells = (f"{100 * rate:.1f} ± {100 * error:.1f}" for rate, error in rates)
        print(f"| {budget} | {group['half_width'].mean():.2f} | {' | '.join(cells)} |", flush=True)
