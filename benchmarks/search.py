"""Efficiency of searches, replayed on recorded curves in simulated time.

    make bench-search                           # Fashion-MNIST curves of this repository
    make bench-search CURVES=other.jsonl        # and another file of curves
    make bench-search CURVES=foreign.jsonl.gz   # and recorded runs that are not ours

Our own searcher, rule and budget, as a sweep runs them, searches the four cells of the curves
together; the stock strategy (Ray's `OptunaSearch` and `ASHAScheduler` with their defaults) and
others that know one cell search each by itself. Four workers, the same epochs for all, paired
seeds. `simulate.py` says what regret is, and what the oracle is; curves come from the surrogate
of `surrogate.py`, or are those of runs (`foreign.py`).

Slow learners: recorded runs that ended among the best fifth of their cell and were in the worse
half after a quarter of the epochs, and runs with a small learning rate that decays late. Each
takes the place of the 10th trial of a search of its cell; the table says how many went all the
way before the cell had used the epochs of 20 whole trials.

``--ablations`` also compares kdtune with its `IDEAS`. The last line is JSON.
"""

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from foreign import STRATEGIES as FOREIGN_STRATEGIES
from foreign import search_foreign
from report import (
    OURS,
    STOCK,
    Regrets,
    cell_name,
    match_baseline,
    pick_budget,
    print_differences,
    print_tables,
    ratio_interval,
    select,
    summarize_figures,
    summarize_ratios,
)
from simulate import BUDGETS, CURVES, SHORT_BUDGETS, Simulation, load_problems, search_file
from strategies import IDEAS, STRATEGIES
from surrogate import load_usual_runs

from kdtune.log.events import Cell
from kdtune.tuning.planning.recorded_curves import load_recorded_runs

BASELINE = Path(__file__).parent / "baselines" / "search-before.json"
FOREIGN_SUFFIX = ".gz"
FOREIGN_BUDGETS = (12, 20, 40)
FOREIGN_SEEDS = 20

SLOW_LEARNER_NUMBER = 10
"""The trial of a search whose place a slow learner takes, from 1."""

SLOW_LEARNER_SEEDS = 3
SLOW_LEARNER_BUDGET = 20
"""Whole trials of a cell until which a slow learner may go all the way."""


class Comparison:
    """Searches by strategy, each with the seeds from 0 on.

    Args:
        pool: runs them.
        search: searches by the name of a strategy with a seed.
    """

    def __init__(
        self, pool: ProcessPoolExecutor, search: Callable[[str, int], dict[Cell, np.ndarray]]
    ):
        self._pool, self._search = pool, search
        self._searches: dict[str, list[dict[Cell, np.ndarray]]] = {}

    def search_by(self, name: str, seeds: int) -> dict[Cell, np.ndarray]:
        """Return the regrets of a strategy by cell, [seeds, BUDGETS, REGRETS]."""
        searches = self._searches.setdefault(name, [])
        missing = range(len(searches), seeds)
        searches += self._pool.map(partial(self._search, name), missing)
        return {cell: np.stack([s[cell] for s in searches[:seeds]]) for cell in searches[0]}


def compare(comparison: Comparison, strategies: list[str], seeds: int) -> Regrets:
    """Search by each strategy; print the tables; return the regrets.

    Args:
        comparison: makes the searches.
        strategies: their names.
        seeds: of each strategy.
    """
    regrets = {name: comparison.search_by(name, seeds) for name in strategies}
    print_tables(regrets)
    return regrets


def compare_ideas(comparison: Comparison, seeds: int) -> None:
    """Search by kdtune and by each of `IDEAS`; print the differences.

    Args:
        comparison: makes the searches.
        seeds: of each.
    """
    variants = {name: comparison.search_by(name, seeds) for name in IDEAS}
    print_differences(variants, comparison.search_by(OURS, seeds))


