"""Efficiency of searches, replayed on recorded curves in simulated time.

    make bench-search                      # Fashion-MNIST curves of this repository
    make bench-search CURVES=other.jsonl   # and another file of curves

Our own searcher, rule and budget, as a sweep runs them, against the stock recipe (Ray's
`OptunaSearch` and `ASHAScheduler` with their defaults) and others, a cell at a time: four workers,
the same epochs for all, many seeds. Curves come from the surrogate of `surrogate.py`.

Regret: points by which the noise-free accuracy of the incumbent is below the best of the space.
The incumbent is the trial that went all the way and reached the highest (noisy) accuracy; before
there is one, it is chance level.

Slow learners: recorded runs that ended among the best fifth of their cell and were in the worse
half after a quarter of the epochs, and runs with a small learning rate that decays late. Each
takes the place of the 10th trial of a search; the table says how many went all the way.
"""

import argparse
import heapq
import json
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from recipes import RECIPES, VARIANTS, Recipe, SimulatedTrial
from scipy.stats import bootstrap
from surrogate import Surrogate, space_of_runs

from kdtune.log.events import Cell
from kdtune.tuning.planning.recorded_curves import load_recorded_runs
from kdtune.tuning.search.space import SearchSpace

NUM_WORKERS = 4
CHANCE_ACCURACY = 0.1
CURVES = Path(__file__).parent / "curves" / "fashion-mnist.jsonl"
NUM_POINTS = 16
"""Points of the curve of regret over epochs in the JSON line."""

SLOW_LEARNER_NUMBER = 10
"""The trial of a search whose place a slow learner takes, from 1."""

SLOW_LEARNER_RECIPES = (
    "kdtune",
    "stock",
    "hyperband",
    "median",
    "grace 4, 1 in 2",
    "grace 8, 1 in 4",
)
"""Recipes of which the fate of slow learners is told."""


@cache
def load_problem(path: Path, cell: Cell, trees: bool) -> tuple[SearchSpace, Surrogate, float, int]:
    """Return a cell's space, its curves, its best accuracy, and the epochs of a trial."""
    runs = [run for run in load_recorded_runs(path)[cell] if not run.late_decay]
    space = space_of_runs(cell[0], runs)
    surrogate = Surrogate(space, runs, trees)
    return space, surrogate, surrogate.find_optimum(), len(runs[0].accuracies)


