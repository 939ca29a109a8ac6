"""Luck of searches beside the truth: how much what they choose differs, for `verdict.py`.

The truth of a cell is the standard deviation, over searches, of the noise-free accuracy of what a
confirmation of `NUM_SEEDS` seeds chooses. Luck enters intervals as its square, so its root mean
square over the searches is compared. *Plain* is luck by the scores of the settings alone.
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from verdict_confirmations import choose_candidate
from verdict_searches import FinishedSearch

NUM_SEEDS = 5
NUM_CHOICES = 40
"""Confirmations of each search."""

NUM_RESAMPLES = 500
"""Of the searches of a cell, for standard errors."""


def measure_choices(searches: Iterable[FinishedSearch], seed: int = 0) -> pd.DataFrame:
    """Return a row per search: its luck, and its choices, of whose accuracy it has the moments.

    Args:
        searches: of one truth.
        seed: of the confirmations.
    """
    rng, rows = np.random.default_rng(seed), []
    for search in searches:
        chosen = [choose_candidate(search, NUM_SEEDS, rng)[1] for _ in range(NUM_CHOICES)]
        accuracies = np.array([candidate.accuracy for candidate in chosen])
        rows.append(
            {
                "cell": "-".join(search.cell),
                "budget": search.budget,
                "sweep": search.sweep,
                "trials": search.trials,
                "mean": accuracies.mean(),
                "square": (accuracies**2).mean(),
                "luck_squared": search.luck**2,
                "plain_squared": search.plain_luck**2,
                "left_to_gain": search.left_to_gain,
                "is_within": search.gap <= search.left_to_gain,
            }
        )
    return pd.DataFrame(rows)


def summarize_luck(choices: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return a row per budget and cell: true standard deviation, lucks, and their ratios.

    Args:
        choices: result of `measure_choices`.
        seed: of the resamples.
    """
    rng, rows = np.random.default_rng(seed), []
    for (budget, cell), group in choices.groupby(["budget", "cell"]):
        columns = ["mean", "square", "luck_squared", "plain_squared"]
        values = group[columns].to_numpy()
        resamples = rng.integers(0, len(values), (NUM_RESAMPLES, len(values)))
        ratios = np.array([_ratios(values[drawn].mean(axis=0)) for drawn in resamples])
        (luck_ratio, plain_ratio), errors = _ratios(values.mean(axis=0)), ratios.std(axis=0)
        mean, square, luck, plain = values.mean(axis=0)
        rows.append(
            {
                "budget": budget,
                "cell": cell,
                "trials": group["trials"].mean(),
                "true": math.sqrt(square - mean**2),
                "plain": math.sqrt(plain),
                "luck": math.sqrt(luck),
                "plain_over_truth": plain_ratio,
                "luck_over_truth": luck_ratio,
                "error": errors[0],
                "left_to_gain": group["left_to_gain"].mean(),
                "within": group["is_within"].mean(),
            }
        )
    return pd.DataFrame(rows)


def _ratios(moments: np.ndarray) -> tuple[float, float]:
    """Return luck and plain luck over the truth, of mean accuracy and three mean squares."""
    mean, square, luck, plain = moments
    true = math.sqrt(max(square - mean**2, 1e-12))
    return math.sqrt(luck) / true, math.sqrt(plain) / true


def print_luck(title: str, summary: pd.DataFrame) -> None:
    """Print a row per budget and cell.

    Args:
        title: above them.
        summary: result of `summarize_luck`.
    """
    print(f"\n{title}\n")
    print(
        "| whole trials | cell | trials | true | plain | luck | plain / true | luck / true "
        "| left to gain, 90 % | within it, % |\n" + "|---" * 10 + "|"
    )
    for row in summary.itertuples():
        print(
            f"| {row.budget} | {row.cell} | {row.trials:.0f} | {row.true:.2f} | {row.plain:.2f} "
            f"| {row.luck:.2f} | {row.plain_over_truth:.2f} "
            f"| {row.luck_over_truth:.2f} ± {row.error:.2f} | {row.left_to_gain:.2f} "
            f"| {100 * row.within:.0f} |"
        )
