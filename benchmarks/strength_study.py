"""Do good strengths carry over from one student, teacher and data set to another?

    python benchmarks/strength_study.py benchmarks/strengths/runs.jsonl

Compares good strengths with the weights that they were, all in Markdown. Lost points are those
with the best weight / strength of another cell. README.md says how the runs were recorded.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

METHODS = ("at", "fitnets", "sp", "kd")
PLAIN = "student"
STRENGTHS = tuple(float(f"{10**exponent:.4g}") for exponent in np.linspace(-2, 2, 7))
SEEDS = (1, 2)
EPOCHS = 6

CELL = ["method", "model", "setup"]
LOG_STRENGTHS = np.log10(STRENGTHS)

Optimum = dict[str, Any]
"""The best of a cell: log10 of ``weight``, ``strength`` and ``scale``; the curve's ``means``."""


def final_accuracy(accuracies: list[float]) -> float:
    """Return the mean of the last two epochs in percent; chance if a loss became infinite."""
    return 100 * float(np.mean(accuracies[-2:])) if len(accuracies) == EPOCHS else 10.0


def standard_error(curves: list[pd.DataFrame]) -> float:
    """Return that of a difference of two strengths' means, from how seeds differ.

    What a seed gains with all strengths does not count.

    Args:
        curves: accuracies of a student and set-up, [strengths, seeds], for each method.
    """
    gaps = np.stack([curve.diff(axis=1).to_numpy()[:, 1] for curve in curves])
    return float(np.sqrt(gaps.var(axis=1, ddof=1).mean() / 2))


def find_best(accuracies: np.ndarray, tolerance: float) -> float:
    """Return log10 of the middle of the strengths within `tolerance` points of the best.

    Args:
        accuracies: of all strengths.
        tolerance: in points.
    """
    return float(LOG_STRENGTHS[accuracies >= accuracies.max() - tolerance].mean())


def find_optima(runs: pd.DataFrame) -> list[Optimum]:
    """Return the best of each cell, and print them.

    Args:
        runs: as recorded, with the final accuracy.
    """
    optima = []
    columns = "student,set-up,method,scale,plain %,best %,strength,weight,seeds".split(",")
    print_row(*columns)
    print_row(*["---"] * len(columns))
    for (model, setup), group in runs.groupby(CELL[1:]):
        table = group.pivot(index="strength", columns=["method", "seed"], values="accuracy")
        curves = {method: table[method].dropna() for method in METHODS}
        error = standard_error(list(curves.values()))
        plain = group[group.method == PLAIN].accuracy.mean()
        for method, curve in curves.items():
            means = curve.mean(axis=1).to_numpy()
            log_scale = np.log10(group[group.method == method].scale.iloc[0])
            best = {"strength": find_best(means, error), "scale": log_scale, "means": means}
            best["weight"] = best["strength"] - best["scale"]
            by_seed = [find_best(curve[seed].to_numpy(), error * 2**0.5) for seed in SEEDS]
            best |= dict(zip(CELL, (method, model, setup), strict=True), seed_gap=np.ptp(by_seed))
            optima.append(best)
            log_values = (best[name] for name in ("scale", "strength", "weight"))
            scale, *chosen = (f"{float(f'{10**value:.2g}'):g}" for value in log_values)
            numbers = scale, f"{plain:.1f}", f"{means.max():.1f}", *chosen
            print_row(model, setup, method, *numbers, f"{best['seed_gap']:.1f}")
    gap = np.mean([best["seed_gap"] for best in optima])
    print(f"\nThe best of one seed and of the other are {gap:.2f} decades apart in the mean.")
    return optima


def carry_over_loss(source: Optimum, target: Optimum, name: str) -> float:
    """Return the points that a cell loses with the best of another one.

    Between trained strengths, accuracies are interpolated; beyond them, the outermost one counts.

    Args:
        source: cell of the best.
        target: cell that gets it.
        name: ``weight`` or ``strength``, which is carried over.
    """
    carried = source[name] + (target["scale"] if name == "weight" else 0)
    own, other = np.interp([target["strength"], carried], LOG_STRENGTHS, target["means"])
    return float(own - other)


def print_spread(optima: list[Optimum]) -> None:
    """Print how far apart the best weights and strengths are: range and sd in decades.

    Args:
        optima: of all cells.
    """
    print_row("\nmethod", "weights, range", "sd", "strengths, range", "sd")
    print_row(*["---"] * 5)
    variances = []
    for method in (*METHODS, "all as one"):
        own = [best for best in optima if method in (best["method"], "all as one")]
        values = np.array([[best["weight"], best["strength"]] for best in own])
        variances.append(values.var(axis=0, ddof=1))
        ranges = np.ptp(values, axis=0)
        pairs = zip(ranges, variances[-1] ** 0.5, strict=True)
        print_row(method, *(f"{number:.2f}" for pair in pairs for number in pair))
    pooled = np.mean(variances[:-1], axis=0) ** 0.5
    print_row("within methods", "", f"{pooled[0]:.2f}", "", f"{pooled[1]:.2f}")


def print_losses(optima: list[Optimum]) -> None:
    """Print the points that are lost with the best weight, or strength, of another cell.

    Args:
        optima: of all cells.
    """
    rows = [
        {
            "method": a["method"],
            "differs": " and ".join(key for key in CELL if a[key] != b[key]),
            **{name: carry_over_loss(a, b, name) for name in ("weight", "strength")},
        }
        for a, b in itertools.permutations(optima, 2)
    ]
    losses = pd.DataFrame(rows)
    kinds = ["model", "setup", "model and setup"]
    print_row("\nmethod", *kinds, "all")
    print_row(*["---"] * (len(kinds) + 2))
    same_method = losses[losses.differs.isin(kinds)]
    for method in (*METHODS, "all"):
        own = same_method[(same_method.method == method) | (method == "all")]
        print_row(
            method, *(mean_losses(own[own.differs == kind]) for kind in kinds), mean_losses(own)
        )
    print_row("from another method", "", "", "", mean_losses(losses[losses.differs == "method"]))


def mean_losses(losses: pd.DataFrame) -> str:
    """Return the mean points that are lost by weights / by strengths."""
    return f"{losses.weight.mean():.2f} / {losses.strength.mean():.2f}"


def print_row(*values: str) -> None:
    """Print a row of a Markdown table."""
    first, *rest = values
    print("\n" * first.count("\n") + "| " + " | ".join([first.strip(), *rest]) + " |")


def print_report(path: Path) -> None:
    """Print tables: the best of each cell, their spread, and what carrying over loses.

    Args:
        path: recorded runs.
    """
    runs = pd.DataFrame(map(json.loads, path.read_text().splitlines()))
    runs["accuracy"] = runs.validation_accuracy.map(final_accuracy)
    optima = find_optima(runs)
    print_spread(optima)
    print_losses(optima)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="recorded runs")
    print_report(parser.parse_args().runs)
