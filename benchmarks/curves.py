"""Recorded learning curves, and a surrogate that gives curves of settings nobody has tried.

    python benchmarks/curves.py results/NAME... > curves/NAME.jsonl

writes the trials of sweeps as curves, in the form of `kdtune.tuning.planning.recorded_curves`.

    python benchmarks/curves.py --check curves/NAME.jsonl

says how well the surrogate predicts runs that it has not seen, and how much two runs differ.

Surrogate of a cell: −log(top − accuracy) of every epoch, where top is a point above the best run
seen at that epoch (so that no prediction goes beyond it, and differences among good runs are not
drowned by runs that failed), reduced to principal components, each a Gaussian process over the
settings (Matérn 5/2 with a length for each setting, and noise). The noise of a run is, on the same
scale, a recorded run less the mean of its repetitions with other seeds, of a setting that does
about as well; where nothing was repeated, the residual of a run that does. So noise differs
between good and bad settings, and hangs together from epoch to epoch.
"""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution
from scipy.stats import qmc, spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from kdtune.log.folder import SweepFolder
from kdtune.tuning.planning.recorded_curves import Run, condense, read_runs
from kdtune.tuning.search.space import Space, load_spaces

COMPONENTS = 4
"""Principal components of the curves that are predicted."""

MARGIN = 0.01
"""How far a curve may go beyond the best run seen."""

ALIKE = 12
"""Curves among which the noise of a run is drawn."""

FOLDS = 10

