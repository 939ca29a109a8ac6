"""Error rates of verdicts: false winners, and winners that are missed.

    make bench-verdict

First searches are made (`verdict_searches.py`), all cells of a sweep together, and their luck is
compared with the truth (`verdict_luck.py`). Then searches are drawn at random and confirmed on
simulated test images (`verdict_confirmations.py`), and `kdtune.reports.tables.comparison` compares
two at a time, as a report does (`verdict_rates.py`):

* one search under two names: what it chose is trained for each name with other seeds;
* two searches of one cell, from two sweeps; in one of them all settings are worse by a point, to
  see how often a true difference is found;
* one method under two names, searched in one sweep;
* two methods, searched in one sweep; their true difference is that of the mean noise-free
  accuracies of what all searches choose.

Comparisons are also looked at several times (`verdict_looks.py`), and sweeps are asked which
student to ship, at once and `--until-decided` (`verdict_sweeps.py`).

At last recorded predictions are compared (`verdict_recorded.py`). Standard errors are by leaving
out a sweep at a time, since comparisons share sweeps. What the surrogates are wrong in, the
searches do not see; the noise of a run on test images is that of the simulation, not that of the
curves. The last line is JSON.
"""

import argparse
import json
import os
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd
from search import silence_libraries
from simulate import CURVES, load_problems
from verdict_looks import measure_looks
from verdict_luck import print_luck
from verdict_rates import (
    SearchPool,
    collect_rows,
    compare_one_search,
    compare_twins,
    compare_two_methods,
    compare_two_searches,
    print_rates,
    rate_with_error,
)
from verdict_recorded import compare_recorded_runs, print_designs
from verdict_searches import BUDGETS, keep_searches
from verdict_sweeps import measure_rounds, measure_ship_sets

from kdtune.tuning.scheduling.until_decided import MIN_CHANCE

TWIN_BUDGETS = BUDGETS[:2]

DESIGN_SHARE = 4
"""One in so many repeats is made of each of `DESIGNS`."""


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
    budgets = TWIN_BUDGETS if truth == "twins" else BUDGETS
    search = partial(keep_searches, arguments.keep, truth, arguments.strategy, budgets)
    pool = SearchPool(chain.from_iterable(executor.map(search, range(count))))
    print_luck(
        f"Luck and truth, {count} sweeps, {truth}, strategy {arguments.strategy}", pool.luck
    )
    return pool


def measure_rates(pool: SearchPool, repeats: int, executor: Executor) -> dict[str, float]:
    """Print and return the rates of searches from different sweeps, and of two methods.

    Args:
        pool: of the searches.
        repeats: of every comparison and budget.
        executor: runs the comparisons.
    """
    collect = partial(collect_rows, pool=pool, executor=executor)
    one = collect(compare_one_search, budgets=BUDGETS[1:2], repeats=repeats // DESIGN_SHARE)
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
    parser.add_argument(
        "--min-chances",
        type=float,
        nargs="+",
        default=[MIN_CHANCE],
        help="of until_decided; the first is that of the figures",
    )
    parser.add_argument("--keep", type=Path, help="existing folder that keeps the searches")
    parser.add_argument("--strategy", default="kdtune", help="of strategies.py, for a sweep")
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
        pool, repeats = pools["processes"], arguments.repeats
        figures = measure_rates(pool, repeats, executor)
        figures |= measure_looks(pool, repeats // 2, executor)
        figures |= measure_ship_sets(pool, repeats // 4, executor)
        figures |= measure_rounds(pool, repeats // 4, arguments.min_chances, executor)
        if arguments.twin_sweeps:
            pool = make("twins", arguments.twin_sweeps)
            twins = collect_rows(compare_twins, pool, TWIN_BUDGETS, repeats, executor)
            print_rates("One method under two names in one sweep", twins, "winner", "covers")
            figures["aa_rate_twins"] = float(twins["winner"].mean())
    figures |= compare_recorded_runs(arguments.repeats // 10)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({**rounded, "luck_over_truth": luck_over_truth}))


if __name__ == "__main__":
    silence_libraries()
    main()
