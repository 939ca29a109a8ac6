"""A search in simulated time: four workers, epochs of nearly equal length, curves from a source.

The noise of a run, and how long its epochs take, depend on the seed of the search, the cell and
the trial's number in it, so that the searches of all strategies are paired as far as they can be.

Regrets are differences in points between the best noise-free accuracy of a cell's space and the
noise-free accuracy of one of the trials; before the first finished trial, of chance level.

* ``incumbent``: the first of the strategy's own ranking.
* ``luckiest``: the finished trial with the highest accuracy, noise included.
* ``chosen``: what `kdtune confirm` chooses, with the same runs for all strategies: the first
  3 settings of the ranking are trained 5 times again, the highest mean accuracy wins.
* ``oracle``: the truly best of all trials that have had an epoch. It is limited by what is
  proposed, and not by noise: no ranking of these trials has a lower regret.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from one_cell_strategies import ONE_CELL_STRATEGIES
from simulated_trial import SimulatedTrial, StrategyBuilder
from strategies import STRATEGIES
from surrogate import Surrogate, load_usual_runs, space_of_runs

from kdtune.log.events import Cell
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.search.space import SearchSpace

CURVES = Path(__file__).parent / "curves" / "fashion-mnist.jsonl"
NUM_WORKERS = 4
BUDGETS = (6, 9, 12, 16, 20, 24, 32, 40)
"""Budgets of a cell, in whole trials, after which regrets are looked at."""

SHORT_BUDGETS = BUDGETS[:5]
"""Budgets of searches that compare `IDEAS`; those of 20 trials take a third of the time of 40."""

REGRETS = ("incumbent", "luckiest", "chosen", "oracle")
NUM_CANDIDATES, CONFIRM_SEEDS = 3, 5


class CurveSource(Protocol):
    """A source of curves."""

    def sample_run(
        self, settings: dict[str, Any], rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Return a run's accuracies by epoch, and the noise-free best one."""

    def possible_runs(self, settings: dict[str, Any]) -> tuple[np.ndarray, float]:
        """Return equally likely runs, [N, epochs], and the noise-free best accuracy."""


@dataclass(frozen=True)
class Problem:
    """A cell to be searched: its best accuracy, the epochs of a whole trial, chance level."""

    space: SearchSpace
    curves: CurveSource
    optimum: float
    epochs: int
    chance: float = 0.1


@cache
def load_problems(path: Path, trees: bool = False) -> dict[Cell, Problem]:
    """Return the cells of a file of recorded runs.

    Args:
        path: the file.
        trees: have trees as the surrogate.
    """
    problems = {}
    for cell, runs in load_usual_runs(path).items():
        space = space_of_runs(cell[0], runs)
        surrogate = Surrogate(space, runs, trees)
        epochs = len(runs[0].accuracies)
        problems[cell] = Problem(space, surrogate, surrogate.find_optimum(), epochs)
    return problems