OTHER_RANGES = {
    "lr": FloatDistribution(1e-3, 0.5, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
    "alpha": FloatDistribution(0.0, 1.0),
}
"""Where those drew from other ranges than our spaces."""


def space_of(method: str, runs: list[Run]) -> Space:
    """The search space that runs were drawn from; `START` as far as it lies in it."""
    own = load_spaces()[method]
    ranges = dict(own.distributions)
    if any(own.inside(run.settings).keys() != ranges.keys() for run in runs):
        ranges |= {key: value for key, value in OTHER_RANGES.items() if key in ranges}
    space = Space(method, ranges, {}, None, [], own.source, own.path)
    return Space(
        method, ranges, {}, None, [p for p in own.start if space.inside(p)], own.source, own.path
    )


class Surrogate:
    """Curves of any settings in a space.

    Args:
        space: ranges of the settings.
        runs: recorded in it.
        trees: have regression trees instead of Gaussian processes, to see what hangs on these.
    """

    def __init__(self, space: Space, runs: list[Run], trees: bool = False):
        self.space = space
        accuracies = np.array([run.accuracies for run in runs])
        self._top = accuracies.max(0) + MARGIN
        values = -np.log(self._top - accuracies)
        self._mean = values.mean(0)
        _, _, directions = np.linalg.svd(values - self._mean, full_matrices=False)
        self._directions = directions[:COMPONENTS]
        scores = (values - self._mean) @ self._directions.T
        self._scales = scores.std(0)
        places = self._places(run.settings for run in runs)
        fit = _fit_trees if trees else _fit_process
        self._regressors = [fit(places, s) for s in (scores / self._scales).T]
        noise, repeated = _noise_of_repetitions(runs, values)
        if not repeated.any():
            noise, repeated = values - self._values(places), np.full(len(runs), True)
        self._noise, self._bests = noise[repeated], self._accuracies(places)[repeated].max(1)

    def _places(self, settings: Iterable[dict[str, float]]) -> np.ndarray:
        """Settings on scales from 0 to 1, [N, D]."""
        names = self.space.distributions
        return np.array([[self._unit(name, s[name]) for name in names] for s in settings])

    def _unit(self, name: str, value: float) -> float:
        d: Any = self.space.distributions[name]
        if d.log:
            return math.log(value / d.low) / math.log(d.high / d.low)
        return (value - d.low) / (d.high - d.low)

    def _values(self, places: np.ndarray) -> np.ndarray:
        """What is modelled, noise-free, [N, epochs]."""
        scores = np.stack([r.predict(places) for r in self._regressors], axis=1)
        return self._mean + (scores * self._scales) @ self._directions

    def _accuracies(self, places: np.ndarray, noise: float | np.ndarray = 0.0) -> np.ndarray:
        return self._top - np.exp(-self._values(places) - noise)

    def curves(self, settings: Iterable[dict[str, float]]) -> np.ndarray:
        """Noise-free accuracies of settings, [N, epochs]."""
        return self._accuracies(self._places(settings))

    def draw(
        self, settings: dict[str, float], random: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """A run with these settings: accuracies by epoch, and the noise-free best one."""
        place = self._places([settings])
        best = float(self._accuracies(place).max())
        alike = np.argsort(np.abs(self._bests - best), kind="stable")[:ALIKE]
        [curve] = self._accuracies(place, self._noise[random.choice(alike)])
        return np.clip(curve, 0, 1), best

    def optimum(self) -> float:
        """The best noise-free accuracy in the space: of a Sobol sample, refined."""
        random = np.random.default_rng(0)
        places = qmc.Sobol(len(self.space.distributions), rng=0).random(2**13)
        for spread in (0.05, 0.03, 0.02, 0.01):
            top = places[np.argsort(self._accuracies(places).max(1))[-20:]]
            near = np.repeat(top, 100, axis=0)
            near = np.clip(near + random.normal(0, spread, near.shape), 0, 1)
            places = np.vstack([top, near])
        return float(self._accuracies(places).max())


def _noise_of_repetitions(runs: list[Run], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What repetitions differ from their mean by, [N, epochs], and which runs they are, [N]."""
    names = np.array([json.dumps(run.settings, sort_keys=True) for run in runs])
    noise, repeated = np.zeros_like(values), np.zeros(len(runs), dtype=bool)
    for name in np.unique(names):
        alike = names == name
        if (count := alike.sum()) > 1:
            noise[alike] = values[alike] - values[alike].mean(0)
            noise[alike] *= math.sqrt(count / (count - 1))
            repeated |= alike
    return noise, repeated


def _fit_process(places: np.ndarray, scores: np.ndarray) -> GaussianProcessRegressor:
    lengths = Matern(np.ones(places.shape[1]), (0.1, 20), nu=2.5)
    kernel = ConstantKernel(1.0, (0.05, 20)) * lengths + WhiteKernel(0.05, (1e-3, 1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return process.fit(places, scores)


def _fit_trees(places: np.ndarray, scores: np.ndarray) -> ExtraTreesRegressor:
    return ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0).fit(places, scores)


def check(space: Space, runs: list[Run], trees: bool) -> dict[str, float]:
    """Predict the best accuracy of runs from those with other settings, fold by fold.

    Returns:
        Points: ``spread`` (standard deviation over the settings), ``error`` (root mean square) of
        all and of the better half, ``noise`` (standard deviation of runs that differ in the seed);
        and ``rank_correlation`` of predicted and measured.
    """
    names = [json.dumps(run.settings, sort_keys=True) for run in runs]
    order = np.random.default_rng(0).permutation(sorted(set(names)))
    predicted, bests = np.zeros(len(runs)), np.array([max(run.accuracies) for run in runs])
    for fold in range(FOLDS):
        held = np.isin(names, order[fold::FOLDS])
        known = [run for run, out in zip(runs, held, strict=True) if not out]
        surrogate = Surrogate(space, known, trees)
        unseen = [run.settings for run, out in zip(runs, held, strict=True) if out]
        predicted[held] = surrogate.curves(unseen).max(1)
    errors, better = bests - predicted, bests >= np.median(bests)
    again = [bests[np.array(names) == name] for name in set(names)]
    noise = [values.var(ddof=1) for values in again if len(values) > 1]
    return {
        "runs": len(runs),
        "spread": 100 * bests.std(),
        "error": 100 * math.sqrt((errors**2).mean()),
        "error_better_half": 100 * math.sqrt((errors[better] ** 2).mean()),
        "noise": 100 * math.sqrt(np.mean(noise)) if noise else math.nan,
        "rank_correlation": float(spearmanr(bests, predicted).statistic),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("sources", nargs="+", type=Path, help="folders of sweeps")
    parser.add_argument("--check", action="store_true", help="they are files: predict their runs")
    parser.add_argument("--trees", action="store_true", help="trees as the surrogate")
    arguments = parser.parse_args()
    for source in arguments.sources:
        if not arguments.check:
            for row in condense(SweepFolder(source)):
                sys.stdout.write(json.dumps(row) + "\n")
            continue
        for (method, model), all_runs in read_runs(source).items():
            runs = [run for run in all_runs if not run.late]
            figures = check(space_of(method, runs), runs, arguments.trees)
            words = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            print(f"{method}-{model}: {words}", flush=True)
