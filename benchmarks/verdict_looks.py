"""Looks at a confirmation that grows: winners at any look where there are none, for `verdict.py`.

A comparison is looked at with the first of its seeds, then with more. A false alarm is a winner at
any of the looks, since who sees a winner stops there.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import product

import numpy as np
import pandas as pd
from verdict_confirmations import ConfirmedCell, TestImages
from verdict_rates import IMAGES, Row, SearchPool, collect_rows, rate_with_error
from verdict_recorded import TEST_IMAGES, compare, is_winner
from verdict_searches import BUDGETS

PLANS = ((5, 10, 20), (3, 5, 10, 20))
"""Numbers of seeds of the looks."""


def is_winner_at_any_look(a: ConfirmedCell, b: ConfirmedCell, plan: Sequence[int]) -> bool:
    """Return True if a report names a winner at one of the looks.

    Args:
        a: of the first method.
        b: of the second.
        plan: numbers of seeds of the looks.
    """
    looked = (plan[:end] for end in range(1, len(plan) + 1))
    return any(is_winner(compare(a.result(looks), b.result(looks))) for looks in looked)


def look_at_one_search(pool: SearchPool, budget: int, seed: int, repeats: int) -> list[Row]:
    """Look at searches that are compared with themselves; return a row per plan."""
    rng, rows = np.random.default_rng(seed), []
    for images, _ in product(TEST_IMAGES, range(repeats)):
        search, _ = pool.draw_two_searches(budget, rng)
        test = TestImages(images, rng)
        a = test.confirm(search, PLANS[0][-1], deciding_seeds=PLANS[0][0])
        rows += _look(a, test.test_again(a), images)
    return rows


def look_at_two_searches(pool: SearchPool, budget: int, seed: int, repeats: int) -> list[Row]:
    """Look at two searches of one cell; return a row per plan."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        test = TestImages(IMAGES, rng)
        pair = pool.draw_two_searches(budget, rng)
        a, b = (test.confirm(s, PLANS[0][-1], deciding_seeds=PLANS[0][0]) for s in pair)
        rows += _look(a, b, IMAGES)
    return rows


def _look(a: ConfirmedCell, b: ConfirmedCell, images: int) -> list[Row]:
    sweeps = {"first": a.search.sweep, "second": b.search.sweep, "images": images}
    return [
        {**sweeps, "plan": plan, "winner": is_winner_at_any_look(a, b, plan)} for plan in PLANS
    ]


def measure_looks(pool: SearchPool, repeats: int, executor: Executor) -> dict[str, float]:
    """Print and return the rates of winners at any look.

    Args:
        pool: of the searches.
        repeats: of two searches, per budget; of one search per number of images.
        executor: runs the comparisons.
    """
    one = collect_rows(look_at_one_search, pool, BUDGETS[1:2], repeats, executor)
    two = collect_rows(look_at_two_searches, pool, BUDGETS, repeats, executor)
    print("\nA winner at any look, % of repeats\n")
    print("| searches | test images | whole trials | looks | winner |\n" + "|---" * 5 + "|")
    for searches, rows in ("one, under two names", one), ("two of one cell", two):
        for (plan, images, budget), group in rows.groupby(["plan", "images", "budget"]):
            _print_row(searches, f"{images:,} | {budget} | {', '.join(map(str, plan))}", group)
        _print_row(searches, "all | all | all", rows)
    return {
        "aa_rate_looks": float(one["winner"].mean()),
        "aa_rate_looks_two_searches": float(two["winner"].mean()),
    }


def _print_row(searches: str, text: str, rows: pd.DataFrame) -> None:
    rate, error = rate_with_error(rows, "winner")
    print(f"| {searches} | {text} | {100 * rate:.1f} ± {100 * error:.1f} |", flush=True)
