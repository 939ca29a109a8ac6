"""How well a search spends its epochs: replayed on recorded curves, in simulated time.

    make bench-search                      # Fashion-MNIST curves of this repository
    make bench-search CURVES=other.jsonl   # and another file of curves

Our own searcher, rule and budget, as a sweep runs them, against the stock recipe (Ray's
`OptunaSearch` and `ASHAScheduler` with their defaults) and others, a cell at a time: four workers,
the same epochs for all, many seeds. Curves come from the surrogate of `curves.py`.

Regret: points by which the noise-free accuracy of the incumbent is below the best of the space.
The incumbent is the trial that went all the way and reached the highest (noisy) accuracy; before
there is one, it is chance level.

Slow learners: recorded runs that ended among the best fifth of their cell and were in the worse
half after a quarter of the epochs, and runs with a small learning rate that decays late. Each
takes the place of the 10th trial of a search; the table says how many went all the way.
"""

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from curves import Surrogate, space_of
from recipes import RECIPES, VARIANTS, Recipe, Trial
from scipy.stats import bootstrap

from kdtune.log.events import Cell
from kdtune.tuning.planning.recorded_curves import read_runs
from kdtune.tuning.planning.simulation import Timeline
from kdtune.tuning.search.space import Space

WORKERS = 4
CHANCE = 0.1
CURVES = Path(__file__).parent / "curves" / "fashion-mnist.jsonl"
POINTS = 16
"""Points of the curve of regret over epochs in the JSON line."""

INTRUDER = 10
"""The trial of a search whose place a slow learner takes, from 1."""

JUDGES = ("kdtune", "stock", "hyperband", "median", "grace 4, 1 in 2", "grace 8, 1 in 4")
"""Recipes of which the fate of slow learners is told."""


@cache
def problem(path: Path, cell: Cell, trees: bool) -> tuple[Space, Surrogate, float, int]:
    """A cell to search: its space, its curves, its best accuracy, and the epochs of a trial."""
    runs = [run for run in read_runs(path)[cell] if not run.late]
    space = space_of(cell[0], runs)
    surrogate = Surrogate(space, runs, trees)
    return space, surrogate, surrogate.optimum(), len(runs[0].accuracies)


