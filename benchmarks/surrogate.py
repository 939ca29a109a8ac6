"""Recorded learning curves, and a surrogate that gives curves of settings nobody has tried.

    python benchmarks/surrogate.py results/NAME... > curves/NAME.jsonl

writes the trials of sweeps as curves, in the form of `kdtune.tuning.planning.recorded_curves`.

    python benchmarks/surrogate.py --check curves/NAME.jsonl

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
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from optuna.distributions import FloatDistribution
from scipy.stats import qmc, spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from kdtune.config.strengths import override_settings, strengths_to_weights
from kdtune.log.events import Cell
from kdtune.log.folder import SweepFolder
from kdtune.tuning.planning.recorded_curves import (
    RecordedRun,
    load_finished_trials,
    load_recorded_runs,
)
from kdtune.tuning.planning.synthetic_curves import to_unit_interval
from kdtune.tuning.search.space import SearchSpace, load_spaces

NUM_COMPONENTS = 4
"""Principal components of the curves that are predicted."""

TOP_MARGIN = 0.01
"""Maximum distance of a curve above the best run."""

NUM_NOISE_NEIGHBOURS = 12
"""Curves among which the noise of a run is drawn."""

NUM_FOLDS = 10

OTHER_RANGES = {
    "lr": FloatDistribution(1e-3, 0.5, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
    "alpha": FloatDistribution(0.0, 1.0),
}
"""Ranges that differ from those of our spaces."""


_SHARE = FloatDistribution(0.0, 1.0)

RECORDED_WEIGHTS = {
    "at": {"alpha": _SHARE, "beta": FloatDistribution(10, 1e4, log=True)},
    "fitnets": {"alpha": _SHARE, "beta": FloatDistribution(1e-3, 100, log=True)},
    "kd": {"alpha": FloatDistribution(0.1, 10, log=True)},
}
"""Ranges of weights from which runs were recorded, in the place of those of strengths."""

RECORDED_SCALES = {
    "at": {"alpha": 6.571, "beta": 0.01037},
    "fitnets": {"alpha": 6.571, "beta": 1.153},
    "kd": {"alpha": 6.571},
}
"""Loss scales of `curves/fashion-mnist.jsonl` at T = 4: they give weights to start points."""


def _with_recorded_weights(space: SearchSpace) -> SearchSpace:
    scales = RECORDED_SCALES.get(space.method, {})
    starts = [strengths_to_weights(point, scales) for point in space.start_points]
    ranges = override_settings(space.distributions, RECORDED_WEIGHTS.get(space.method, {}))
    return replace(space, distributions=ranges, start_points=starts)


def space_of_runs(method: str, runs: list[RecordedRun]) -> SearchSpace:
    """Return the search space that runs were drawn from; `START` as far as it lies in it."""
    method_space = _with_recorded_weights(load_spaces()[method])
    ranges = dict(method_space.distributions)
    if any(method_space.restrict_point(run.params).keys() != ranges.keys() for run in runs):
        ranges |= {key: value for key, value in OTHER_RANGES.items() if key in ranges}
    space = replace(
        method_space, distributions=ranges, constants={}, define_by_run=None, start_points=[]
    )
    starts = [point for point in method_space.start_points if space.restrict_point(point)]
    return replace(space, start_points=starts)


def load_usual_runs(path: Path) -> dict[Cell, list[RecordedRun]]:
    """Return the recorded runs by cell whose learning rate decays when that of most runs does."""
    runs = load_recorded_runs(path)
    step_sizes = Counter(run.step_size for own in runs.values() for run in own)
    [(usual, _)] = step_sizes.most_common(1)
    return {cell: [run for run in own if run.step_size == usual] for cell, own in runs.items()}


class Surrogate:
    """Curves of any settings in a space.

    Args:
        space: ranges of the settings.
        runs: recorded in it.
        trees: have regression trees instead of Gaussian processes, to see what hangs on these.
    """

    def __init__(self, space: SearchSpace, runs: list[RecordedRun], trees: bool = False):
        self.space = space
        accuracies = np.array([run.accuracies for run in runs])
        self._ceiling = accuracies.max(0) + TOP_MARGIN
        values = -np.log(self._ceiling - accuracies)
        self._mean = values.mean(0)
        _, _, directions = np.linalg.svd(values - self._mean, full_matrices=False)
        self._directions = directions[:NUM_COMPONENTS]
        scores = (values - self._mean) @ self._directions.T
        self._scales = scores.std(0)
        points = self._to_points(run.params for run in runs)
        fit_regressor = _fit_trees if trees else _fit_process
        self._regressors = [fit_regressor(points, s) for s in (scores / self._scales).T]
        noise, repeated = _estimate_noise(runs, values)
        if not repeated.any():
            noise, repeated = values - self._predict_values(points), np.full(len(runs), True)
        self._noise, self._best_accuracies = (
            noise[repeated],
            self._predict_accuracies(points)[repeated].max(1),
        )

    def _to_points(self, settings: Iterable[dict[str, float]]) -> np.ndarray:
        """Return settings on scales from 0 to 1, [N, D]."""
        ranges = self.space.distributions
        ordered = ({name: values[name] for name in ranges} for values in settings)
        return np.array([list(to_unit_interval(values, ranges).values()) for values in ordered])

    def _predict_values(self, points: np.ndarray) -> np.ndarray:
        """Return the modelled values without noise, [N, epochs]."""
        scores = np.stack([r.predict(points) for r in self._regressors], axis=1)
        values: np.ndarray = self._mean + (scores * self._scales) @ self._directions
        return values

    def _predict_accuracies(
        self, points: np.ndarray, noise: float | np.ndarray = 0.0
    ) -> np.ndarray:
        accuracies: np.ndarray = self._ceiling - np.exp(-self._predict_values(points) - noise)
        return accuracies

    def predict_curves(self, settings: Iterable[dict[str, float]]) -> np.ndarray:
        """Noise-free accuracies of settings, [N, epochs]."""
        return self._predict_accuracies(self._to_points(settings))

    def possible_runs(self, settings: dict[str, float]) -> tuple[np.ndarray, float]:
        """Return equally likely runs, [N, epochs], and the noise-free best accuracy."""
        point = self._to_points([settings])
        best = float(self._predict_accuracies(point).max())
        neighbours = np.argsort(np.abs(self._best_accuracies - best), kind="stable")[
            :NUM_NOISE_NEIGHBOURS
        ]
        curves = self._predict_accuracies(point, self._noise[neighbours])
        return np.clip(curves, 0, 1), best

    def sample_run(
        self, settings: dict[str, float], rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Return a run's accuracies by epoch, and the noise-free best one."""
        curves, best = self.possible_runs(settings)
        return rng.choice(curves), best

    def find_optimum(self) -> float:
        """Return the best noise-free accuracy in the space: of a Sobol sample, refined."""
        rng = np.random.default_rng(0)
        points = qmc.Sobol(len(self.space.distributions), rng=0).random(2**13)
        for step in (0.05, 0.03, 0.02, 0.01):
            best_points = points[np.argsort(self._predict_accuracies(points).max(1))[-20:]]
            neighbours = np.repeat(best_points, 100, axis=0)
            neighbours = np.clip(neighbours + rng.normal(0, step, neighbours.shape), 0, 1)
            points = np.vstack([best_points, neighbours])
        return float(self._predict_accuracies(points).max())