class Simulation:
    """A search under way.

    Args:
        problems: the cells, which are searched together.
        build: makes the strategy.
        seed: of the strategy, of noise and durations.
    """

    def __init__(self, problems: Mapping[Cell, Problem], build: StrategyBuilder, seed: int):
        [self.epochs] = {problem.epochs for problem in problems.values()}
        spaces = {cell: problem.space for cell, problem in problems.items()}
        self.problems, self.seed = problems, seed
        self.strategy = build(spaces, self.epochs, seed)
        self.trials: dict[Cell, list[SimulatedTrial]] = {cell: [] for cell in problems}
        self.epochs_used: Counter[Cell] = Counter()
        self._arrivals: list[tuple[float, int, SimulatedTrial]] = []  # a heap of epochs, by time
        self._order = count()
        rng = np.random.default_rng(seed)
        for _ in range(NUM_WORKERS):
            self._start_trial(rng.uniform(0, 0.5))

    def finish_epoch(self) -> SimulatedTrial:
        """Return the trial that finished the next epoch; what follows it has started."""
        now, _, trial = heapq.heappop(self._arrivals)
        trial.epoch += 1
        self.epochs_used[trial.cell] += 1
        if self.strategy.report(trial) and trial.epoch < self.epochs:
            self._start_epoch(trial, now)
        else:
            self._start_trial(now)
        return trial

    def _start_trial(self, now: float) -> None:
        trial = self.strategy.suggest()
        if not trial.epoch:
            rng = self._make_rng(trial.cell, "run", len(self.trials[trial.cell]))
            self.trials[trial.cell].append(trial)
            curves = self.problems[trial.cell].curves
            trial.curve, trial.true_best = curves.sample_run(trial.settings, rng)
            trial.durations = rng.uniform(0.95, 1.05, self.epochs)
        self._start_epoch(trial, now)

    def _start_epoch(self, trial: SimulatedTrial, now: float) -> None:
        arrival = now + trial.durations[trial.epoch]
        heapq.heappush(self._arrivals, (arrival, next(self._order), trial))

    def _make_rng(self, cell: Cell, *purpose: object) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, *cell, *purpose))

    def measure_regrets(self, cell: Cell) -> list[float]:
        """Return the `REGRETS` of a cell, now."""
        problem, trials = self.problems[cell], self.trials[cell]
        finished = [trial for trial in trials if trial.epoch == self.epochs]
        picked = [problem.chance] * 3
        if finished and (ranking := self.strategy.rank(cell, finished)):
            luckiest = max(finished, key=lambda trial: trial.best)
            picks = ranking[0], luckiest, self._confirm(cell, ranking)
            picked = [trial.true_best for trial in picks]
        picked.append(max(trial.true_best for trial in trials if trial.epoch))
        return [100 * (problem.optimum - accuracy) for accuracy in picked]

    def _confirm(self, cell: Cell, ranking: list[SimulatedTrial]) -> SimulatedTrial:
        """Return what fresh runs choose of the first trials with different settings."""
        candidates: dict[tuple[Any, ...], SimulatedTrial] = {}
        for trial in ranking:
            candidates.setdefault(tuple(trial.settings.values()), trial)
        trials, scores = list(candidates.values())[:NUM_CANDIDATES], []
        for place, trial in enumerate(trials):
            rng = self._make_rng(cell, "confirm", place)
            sample = self.problems[cell].curves.sample_run
            runs = [sample(trial.settings, rng)[0].max() for _ in range(CONFIRM_SEEDS)]
            scores.append(np.mean(runs))
        return trials[int(np.argmax(scores))]


def search(
    problems: Mapping[Cell, Problem],
    build: StrategyBuilder,
    seed: int,
    budgets: Sequence[int] = BUDGETS,
) -> dict[Cell, np.ndarray]:
    """Search cells together; return for each its regrets, [budgets, REGRETS].

    Args:
        problems: the cells.
        build: makes the strategy.
        seed: of the search.
        budgets: of a cell, in whole trials, after which regrets are measured.
    """
    simulation = Simulation(problems, build, seed)
    regrets: dict[Cell, list[list[float]]] = {cell: [] for cell in problems}
    while any(len(looks) < len(budgets) for looks in regrets.values()):
        cell = simulation.finish_epoch().cell
        looks = regrets[cell]
        if len(looks) < len(budgets):
            budget = budgets[len(looks)] * simulation.epochs
            if simulation.epochs_used[cell] == budget:
                looks.append(simulation.measure_regrets(cell))
    return {cell: np.array(looks) for cell, looks in regrets.items()}


def search_file(
    path: Path, trees: bool, budgets: Sequence[int], name: str, seed: int
) -> dict[Cell, np.ndarray]:
    """Search all cells of a file by a strategy, together if it can, see `search`.

    Args:
        path: the file of recorded runs.
        trees: have trees as the surrogate.
        budgets: after which regrets are measured.
        name: of the strategy.
        seed: of the search.
    """
    problems = load_problems(path, trees)
    together = [problems]
    if name in ONE_CELL_STRATEGIES:
        together = [{cell: problem} for cell, problem in problems.items()]
    searches = [search(group, STRATEGIES[name], seed, budgets) for group in together]
    return {cell: regrets for found in searches for cell, regrets in found.items()}