def simulate(
    of: tuple[Path, Cell, bool],
    build: Callable[..., Recipe],
    trials: int,
    seed: int,
    intruder: list[float] | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Search a cell.

    Args:
        of: file of the curves, cell in it, and whether trees are the surrogate.
        build: makes the recipe.
        trials: the budget, in trials that go all the way.
        seed: of the search; noise and speed of workers follow from it, too.
        intruder: the curve that the trial `INTRUDER` has instead of its own.

    Returns:
        The regret in points after each epoch, from none; counts of trials, ``started`` and
        ``whole``, and the epochs of the intruder.
    """
    space, surrogate, optimum, epochs = problem(*of)
    cell = of[1]
    recipe = build(cell, space, epochs, seed)
    random = np.random.default_rng([seed, 1])
    regrets = [100 * (optimum - CHANCE)]
    best_seen, whole = 0.0, 0
    begun: list[Trial] = []
    under_way = Timeline()

    def begin(now: float) -> None:
        trial = recipe.suggest()
        if trial.curve is None:
            begun.append(trial)
            trial.curve, trial.truth = surrogate.draw(trial.settings, random)
            if intruder is not None and len(begun) == INTRUDER:
                trial.curve = np.array(intruder)
        advance(trial, now)

    def advance(trial: Trial, now: float) -> None:
        trial.epoch += 1
        under_way.add(now + random.uniform(0.95, 1.05), trial)

    for _ in range(WORKERS):
        begin(random.uniform(0, 0.5))
    while len(regrets) <= trials * epochs:
        now, trial = under_way.next()
        assert trial.curve is not None
        best, regret = float(trial.curve[: trial.epoch].max()), regrets[-1]
        goes_on = recipe.report(trial, float(trial.curve[trial.epoch - 1]), best)
        if trial.epoch == epochs:
            whole += 1
            if best > best_seen:
                best_seen, regret = best, 100 * (optimum - trial.truth)
        regrets.append(regret)
        if goes_on and trial.epoch < epochs:
            advance(trial, now)
        else:
            begin(now)
    lasted = begun[INTRUDER - 1].epoch if len(begun) >= INTRUDER else 0
    return np.array(regrets), {"started": len(begun), "whole": whole, "lasted": lasted}


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def measure(
    of: tuple[Path, Cell, bool],
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
    epochs = problem(*of)[3]
    places = [trials * epochs * part // POINTS for part in range(1, POINTS + 1)]
    quarters = range(POINTS // 4 - 1, POINTS, POINTS // 4)
    figures: dict[str, dict[str, Any]] = {}
    print(
        f"\n{'-'.join(of[1])}: points of regret after so many epochs, mean (middle half) [95 %]\n"
    )
    print(f"| recipe | {' | '.join(str(places[q]) for q in quarters)} | trials | whole |")
    print("|---" * 7 + "|")
    for name in names:
        search = partial(simulate, of, (RECIPES | VARIANTS)[name], trials)
        runs = list(pool.map(search, range(seeds)))
        regrets = np.stack([run[0][places] for run in runs])
        interval = bootstrap((regrets,), np.mean, axis=0, rng=0).confidence_interval
        figures[name] = own = {
            "epochs": places,
            "mean": regrets.mean(0).round(3).tolist(),
            "interquartile_mean": [round(interquartile_mean(r), 3) for r in regrets.T],
            "low": interval.low.round(3).tolist(),
            "high": interval.high.round(3).tolist(),
            **{key: float(np.mean([run[1][key] for run in runs])) for key in ("started", "whole")},
        }
        shown = (
            f"{own['mean'][q]:.2f} ({own['interquartile_mean'][q]:.2f}) "
            f"[{own['low'][q]:.2f}, {own['high'][q]:.2f}]"
            for q in quarters
        )
        counts = f"{own['started']:.0f} | {own['whole']:.0f}"
        print(f"| {name} | {' | '.join(shown)} | {counts} |", flush=True)
    return figures


def slow_learners(path: Path, cell: Cell) -> list[list[float]]:
    """Accuracies of the runs that are slow but sound, see the top of this file."""
    runs = read_runs(path)[cell]
    bests = np.maximum.accumulate([run.accuracies for run in runs if not run.late], axis=1)
    early, last = bests[:, bests.shape[1] // 4 - 1], bests[:, -1]
    good = last >= np.quantile(last, 0.8)
    slow = good & (early < np.median(early))
    usual = [run.accuracies for run in runs if not run.late]
    late = [run.accuracies for run in runs if run.late]
    return [usual[i] for i in np.flatnonzero(slow)] + late


def judge(
    of: tuple[Path, Cell, bool], trials: int, seeds: int, pool: ProcessPoolExecutor
) -> dict[str, dict[str, float]]:
    """Put each slow learner into searches by each of `JUDGES`; print a table of their fates."""
    learners, epochs = slow_learners(of[0], of[1]), problem(*of)[3]
    fates: dict[str, dict[str, float]] = {}
    if not learners:
        return fates
    print(f"\n{'-'.join(of[1])}: the fate of {len(learners)} slow but sound learners\n")
    print("| recipe | went all the way % | epochs, mean |\n|---|---|---|")
    for name in JUDGES:
        search = partial(simulate, of, (RECIPES | VARIANTS)[name], trials)
        jobs = [(seed, learner) for learner in learners for seed in range(seeds)]
        lasted = [run[1]["lasted"] for run in pool.map(search, *zip(*jobs, strict=True))]
        whole = float(np.mean([epoch == epochs for epoch in lasted]))
        fates[name] = {"whole": whole, "epochs": float(np.mean(lasted))}
        print(f"| {name} | {100 * whole:.0f} | {np.mean(lasted):.1f} |", flush=True)
    return fates


def main() -> None:
    """Compare the recipes on every cell."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("files", nargs="*", type=Path, help="more files of curves")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=40, help="the budget, in whole trials")
    known = [*RECIPES, *VARIANTS]
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=known)
    parser.add_argument("--cells", nargs="*", help="method-model; all if not given")
    parser.add_argument("--trees", action="store_true", help="trees as the surrogate")
    arguments = parser.parse_args()
    cells, fates = {}, {}
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for path in (CURVES, *arguments.files):
            for cell in read_runs(path):
                name, of = "-".join(cell), (path, cell, arguments.trees)
                if arguments.cells and name not in arguments.cells:
                    continue
                budget = arguments.trials, arguments.seeds
                cells[name] = measure(of, arguments.recipes, *budget, pool)
                fates[name] = judge(of, INTRUDER, 3, pool)
    half = POINTS // 2 - 1
    ratios = {
        name: round(figures["kdtune"]["mean"][half] / figures["stock"]["mean"][half], 3)
        for name, figures in cells.items()
        if {"kdtune", "stock"} <= figures.keys()
    }
    for name, ratio in ratios.items():
        print(f"{name}: regret over stock at half of the budget {ratio}")
    summary = {"regret_over_stock": max(ratios.values(), default=None), "ratios": ratios}
    print(json.dumps({**summary, "slow_learners": fates, "cells": cells}))


def quiet() -> None:
    """Have a process of the pool say nothing, and use one thread."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    quiet()
    main()
