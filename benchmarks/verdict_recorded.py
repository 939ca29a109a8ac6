"""Verdicts on recorded predictions, for `verdict.py`.

``predictions/*.npz`` (`record_predictions.py`) has runs of one configuration of each of several
methods. Seeds and images are drawn from those that there are: for one configuration against
itself two sets without a common seed, for one against another S seeds with replacement, images
always with replacement, so that those recorded are the population. Few recorded seeds make few
really different draws.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdtune.reports.tables.comparison import CellResult, comparison_table
from kdtune.reports.tables.statistics import (
    IMAGE_VARIANCE_SHARE,
    RESIDUAL_VARIANCE_SHARE,
    SEED_SD_POINTS,
    estimate_mean,
)

PREDICTIONS = Path(__file__).parent / "predictions" / "fashion-mnist.npz"

TEST_IMAGES, SEEDS = (500, 2_000, 10_000), (3, 5, 10)
DESIGNS = tuple(product(TEST_IMAGES, SEEDS))


@dataclass(frozen=True)
class RecordedConfiguration:
    """Correctness of each test image by runs of a configuration: bool [S, n]."""

    name: str
    correct: np.ndarray
    validation_accuracies: np.ndarray

    def draw(self, seeds: np.ndarray, images: np.ndarray) -> CellResult:
        """Return some runs on some images, without a search."""
        correct = {s: self.correct[row][images] for s, row in enumerate(seeds, start=1)}
        return CellResult(correct, len(seeds), 0, 0.0)


def compare(a: CellResult, b: CellResult) -> Any:
    """Return the row of the report about two methods."""
    table = comparison_table({("at", "student"): a, ("fitnets", "student"): b})
    return next(table.itertuples())


def is_winner(row: Any) -> bool:
    """Return True if the report names a winner."""
    return str(row.verdict).startswith("better")


def compare_recorded_runs(draws: int) -> dict[str, float]:
    """Print and return rates of recorded configurations.

    Args:
        draws: of every number of images and seeds.
    """
    recorded = list(_read_predictions(PREDICTIONS))
    winners = _compare_with_itself(recorded, draws)
    print_designs("A winner of a recorded configuration and itself, % of draws", winners, "winner")
    figures = {"aa_rate_recorded": float(winners["winner"].mean())}
    for a, b in combinations(recorded, 2):
        difference = 100 * float(a.correct.mean() - b.correct.mean())
        rows = _compare_pair(a, b, difference, draws)
        pair = f"{a.name} minus {b.name}, {difference:.2f} points by all runs and images"
        print_designs(f"The better one is found, % of draws ({pair})", rows, "found")
        print_designs("The interval holds that difference, % of draws", rows, "covers")
        print(f"\n{_describe_variance(a, b)}")
        figures[f"coverage_recorded_{a.name}_{b.name}"] = float(rows["covers"].mean())
    return figures


def print_designs(title: str, rows: pd.DataFrame, column: str) -> None:
    """Print percentages, a row for each number of test images.

    Args:
        title: above them.
        rows: with the columns ``images`` and ``seeds``.
        column: whose mean is printed.
    """
    print(f"\n{title}\n\n| test images | {' | '.join(f'{s} seeds' for s in SEEDS)} |")
    print("|---" * (len(SEEDS) + 1) + "|")
    for images, group in rows.groupby("images"):
        means = 100 * group.groupby("seeds")[column].mean()
        print(f"| {images:,} | {' | '.join(f'{means.get(s, math.nan):.1f}' for s in SEEDS)} |")


def _read_predictions(path: Path) -> Iterator[RecordedConfiguration]:
    with np.load(path, allow_pickle=False) as arrays:
        images = int(arrays["images"])
        for key in arrays.files:
            if key.startswith("right_"):
                name = key.removeprefix("right_")
                correct = np.unpackbits(arrays[key], axis=1, count=images).astype(bool)
                yield RecordedConfiguration(name, correct, arrays[f"validation_{name}"])


def _compare_with_itself(recorded: list[RecordedConfiguration], draws: int) -> pd.DataFrame:
    rng, rows = np.random.default_rng(4), []
    for (images, seeds), draw in product(DESIGNS, range(draws)):
        configuration = recorded[draw % len(recorded)]
        runs, population = configuration.correct.shape
        order, image_rows = rng.permutation(runs), rng.integers(0, population, images)
        halves = order[:seeds], order[seeds : 2 * seeds]
        row = compare(*(configuration.draw(half, image_rows) for half in halves))
        rows.append({"images": images, "seeds": seeds, "winner": is_winner(row)})
    return pd.DataFrame(rows)


def _compare_pair(
    a: RecordedConfiguration, b: RecordedConfiguration, difference: float, draws: int
) -> pd.DataFrame:
    rng, rows = np.random.default_rng(5), []
    better = "better_a" if difference > 0 else "better_b"
    shared, population = min(len(a.correct), len(b.correct)), a.correct.shape[1]
    for (images, seeds), _ in product(DESIGNS, range(draws)):
        drawn = rng.integers(0, shared, seeds), rng.integers(0, population, images)
        row = compare(a.draw(*drawn), b.draw(*drawn))
        found = {"found": row.verdict == better}
        covers = {"covers": row.low_points <= difference <= row.high_points}
        rows.append({"images": images, "seeds": seeds, **found, **covers})
    return pd.DataFrame(rows)


def _describe_variance(a: RecordedConfiguration, b: RecordedConfiguration) -> str:
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
