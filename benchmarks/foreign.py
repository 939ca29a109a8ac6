"""Searches among recorded runs that we neither recorded nor modelled.

A file ``*.jsonl.gz`` has a run a line: its settings, ``epochs``, ``learning_curve`` (a list with
``top_1``), and ``nan_train_loss``. Nothing is modelled: a searcher proposes anywhere in the ranges
of the settings, and the trial becomes the nearest recorded run that was not proposed before, in
the unit cube of the searcher's own scales. So the searcher is told the settings of that run.

A curve is the best accuracy up to each twentieth of a run; so all runs are equally long, and the
accuracy of a run is its best. A run that diverged has 0.1 % throughout. A setting has the scale,
linear or logarithmic, on which its values are closer to uniform, and is continuous, since the
nearest run counts anyway; an epoch among them (``lr_peak_epoch``) counts as a share of the run.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from one_cell_strategies import StockStrategy
from optuna.distributions import BaseDistribution, FloatDistribution
from scipy.stats import kstest
from simulate import Problem, search
from simulated_trial import StrategyBuilder
from strategies import IDEAS, JOINT_STRATEGIES, VARIANTS

from kdtune.log.events import Cell
from kdtune.tuning.planning.synthetic_curves import to_unit_interval
from kdtune.tuning.search.space import SearchSpace

CELL: Cell = ("student", "foreign")
NUM_EPOCHS = 20
DIVERGED_ACCURACY = 0.001
NOT_SETTINGS = {"iteration", "nan_train_loss", "learning_curve"}

Settings = dict[str, float]


@dataclass(frozen=True)
class RecordedCurves:
    """Recorded runs: their settings, and their accuracies by epoch."""

    settings: list[Settings]
    accuracies: list[np.ndarray]

    def possible_runs(self, settings: Settings) -> tuple[np.ndarray, float]:
        """Return the curve that was recorded with the settings, [1, epochs], and its best."""
        curve = self.accuracies[self.settings.index(settings)]
        return curve[np.newaxis], float(curve[-1])

    def sample_run(self, settings: Settings, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the curve that was recorded with the settings, and the best of it."""
        curves, best = self.possible_runs(settings)
        return curves[0], best


@dataclass(frozen=True)
class RecordedSpace(SearchSpace):
    """Ranges of recorded runs, of which each can be proposed once."""

    unused: list[Settings] = field(default_factory=list)

    def ask_study(self, study: optuna.Study) -> tuple[optuna.Trial, Settings]:
        """Ask a study for a trial, and for one at the nearest recorded run in its place."""
        proposed, _ = super().ask_study(study)
        study.tell(proposed, state=optuna.trial.TrialState.FAIL)
        point = self._to_point(proposed.params)
        nearest = min(self.unused, key=lambda run: np.linalg.norm(self._to_point(run) - point))
        self.unused.remove(nearest)
        study.enqueue_trial(nearest)
        return super().ask_study(study)

    def _to_point(self, settings: Settings) -> np.ndarray:
        ordered = {name: settings[name] for name in self.distributions}
        return np.array(list(to_unit_interval(ordered, self.distributions).values()))


class RecordedStockStrategy(StockStrategy):
    """Stock, with recorded runs in the place of what it proposes."""

    def propose(self, name: str) -> Settings:
        """Return the settings of a new trial."""
        self.search._ot_trials[name], _ = self.space.ask_study(self.search._ot_study)
        return super().propose(name)


STRATEGIES: dict[str, StrategyBuilder] = {
    name: partial(build, repeat_share=0)
    for name, build in (JOINT_STRATEGIES | IDEAS | VARIANTS).items()
} | {"stock": RecordedStockStrategy}
"""Strategies that can search among recorded runs, of which none was repeated."""


@cache
def load_foreign_problem(path: Path) -> Problem:
    """Return the problem that a file of foreign curves poses."""
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    settings = [_extract_settings(row) for row in rows]
    names = [name for name in settings[0] if all(name in values for values in settings)]
    settings = [{name: values[name] for name in names} for values in settings]
    ranges = {name: _infer_range([values[name] for values in settings]) for name in names}
    curves = [_normalise_curve(row) for row in rows]
    space = RecordedSpace(CELL[0], ranges, {}, None, [], "", path, settings)
    optimum = float(max(curve[-1] for curve in curves))
    source = RecordedCurves(settings, curves)
    return Problem(space, source, optimum, NUM_EPOCHS, DIVERGED_ACCURACY)


def _extract_settings(row: Mapping[str, Any]) -> Settings:
    return {
        name: value / row["epochs"] if name.endswith("_epoch") else float(value)
        for name, value in row.items()
        if name not in NOT_SETTINGS and isinstance(value, int | float)
    }


def _infer_range(values: list[float]) -> BaseDistribution:
    low, high = min(values), max(values)
    log = low > 0 and _distance_to_uniform(np.log(values)) < _distance_to_uniform(values)
    return FloatDistribution(low, high, log=log)


def _distance_to_uniform(values: Any) -> float:
    low, high = np.min(values), np.max(values)
    return float(kstest((values - low) / (high - low), "uniform").statistic)


def _normalise_curve(row: Mapping[str, Any]) -> np.ndarray:
    """Return the best accuracy up to each of `NUM_EPOCHS` shares of a run."""
    if row["nan_train_loss"]:
        return np.full(NUM_EPOCHS, DIVERGED_ACCURACY)
    bests = np.maximum.accumulate([epoch["top_1"] for epoch in row["learning_curve"]])
    shares = np.arange(1, NUM_EPOCHS + 1) / NUM_EPOCHS
    curve: np.ndarray = bests[np.ceil(shares * len(bests)).astype(int) - 1]
    return curve


def search_foreign(path: Path, name: str, seed: int) -> dict[Cell, np.ndarray]:
    """Search among the recorded runs of a file, see `simulate.search`.

    Args:
        path: the file.
        name: of the strategy.
        seed: of the search.
    """
    return search({CELL: renew_problem(path)}, STRATEGIES[name], seed)


def renew_problem(path: Path) -> Problem:
    """Return the problem of a file of foreign curves, with all its runs unused."""
    problem = load_foreign_problem(path)
    assert isinstance(problem.space, RecordedSpace)
    return replace(problem, space=replace(problem.space, unused=list(problem.space.unused)))
