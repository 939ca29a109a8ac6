"""Error rates of verdicts: false winners, and winners that are missed.

    make bench-verdict

First searches are made (`verdict_searches.py`), all cells of a sweep together, and their luck is
compared with the truth (`verdict_luck.py`). Then searches are drawn at random and confirmed on
simulated test images (`verdict_confirmations.py`), and `kdtune.reports.tables.comparison` compares
two at a time, as a report does:

* one search under two names: what it chose is trained for each name with other seeds;
* two searches of one cell, from two sweeps; in one of them all settings are worse by a point, to
  see how often a true difference is found;
* one method under two names, searched in one sweep;
* two methods, searched in one sweep; their true difference is that of the mean noise-free
  accuracies of what all searches choose.

At last recorded predictions are compared (`verdict_recorded.py`). Standard errors are by leaving
out a sweep at a time, since comparisons share sweeps. What the surrogates are wrong in, the
searches do not see; the noise of a run on test images is that of the simulation, not that of the
curves. The last line is JSON.
"""

import argparse
import json
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from itertools import chain, product, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from search import silence_libraries
from simulate import load_problems
from verdict_confirmations import ConfirmedCell, TestImages
from verdict_luck import measure_choices, print_luck, summarize_luck
from verdict_recorded import DESIGNS, compare, compare_recorded_runs, is_winner, print_designs
from verdict_searches import BUDGETS, CURVES, FinishedSearch, make_searches

IMAGES, SEEDS = 10_000, 5
"""Test images and seeds, where no others are named."""

LOST_POINTS = 1.0
"""By which a worse method is worse."""

DESIGN_SHARE = 4
"""One in so many repeats for each of `DESIGNS`."""

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
        return {f"{row.cell}-{row.budget}": row.luck_over_truth for row in self.luck.itertuples()}

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
        worse = test.confirm(second, SEEDS, lost=LOST_POINTS)
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


def make_pool(
    truth: str, count: int, arguments: argparse.Namespace, executor: Executor
) -> SearchPool:
    """Make the searches of a truth, and print their luck.

    Args:
        truth: see `verdict_searches.py`.
        count: number of sweeps.
        arguments: of the command line.
        executor: runs the searches.
    """
    search = partial(make_searches, truth, arguments.recipe, BUDGETS)
    pool = SearchPool(chain.from_iterable(executor.map(search, range(count))))
    print_luck(f"Luck and truth, {count} sweeps, {truth}, recipe {arguments.recipe}", pool.luck)
    return pool


def measure_rates(pool: SearchPool, repeats: int, executor: Executor) -> dict[str, float]:
    """Print and return the rates of searches from different sweeps, and of two methods.

    Args:
        pool: of the searches.
        repeats: of every comparison and budget.
        executor: runs the comparisons.
    """
    collect = partial(collect_rows, pool=pool, executor=executor)
    one = collect(compare_one_search, budgets=BUDGETS[1:2], repeats=repeats)
    title = f"One search of {BUDGETS[1]} whole trials under two names: a winner, % of repeats"
    print_designs(title, one, "winner")
    two = collect(compare_two_searches, budgets=BUDGETS, repeats=repeats)
    shown = "winner", "plain_winner", "covers", "found", "worse_wins"
    print_rates("Two searches of one cell; one of them worse by a point", two, *shown)
    methods = collect(compare_two_methods, budgets=BUDGETS, repeats=repeats)
    print_rates("Two methods of one sweep", methods, "right", "wrong", "covers")
    covers = pd.concat([two["covers"], two["worse_covers"], methods["covers"]])
    power = two.groupby("budget")["found"].mean()
    error = rate_with_error(one, "winner")[1]
    print(f"\nOne search under two names: {100 * one['winner'].mean():.1f} ± {100 * error:.1f} %.")
    return {
        "aa_rate": float(one["winner"].mean()),
        "aa_rate_two_searches": float(two["winner"].mean()),
        "coverage": float(covers.mean()),
        **{f"power_{budget}": float(power[budget]) for budget in BUDGETS},
    }


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("foreign", nargs="*", help="files of foreign runs, for luck over truth")
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--tree-sweeps", type=int, default=40, help="on regression trees")
    parser.add_argument("--twin-sweeps", type=int, default=40, help="of methods with two names")
    parser.add_argument("--foreign-sweeps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2_000, help="of every comparison")
    parser.add_argument("--recipe", default="kdtune", help="of recipes.py, for a sweep")
    return parser.parse_args()


def main() -> None:
    """Search, compare, and print tables and a line of JSON."""
    arguments = parse_arguments()
    for trees in (False, True):  # once, before the processes of the pool start
        load_problems(CURVES, trees)
    luck_over_truth: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(os.cpu_count(), initializer=silence_libraries) as executor:
        make = partial(make_pool, arguments=arguments, executor=executor)
        counts = {"processes": arguments.sweeps, "trees": arguments.tree_sweeps}
        counts |= dict.fromkeys(arguments.foreign, arguments.foreign_sweeps)
        pools = {truth: make(truth, count) for truth, count in counts.items() if count}
        for truth, pool in pools.items():
            luck_over_truth[Path(truth).name] = pool.ratios()
        figures = measure_rates(pools["processes"], arguments.repeats, executor)
        if arguments.twin_sweeps:
            twins = collect_rows(
                compare_twins,
                make("twins", arguments.twin_sweeps),
                BUDGETS,
                arguments.repeats,
                executor,
            )
            print_rates("One method under two names in one sweep", twins, "winner", "covers")
            figures["aa_rate_twins"] = float(twins["winner"].mean())
    figures |= compare_recorded_runs(arguments.repeats // 10)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({**rounded, "luck_over_truth": luck_over_truth}))


if __name__ == "__main__":
    silence_libraries()
    main()
