"""How well a search spends its epochs: replayed on recorded curves, in simulated time.

    make bench-search                      # Fashion-MNIST curves of this repository
    make bench-search CURVES=other.jsonl   # and another file of curves

Our own searcher, rule and budget, as a sweep runs them, against the stock recipe (Ray's
`OptunaSearch` and `ASHAScheduler` with their defaults) and others, a cell at a time: four workers,
the same epochs for all, many seeds. Curves come from the surrogate of `curves.py`.

Regret: points by which the noise-free accuracy of the incumbent is below the best of the space.
The incumbent is the trial that went all the way and reached the highest (noisy) accuracy; before
there is one, it is chance level.
"""

import argparse
import heapq
import itertools
import json
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
import torch
from curves import Surrogate, read_runs, space_of
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.stats import bootstrap

from kdtune.config import SweepConfig, TrainConfig
from kdtune.results import Cell, Event
from kdtune.tuning.budget import Budget
from kdtune.tuning.schedule import Schedule
from kdtune.tuning.search import Search
from kdtune.tuning.space import Space
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.studies import Studies

WORKERS = 4
CHANCE = 0.1
CURVES = Path(__file__).parent / "curves" / "fashion-mnist.jsonl"


@dataclass(eq=False)
class Trial:
    """A trial in simulated time.

    Attributes:
        settings: its searched values.
        handle: what its recipe knows it by.
        epoch: how many it has had.
        curve: its accuracies, once it has begun.
        truth: its noise-free best accuracy.
    """

    settings: dict[str, Any]
    handle: Any = None
    epoch: int = 0
    curve: np.ndarray | None = None
    truth: float = 0.0


class Recipe(Protocol):
    """A way of searching one cell."""

    def suggest(self) -> Trial:
        """The next trial; one that was given before goes on."""

    def report(self, trial: Trial, accuracy: float, best: float) -> bool:
        """Take an epoch's accuracy, and the best so far; whether the trial goes on."""