def find_slow_curves(path: Path, cell: Cell) -> list[list[float]]:
    """Accuracies of the runs that are slow but sound, see the top of this file."""
    usual_runs = load_usual_runs(path)[cell]
    late_runs = [run for run in load_recorded_runs(path)[cell] if run not in usual_runs]
    bests = np.maximum.accumulate([run.accuracies for run in usual_runs], axis=1)
    early, last = bests[:, bests.shape[1] // 4 - 1], bests[:, -1]
    good = last >= np.quantile(last, 0.8)
    slow = good & (early < np.median(early))
    slow_runs = [usual_runs[i] for i in np.flatnonzero(slow)]
    return [run.accuracies for run in slow_runs + late_runs]


def count_slow_epochs(
    path: Path, cell: Cell, trees: bool, name: str, curve: list[float], seed: int
) -> int:
    """Return how many epochs a slow learner has in a search.

    Args:
        path: file of the curves.
        cell: that is searched.
        trees: have trees as the surrogate.
        name: of the strategy.
        curve: of the slow learner.
        seed: of the search.
    """
    simulation = Simulation({cell: load_problems(path, trees)[cell]}, STRATEGIES[name], seed)
    trials = simulation.trials[cell]
    while len(trials) < SLOW_LEARNER_NUMBER:
        simulation.finish_epoch()
    slow_learner = trials[SLOW_LEARNER_NUMBER - 1]
    slow_learner.curve = np.array(curve)
    budget = SLOW_LEARNER_BUDGET * simulation.epochs
    while slow_learner.epoch < simulation.epochs and simulation.epochs_used[cell] < budget:
        simulation.finish_epoch()
    return slow_learner.epoch


def measure_slow_learners(
    path: Path, trees: bool, names: list[str], pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """Return the fates of slow learners by cell and strategy; print a table of them.

    Args:
        path: file of the curves.
        trees: have trees as the surrogate.
        names: of the strategies.
        pool: runs the searches.
    """
    fates: dict[str, Any] = {}
    print("\nSlow but sound learners\n")
    print(
        "| cell | learners | strategy | went all the way % | epochs, mean |\n|---|---|---|---|---|"
    )
    for cell, problem in load_problems(path, trees).items():
        jobs = [(c, s) for c in find_slow_curves(path, cell) for s in range(SLOW_LEARNER_SEEDS)]
        for name in names if jobs else []:
            count_epochs = partial(count_slow_epochs, path, cell, trees, name)
            epochs = np.array(list(pool.map(count_epochs, *zip(*jobs, strict=True))))
            whole, mean = float((epochs == problem.epochs).mean()), float(epochs.mean())
            fates.setdefault(cell_name(cell), {})[name] = {"whole": whole, "epochs": mean}
            learners = len(jobs) // SLOW_LEARNER_SEEDS
            row = f"{cell_name(cell)} | {learners} | {name} | {100 * whole:.0f} | {mean:.1f}"
            print(f"| {row} |", flush=True)
    return fates


def compare_foreign(comparison: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    """Search among foreign runs by each strategy that can; return figures, and ours over stock.

    Args:
        comparison: makes the searches.
        arguments: of the command line.
    """
    names = [name for name in arguments.strategies if name in FOREIGN_STRATEGIES]
    regrets = compare(comparison, names, FOREIGN_SEEDS)
    if arguments.ablation_seeds:
        compare_ideas(comparison, min(FOREIGN_SEEDS, arguments.ablation_seeds))
    summary: dict[str, Any] = {"foreign_over_stock": None, "foreign": summarize_figures(regrets)}
    if {OURS, STOCK} <= regrets.keys():
        [ours], [stock] = (regrets[name].values() for name in (OURS, STOCK))
        ratio = ratio_interval(select(ours, "luckiest"), select(stock, "luckiest"))
        over_stock = {str(budget): pick_budget(ratio, budget) for budget in FOREIGN_BUDGETS}
        summary["foreign_over_stock"] = over_stock
    return summary


def write_baseline(path: Path, figures: dict[str, Any], seeds: int) -> None:
    """Write what kdtune chooses, to compare a later searcher with.

    Args:
        path: the file.
        figures: of `summarize_figures`.
        seeds: the number of searches.
    """
    command = f"python benchmarks/search.py --seeds {seeds} --record-baseline {path}"
    chosen = {cell: strategies[OURS]["chosen"] for cell, strategies in figures.items()}
    baseline = {"command": command, "seeds": seeds, "budgets": BUDGETS, "chosen": chosen}
    path.write_text(json.dumps(baseline, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("files", nargs="*", type=Path, help="more curves; foreign ones end in .gz")
    parser.add_argument("--seeds", type=int, default=100, help="0: only foreign curves")
    parser.add_argument("--strategies", nargs="*", default=[OURS, STOCK], choices=STRATEGIES)
    parser.add_argument("--ablations", action="store_true", help="also compare kdtune's variants")
    parser.add_argument("--ablation-seeds", type=int, default=24, help="of each variant")
    parser.add_argument("--trees", action="store_true", help="trees as the surrogate")
    parser.add_argument("--record-baseline", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if sum(path.suffix == FOREIGN_SUFFIX for path in arguments.files) > 1:
        parser.error("give one file of foreign curves")
    if not arguments.ablations:
        arguments.ablation_seeds = 0
    return arguments


def compare_file(
    path: Path, arguments: argparse.Namespace, pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """Search the cells of a file of curves and follow its slow learners; return all figures.

    Args:
        path: the file.
        arguments: of the command line.
        pool: runs the searches.
    """
    load_problems(path, arguments.trees)  # once, before the processes of the pool start
    comparison, short = (
        Comparison(pool, partial(search_file, path, arguments.trees, budgets))
        for budgets in (BUDGETS, SHORT_BUDGETS)
    )
    regrets = compare(comparison, arguments.strategies, arguments.seeds)
    if arguments.ablation_seeds:
        compare_ideas(short, arguments.ablation_seeds)
    fates = measure_slow_learners(path, arguments.trees, arguments.strategies, pool)
    figures = {"slow_learners": fates, "budgets": BUDGETS, "cells": summarize_figures(regrets)}
    return {**summarize_ratios(regrets), **figures}


def main() -> None:
    """Compare the strategies on all files."""
    arguments = parse_arguments()
    summary: dict[str, Any] = {}
    with ProcessPoolExecutor(os.cpu_count(), initializer=silence_libraries) as pool:
        if arguments.seeds:
            summary = compare_file(CURVES, arguments, pool)
        for path in arguments.files:
            if path.suffix == FOREIGN_SUFFIX:
                foreign = Comparison(pool, partial(search_foreign, path))
                summary |= compare_foreign(foreign, arguments)
            else:
                summary.setdefault("files", {})[str(path)] = compare_file(path, arguments, pool)
    if arguments.record_baseline:
        write_baseline(arguments.record_baseline, summary["cells"], arguments.seeds)
    if arguments.seeds and OURS in arguments.strategies and not arguments.trees:
        baseline = json.loads(BASELINE.read_text())["chosen"]
        summary["trials_to_match_40"] = match_baseline(summary["cells"], baseline)
    print(json.dumps({"foreign_over_stock": None, **summary}))


def silence_libraries() -> None:
    """Make a process of the pool silent, with one thread."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    silence_libraries()
    main()