def simulate_search(
    problem_key: tuple[Path, Cell, bool],
    build_recipe: Callable[..., Recipe],
    trials: int,
    seed: int,
    slow_curve: list[float] | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Search a cell.

    Args:
        problem_key: file of the curves, cell in it, and True if trees are the surrogate.
        build_recipe: makes the recipe.
        trials: the budget, in whole trials.
        seed: of the search, the noise and the speed of workers.
        slow_curve: the curve that one trial has instead of its own.

    Returns:
        The regret in points after each epoch, from none; counts of trials, ``started`` and
        ``whole``, and the epochs of the intruder.
    """
    space, surrogate, optimum, epochs = load_problem(*problem_key)
    cell = problem_key[1]
    recipe = build_recipe(cell, space, epochs, seed)
    rng = np.random.default_rng([seed, 1])
    regrets = [100 * (optimum - CHANCE_ACCURACY)]
    best_seen, num_whole = 0.0, 0
    started: list[SimulatedTrial] = []
    arrivals: list[tuple[float, int, SimulatedTrial]] = []  # a heap of epochs, by time
    order = count()

    def start_next(now: float) -> None:
        trial = recipe.suggest()
        if trial.curve is None:
            started.append(trial)
            trial.curve, trial.true_best = surrogate.sample_run(trial.settings, rng)
            if slow_curve is not None and len(started) == SLOW_LEARNER_NUMBER:
                trial.curve = np.array(slow_curve)
        advance(trial, now)

    def advance(trial: SimulatedTrial, now: float) -> None:
        trial.epoch += 1
        heapq.heappush(arrivals, (now + rng.uniform(0.95, 1.05), next(order), trial))

    for _ in range(NUM_WORKERS):
        start_next(rng.uniform(0, 0.5))
    while len(regrets) <= trials * epochs:
        now, _, trial = heapq.heappop(arrivals)
        assert trial.curve is not None
        best, regret = float(trial.curve[: trial.epoch].max()), regrets[-1]
        continues = recipe.report(trial, float(trial.curve[trial.epoch - 1]), best)
        if trial.epoch == epochs:
            num_whole += 1
            if best > best_seen:
                best_seen, regret = best, 100 * (optimum - trial.truth)
        regrets.append(regret)
        if continues and trial.epoch < epochs:
            advance(trial, now)
        else:
            start_next(now)
    slow_epochs = (
        started[SLOW_LEARNER_NUMBER - 1].epoch if len(started) >= SLOW_LEARNER_NUMBER else 0
    )
    return np.array(regrets), {"started": len(started), "whole": num_whole, "lasted": slow_epochs}


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def compare_recipes(
    problem_key: tuple[Path, Cell, bool],
    names: list[str],
    trials: int,
    seeds: int,
    pool: ProcessPoolExecutor,
) -> dict[str, dict[str, Any]]:
    """Search a cell by each recipe with all seeds; print a table.

    Returns:
        For each recipe the regret over the budget: mean, interquartile mean, and a bootstrap
        interval (95 %) of the mean; and mean counts of trials.
    """
    epochs = load_problem(*problem_key)[3]
    report_epochs = [trials * epochs * part // NUM_POINTS for part in range(1, NUM_POINTS + 1)]
    report_indices = range(NUM_POINTS // 4 - 1, NUM_POINTS, NUM_POINTS // 4)
    figures: dict[str, dict[str, Any]] = {}
    cell, columns = "-".join(problem_key[1]), (str(report_epochs[q]) for q in report_indices)
    print(f"\n{cell}: points of regret after so many epochs, mean (middle half) [95 %]\n")
    print(f"| recipe | {' | '.join(columns)} | trials | whole |")
    print("|---" * 7 + "|")
    for name in names:
        search = partial(simulate_search, problem_key, (RECIPES | VARIANTS)[name], trials)
        runs = list(pool.map(search, range(seeds)))
        regrets = np.stack([run[0][report_epochs] for run in runs])
        interval = bootstrap((regrets,), np.mean, axis=0, rng=0).confidence_interval
        figures[name] = row = {
            "epochs": report_epochs,
            "mean": regrets.mean(0).round(3).tolist(),
            "interquartile_mean": [round(interquartile_mean(r), 3) for r in regrets.T],
            "low": interval.low.round(3).tolist(),
            "high": interval.high.round(3).tolist(),
            **{key: float(np.mean([run[1][key] for run in runs])) for key in ("started", "whole")},
        }
        texts = (
            f"{row['mean'][q]:.2f} ({row['interquartile_mean'][q]:.2f}) "
            f"[{row['low'][q]:.2f}, {row['high'][q]:.2f}]"
            for q in report_indices
        )
        counts = f"{row['started']:.0f} | {row['whole']:.0f}"
        print(f"| {name} | {' | '.join(texts)} | {counts} |", flush=True)
    return figures


def find_slow_curves(path: Path, cell: Cell) -> list[list[float]]:
    """Accuracies of the runs that are slow but sound, see the top of this file."""
    runs = load_recorded_runs(path)[cell]
    bests = np.maximum.accumulate([run.accuracies for run in runs if not run.late_decay], axis=1)
    early, last = bests[:, bests.shape[1] // 4 - 1], bests[:, -1]
    good = last >= np.quantile(last, 0.8)
    slow = good & (early < np.median(early))
    usual_decay = [run.accuracies for run in runs if not run.late_decay]
    late_decay = [run.accuracies for run in runs if run.late_decay]
    return [usual_decay[i] for i in np.flatnonzero(slow)] + late_decay


def measure_slow_learners(
    problem_key: tuple[Path, Cell, bool], trials: int, seeds: int, pool: ProcessPoolExecutor
) -> dict[str, dict[str, float]]:
    """Put each slow learner into searches by each of `JUDGES`; print a table of their fates."""
    curves, epochs = (
        find_slow_curves(problem_key[0], problem_key[1]),
        load_problem(*problem_key)[3],
    )
    fates: dict[str, dict[str, float]] = {}
    if not curves:
        return fates
    print(f"\n{'-'.join(problem_key[1])}: the fate of {len(curves)} slow but sound learners\n")
    print("| recipe | went all the way % | epochs, mean |\n|---|---|---|")
    for name in SLOW_LEARNER_RECIPES:
        search = partial(simulate_search, problem_key, (RECIPES | VARIANTS)[name], trials)
        jobs = [(seed, curve) for curve in curves for seed in range(seeds)]
        epochs_reached = [run[1]["lasted"] for run in pool.map(search, *zip(*jobs, strict=True))]
        whole_share = float(np.mean([epoch == epochs for epoch in epochs_reached]))
        fates[name] = {"whole": whole_share, "epochs": float(np.mean(epochs_reached))}
        print(f"| {name} | {100 * whole_share:.0f} | {np.mean(epochs_reached):.1f} |", flush=True)
    return fates


def main() -> None:
    """Compare the recipes on every cell."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("files", nargs="*", type=Path, help="more files of curves")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=40, help="the budget, in whole trials")
    recipe_names = [*RECIPES, *VARIANTS]
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=recipe_names)
    parser.add_argument("--cells", nargs="*", help="method-model; all if not given")
    parser.add_argument("--trees", action="store_true", help="trees as the surrogate")
    arguments = parser.parse_args()
    cells, fates = {}, {}
    with ProcessPoolExecutor(os.cpu_count(), initializer=silence_libraries) as pool:
        for path in (CURVES, *arguments.files):
            for cell in load_recorded_runs(path):
                name, problem_key = "-".join(cell), (path, cell, arguments.trees)
                if arguments.cells and name not in arguments.cells:
                    continue
                budget = arguments.trials, arguments.seeds
                cells[name] = compare_recipes(problem_key, arguments.recipes, *budget, pool)
                fates[name] = measure_slow_learners(problem_key, SLOW_LEARNER_NUMBER, 3, pool)
    half_index = NUM_POINTS // 2 - 1
    ratios = {
        name: round(
            figures["kdtune"]["mean"][half_index] / figures["stock"]["mean"][half_index], 3
        )
        for name, figures in cells.items()
        if {"kdtune", "stock"} <= figures.keys()
    }
    for name, ratio in ratios.items():
        print(f"{name}: regret over stock at half of the budget {ratio}")
    summary = {"regret_over_stock": max(ratios.values(), default=None), "ratios": ratios}
    print(json.dumps({**summary, "slow_learners": fates, "cells": cells}))


def silence_libraries() -> None:
    """Make a process of the pool silent, with one thread."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    silence_libraries()
    main()