class Ours:
    """The search of a sweep, without Ray's loop and without a file.

    Args:
        cell: whose search it is.
        space: of its method.
        epochs: of a whole trial.
        seed: of the sweep.
        settings: of `SweepConfig`.
    """

    def __init__(self, cell: Cell, space: Space, epochs: int, seed: int, **settings: Any):
        about = {"name": "n", "data": "d", "methods": [cell[0]], "models": [cell[1]]}
        limits = {"baselines": False, "epochs": epochs, "seed": seed, "epochs_total": 10**9}
        sweep = SweepConfig.check({**about, **limits, **settings})
        studies = Studies(sweep, {cell[0]: space})
        stopping = Stopping(
            sweep.scheduler, sweep.epochs, sweep.grace_period, sweep.reduction_factor
        )
        budget = Budget(sweep)

        def append(event: Event) -> None:
            for fold in (studies.fold, stopping.fold, budget.fold):
                fold(event)

        def configure(cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
            return TrainConfig.check({**settings, "method": cell[0], "model": cell[1]})

        self._search = Search(studies, budget, configure, append)
        self._schedule = Schedule(epochs, stopping, budget, append)
        self._names = list(space.distributions)

    def suggest(self) -> Trial:
        """See `Recipe`."""
        config: Any = self._search.suggest("")
        settings = {name: config["config"][name] for name in self._names}
        return Trial(settings, SimpleNamespace(config=config))

    def report(self, trial: Trial, accuracy: float, best: float) -> bool:
        """See `Recipe`."""
        figures = {"epoch": trial.epoch, "validation_accuracy": accuracy, "seconds": 1.0}
        result = {**figures, "best_validation_accuracy": best}
        decision = self._schedule.on_trial_result(None, trial.handle, result)
        return decision == TrialScheduler.CONTINUE


class Stock:
    """`OptunaSearch` and `ASHAScheduler` as their documentation shows them.

    Args:
        cell: of no matter here.
        space: of the cell's method.
        epochs: of a whole trial.
        seed: of Optuna's sampler.
        start: also give it our start points.
        sampler: instead of its own.
    """

    def __init__(
        self,
        cell: Cell,
        space: Space,
        epochs: int,
        seed: int,
        start: bool = False,
        sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None,
    ):
        chosen: dict[str, Any] = {"sampler": sampler(seed)} if sampler else {"seed": seed}
        self._search = OptunaSearch(
            space=space.distributions,
            metric="validation_accuracy",
            mode="max",
            points_to_evaluate=space.start if start else None,
            **chosen,
        )
        self._asha = ASHAScheduler(metric="validation_accuracy", mode="max", max_t=epochs)
        self._numbers = itertools.count()

    def suggest(self) -> Trial:
        """See `Recipe`."""
        name = str(next(self._numbers))
        handle = SimpleNamespace(trial_id=name)
        self._asha.on_trial_add(None, handle)
        return Trial(self._search.suggest(name), handle)

    def report(self, trial: Trial, accuracy: float, best: float) -> bool:
        """See `Recipe`; as Tune does, the searcher is not shown the result that ends a trial."""
        result = {"training_iteration": trial.epoch, "validation_accuracy": accuracy}
        decision = self._asha.on_trial_result(None, trial.handle, result)
        if decision == TrialScheduler.CONTINUE:
            self._search.on_trial_result(trial.handle.trial_id, result)
            return True
        self._search.on_trial_complete(trial.handle.trial_id, result)
        return False


class OneEpoch:
    """Train all one epoch and finish the best: of every 30 random settings the best 2.

    Args:
        cell: of no matter here.
        space: of the cell's method.
        epochs: of a whole trial.
        seed: of the settings.
    """

    SIZE, KEPT = 30, 2

    def __init__(self, cell: Cell, space: Space, epochs: int, seed: int):
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._space = space.distributions
        self._seen: list[tuple[float, Trial]] = []
        self._chosen: list[Trial] = []

    def suggest(self) -> Trial:
        """See `Recipe`."""
        if self._chosen:
            return self._chosen.pop()
        return Trial(self._study.ask(self._space).params)

    def report(self, trial: Trial, accuracy: float, best: float) -> bool:
        """See `Recipe`."""
        if trial.epoch > 1:
            return True
        self._seen.append((best, trial))
        if len(self._seen) == self.SIZE:
            self._seen.sort(key=lambda entry: entry[0])
            self._chosen = [trial for _, trial in self._seen[-self.KEPT :]]
            self._seen.clear()
        return False


def random_search(seed: int) -> optuna.samplers.BaseSampler:
    """A sampler that learns nothing."""
    return optuna.samplers.RandomSampler(seed=seed)


RECIPES: dict[str, Callable[..., Recipe]] = {
    "kdtune": Ours,
    "stock": Stock,
    "stock + START": partial(Stock, start=True),
    "random + ASHA": partial(Stock, sampler=random_search),
    "random": partial(Ours, sampler="random", scheduler="none"),
    "one epoch": OneEpoch,
}
"""What is compared; the first is ours."""


@cache
def problem(path: Path, cell: Cell) -> tuple[Space, Surrogate, float, int]:
    """A cell to search: its space, its curves, its best accuracy, and the epochs of a trial."""
    runs = [run for run in read_runs(path)[cell] if not run.late]
    space = space_of(cell[0], runs)
    surrogate = Surrogate(space, runs)
    return space, surrogate, surrogate.optimum(), len(runs[0].accuracies)


def simulate(
    path: Path, cell: Cell, build: Callable[..., Recipe], trials: int, seed: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Search a cell.

    Args:
        path: of the curves.
        cell: in it.
        build: makes the recipe.
        trials: the budget, in trials that go all the way.
        seed: of the search; noise and speed of workers follow from it, too.

    Returns:
        The regret in points after each epoch, from none, and counts of trials.
    """
    space, surrogate, optimum, epochs = problem(path, cell)
    recipe = build(cell, space, epochs, seed)
    random = np.random.default_rng([seed, 1])
    regrets = [100 * (optimum - CHANCE)]
    best_seen, started, whole = 0.0, 0, 0
    order = itertools.count()  # of what ends at the same time
    under_way: list[tuple[float, int, Trial]] = []

    def begin(now: float) -> None:
        nonlocal started
        trial = recipe.suggest()
        if trial.curve is None:
            started += 1
            trial.curve, trial.truth = surrogate.draw(trial.settings, random)
        advance(trial, now)

    def advance(trial: Trial, now: float) -> None:
        trial.epoch += 1
        heapq.heappush(under_way, (now + random.uniform(0.95, 1.05), next(order), trial))

    for _ in range(WORKERS):
        begin(random.uniform(0, 0.5))
    while len(regrets) <= trials * epochs:
        now, _, trial = heapq.heappop(under_way)
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
    return np.array(regrets), {"started": started, "whole": whole}


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def measure(
    path: Path, cell: Cell, names: list[str], trials: int, seeds: int, pool: ProcessPoolExecutor
) -> dict[str, dict[str, Any]]:
    """Search a cell by each recipe with all seeds; print a table.

    Returns:
        For each recipe the regret after each quarter of the budget: mean, interquartile mean, and
        a bootstrap interval (95 %) of the mean; and mean counts of trials.
    """
    epochs = problem(path, cell)[3]
    quarters = [trials * epochs * q // 4 for q in (1, 2, 3, 4)]
    figures: dict[str, dict[str, Any]] = {}
    print(
        f"\n{'-'.join(cell)}: points of regret after so many epochs, mean (middle half) [95 %]\n"
    )
    print(f"| recipe | {' | '.join(map(str, quarters))} | trials | whole |")
    print("|---" * 7 + "|")
    for name in names:
        search = partial(simulate, path, cell, RECIPES[name], trials)
        runs = list(pool.map(search, range(seeds)))
        regrets = np.stack([run[0][quarters] for run in runs])
        interval = bootstrap((regrets,), np.mean, axis=0, rng=0).confidence_interval
        figures[name] = {
            "epochs": quarters,
            "mean": regrets.mean(0).round(3).tolist(),
            "interquartile_mean": [round(interquartile_mean(r), 3) for r in regrets.T],
            "low": interval.low.round(3).tolist(),
            "high": interval.high.round(3).tolist(),
            **{key: round(float(np.mean([run[1][key] for run in runs])), 1) for key in runs[0][1]},
        }
        of = figures[name]
        cells = (
            f"{mean:.2f} ({middle:.2f}) [{low:.2f}, {high:.2f}]"
            for mean, middle, low, high in zip(
                of["mean"], of["interquartile_mean"], of["low"], of["high"], strict=True
            )
        )
        print(f"| {name} | {' | '.join(cells)} | {of['started']} | {of['whole']} |", flush=True)
    return figures


def main() -> None:
    """Compare the recipes on every cell."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("files", nargs="*", type=Path, help="more files of curves")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--trials", type=int, default=40, help="the budget, in whole trials")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--cells", nargs="*", help="method-model; all if not given")
    arguments = parser.parse_args()
    cells: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for path in (CURVES, *arguments.files):
            for cell in read_runs(path):
                if arguments.cells and "-".join(cell) not in arguments.cells:
                    continue
                cells["-".join(cell)] = measure(
                    path, cell, arguments.recipes, arguments.trials, arguments.seeds, pool
                )
    ratios = {
        cell: round(figures["kdtune"]["mean"][1] / figures["stock"]["mean"][1], 3)
        for cell, figures in cells.items()
        if {"kdtune", "stock"} <= figures.keys()
    }
    for name, ratio in ratios.items():
        print(f"{name}: regret over stock at half of the budget {ratio}")
    worst = max(ratios.values(), default=None)
    print(json.dumps({"regret_over_stock": worst, "ratios": ratios, "cells": cells}))


def quiet() -> None:
    """Have a process of the pool say nothing, and use one thread."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    quiet()
    main()