def _estimate_noise(runs: list[RecordedRun], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return deviations of repetitions from their mean, [N, epochs], and their runs, [N]."""
    setting_keys = np.array([json.dumps(run.params, sort_keys=True) for run in runs])
    noise, repeated = np.zeros_like(values), np.zeros(len(runs), dtype=bool)
    for name in np.unique(setting_keys):
        same_settings = setting_keys == name
        if (count := same_settings.sum()) > 1:
            noise[same_settings] = values[same_settings] - values[same_settings].mean(0)
            noise[same_settings] *= math.sqrt(count / (count - 1))
            repeated |= same_settings
    return noise, repeated


def _fit_process(points: np.ndarray, scores: np.ndarray) -> GaussianProcessRegressor:
    lengths = Matern(np.ones(points.shape[1]), (0.1, 20), nu=2.5)
    kernel = ConstantKernel(1.0, (0.05, 20)) * lengths + WhiteKernel(0.05, (1e-3, 1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return process.fit(points, scores)


def _fit_trees(points: np.ndarray, scores: np.ndarray) -> ExtraTreesRegressor:
    return ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0).fit(points, scores)


def cross_validate(space: SearchSpace, runs: list[RecordedRun], trees: bool) -> dict[str, float]:
    """Predict the best accuracy of runs from those with other settings, fold by fold.

    Returns:
        Points: ``spread`` (standard deviation over the settings), ``error`` (root mean square) of
        all and of the better half, ``noise`` (standard deviation of runs that differ in the seed);
        and ``rank_correlation`` of predicted and measured.
    """
    setting_keys = [json.dumps(run.params, sort_keys=True) for run in runs]
    order = np.random.default_rng(0).permutation(sorted(set(setting_keys)))
    predicted, bests = np.zeros(len(runs)), np.array([max(run.accuracies) for run in runs])
    for fold in range(NUM_FOLDS):
        held_out = np.isin(setting_keys, order[fold::NUM_FOLDS])
        training_runs = [run for run, out in zip(runs, held_out, strict=True) if not out]
        surrogate = Surrogate(space, training_runs, trees)
        held_out_settings = [run.params for run, out in zip(runs, held_out, strict=True) if out]
        predicted[held_out] = surrogate.predict_curves(held_out_settings).max(1)
    errors, better = bests - predicted, bests >= np.median(bests)
    repeated_bests = [bests[np.array(setting_keys) == name] for name in set(setting_keys)]
    noise = [values.var(ddof=1) for values in repeated_bests if len(values) > 1]
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
            for row in load_finished_trials(SweepFolder(source)):
                sys.stdout.write(json.dumps(row) + "\n")
            continue
        for (method, model), runs in load_usual_runs(source).items():
            figures = cross_validate(space_of_runs(method, runs), runs, arguments.trees)
            words = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            print(f"{method}-{model}: {words}", flush=True)
