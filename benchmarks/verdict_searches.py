"""Searches for `verdict.py`: their best settings, of known accuracy, and their luck.

All cells of a truth are searched together, as a sweep does, in the simulated time of
`simulate.py`, and looked at after as many epochs as `BUDGETS` in whole trials have. Truths:

* ``processes``: the four cells of ``curves/fashion-mnist.jsonl`` by the surrogate's processes.
* ``trees``: the same by regression trees.
* ``twins``: the first, but two students with the same curves, so that a sweep searches each method
  under two names.
* a file of foreign runs, see `foreign.py`.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from foreign import CELL as FOREIGN_CELL
from foreign import STRATEGIES as FOREIGN_STRATEGIES
from foreign import renew_problem
from simulate import CURVES, NUM_CANDIDATES, Problem, Simulation, load_problems
from strategies import STRATEGIES, KdtuneStrategy

from kdtune.log.events import Cell
from kdtune.reports.tables.statistics import bootstrap_best_sd

BUDGETS = (12, 24, 40)
TWIN = "ResNet18"
"""The second student of ``twins``."""

BEST_ACCURACY_PERCENT = 75.0
"""Accuracy of the best settings of every space, to which all noise-free ones are moved."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Settings that `kdtune confirm` trains again.

    Attributes:
        accuracy: noise-free, in percent.
        validation: equally likely validation accuracies of a run, in percent, [N].
    """

    accuracy: float
    validation: np.ndarray


@dataclass(frozen=True)
class FinishedSearch:
    """A search of a cell, after a budget.

    Attributes:
        sweep: number of the sweep, common to its cells.
        budget: in whole trials.
        trials: number of trials that were started.
        candidates: the best settings, in the order of the model.
        scores: of all settings, in percent.
        left_to_gain: at most, with 90 %, by the model; in points.
        luck: in points.
    """

    cell: Cell
    sweep: int
    budget: int
    trials: int
    candidates: tuple[Candidate, ...]
    scores: np.ndarray
    left_to_gain: float
    luck: float

    @cached_property
    def plain_luck(self) -> float:
        """Luck by the scores alone."""
        return bootstrap_best_sd(self.scores)

    @property
    def gap(self) -> float:
        """Distance of the best settings by the model from the best of the space, in points."""
        return BEST_ACCURACY_PERCENT - self.candidates[0].accuracy

    def worsen(self, points: float, of_validation: float = 0.0) -> "FinishedSearch":
        """Return the same search of a space in which all accuracies are lower.

        Args:
            points: by which they are lower.
            of_validation: by which those of validation are lower besides.
        """
        lost = points + of_validation
        moved = [Candidate(c.accuracy - points, c.validation - lost) for c in self.candidates]
        return replace(self, candidates=tuple(moved))


def make_searches(
    truth: str, strategy: str, budgets: Sequence[int], sweep: int
) -> list[FinishedSearch]:
    """Search the cells of a truth together; return a search of every cell and budget.

    Args:
        truth: see the top of this file.
        strategy: of `strategies.py`; it must be a variant of `KdtuneStrategy`.
        budgets: in whole trials, ascending.
        sweep: its number, the seed.
    """
    strategies = FOREIGN_STRATEGIES if truth.endswith(".gz") else STRATEGIES
    simulation = Simulation(_load_truth(truth), strategies[strategy], sweep)
    searches: dict[tuple[Cell, int], FinishedSearch] = {}
    while len(searches) < len(budgets) * len(simulation.problems):
        cell = simulation.finish_epoch().cell
        whole_trials, rest = divmod(simulation.epochs_used[cell], simulation.epochs)
        if whole_trials in budgets and not rest:
            searches[cell, whole_trials] = _look_at(simulation, cell, sweep)
    return list(searches.values())


def keep_searches(
    folder: Path | None, truth: str, strategy: str, budgets: Sequence[int], sweep: int
) -> list[FinishedSearch]:
    """Return the searches of `make_searches`, from a file if they were made before.

    Args:
        folder: of the files; without it nothing is kept.
        truth: see the top of this file.
        strategy: of `strategies.py`.
        budgets: in whole trials.
        sweep: its number.
    """
    if folder is None:
        return make_searches(truth, strategy, budgets, sweep)
    path = folder / f"{Path(truth).name}-{strategy}-{sweep:03d}.pickle"
    if path.exists():
        searches: list[FinishedSearch] = pickle.loads(path.read_bytes())
        return searches
    searches = make_searches(truth, strategy, budgets, sweep)
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(pickle.dumps(searches))
    temporary.rename(path)
    return searches


def _load_truth(truth: str) -> dict[Cell, Problem]:
    if truth.endswith(".gz"):
        return {FOREIGN_CELL: renew_problem(Path(truth))}
    problems = load_problems(CURVES, trees=truth == "trees")
    if truth != "twins":
        return problems
    both = [{(m, name): p for (m, _), p in problems.items()} for name in ("MultiBranchNet", TWIN)]
    return both[0] | both[1]


def _look_at(simulation: Simulation, cell: Cell, sweep: int) -> FinishedSearch:
    strategy, problem = simulation.strategy, simulation.problems[cell]
    assert isinstance(strategy, KdtuneStrategy)
    model = strategy.policy.studies.model_cell(cell)
    assert model is not None
    best = [strategy.trials[estimate.trial_id] for estimate in model.estimates[:NUM_CANDIDATES]]
    candidates = []
    for trial in best:
        runs, accuracy = problem.curves.possible_runs(trial.settings)
        accuracy = BEST_ACCURACY_PERCENT + 100 * (accuracy - problem.optimum)
        candidates.append(Candidate(accuracy, 100 * runs.max(axis=1)))
    scores = 100 * np.array(list(strategy.policy.scores.scores(cell).values()))
    return FinishedSearch(
        cell=cell,
        sweep=sweep,
        budget=simulation.epochs_used[cell] // simulation.epochs,
        trials=len(simulation.trials[cell]),
        candidates=tuple(candidates),
        scores=scores,
        left_to_gain=100 * model.left_to_gain,
        luck=100 * model.search_luck,
    )
