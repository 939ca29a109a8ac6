"""Recorded learning curves, and a surrogate that gives curves of settings nobody has tried.

    python benchmarks/curves.py results/NAME > curves/NAME.jsonl

writes the trials of a sweep as curves: one JSON object a line with ``method``, ``model``, the
searched ``settings``, ``seed``, ``seconds`` of an epoch and ``validation_accuracy`` after each.

    python benchmarks/curves.py --check curves/NAME.jsonl

says how well the surrogate predicts runs that it has not seen.

Surrogate of a cell: logits of the accuracies of all epochs, reduced to their principal components,
each a Gaussian process over the settings (Matérn 5/2 with a length for each setting, and noise).
The noise of a run is the residual curve of a recorded run that did about as well, with a random
sign: noise differs between good and bad settings, and hangs together from epoch to epoch.
"""

import argparse
import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution
from scipy.stats import qmc, spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from kdtune.results import Cell, SweepFolder
from kdtune.tuning.space import Space, load_spaces

COMPONENTS = 4
"""Principal components of the curves that are predicted."""

ALIKE = 12
"""Recorded runs among which the noise of a run is drawn."""

FOLDS = 10

OTHER_NAMES = {"wd": "weight_decay", "T": "temperature"}
"""Keys of files that were not written by this program."""

OTHER_RANGES = {
    "lr": FloatDistribution(1e-3, 0.5, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
    "alpha": FloatDistribution(0.0, 1.0),
}
"""Where those drew from other ranges than our spaces."""


@dataclass(frozen=True)
class Run:
    """A recorded run."""

    settings: dict[str, float]
    accuracies: list[float]


def condense(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """The trials of a sweep that went all the way, as plain values."""
    asked: dict[str, Any] = {}
    epochs: dict[str, list[Any]] = defaultdict(list)
    for event in folder.events():
        if event["event"] == "asked":
            asked[event["trial_id"]] = event
        elif event["event"] == "epoch":
            epochs[event["trial_id"]].append(event)
        elif event["event"] == "ended" and event["state"] == "finished":
            trial, own = asked[event["trial_id"]], epochs[event["trial_id"]]
            yield {
                "method": trial["method"],
                "model": trial["model"],
                "settings": {k: float(f"{v:.6g}") for k, v in trial["parameters"].items()},
                "seed": trial["config"]["seed"],
                "seconds": round(sum(e["seconds"] for e in own) / len(own), 3),
                "validation_accuracy": [e["validation_accuracy"] for e in own],
            }


def read_runs(path: Path) -> dict[Cell, list[Run]]:
    """Read recorded runs, by cell."""
    runs: dict[Cell, list[Run]] = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "settings" not in row:
            names = {key: OTHER_NAMES.get(key, key) for key in ("lr", "wd", "T", "alpha", "beta")}
            row["settings"] = {ours: row[k] for k, ours in names.items() if row[k] is not None}
        cell = (row["method"], row.get("model", path.stem))
        runs[cell].append(Run(row["settings"], row["validation_accuracy"]))
    return runs


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
    """

    def __init__(self, space: Space, runs: list[Run]):
        self.space = space
        logits = _logit(np.array([run.accuracies for run in runs]))
        places = self.places(run.settings for run in runs)
        self._mean = logits.mean(0)
        _, _, directions = np.linalg.svd(logits - self._mean, full_matrices=False)
        self._directions = directions[:COMPONENTS]
        scores = (logits - self._mean) @ self._directions.T
        self._scales = scores.std(0)
        self._processes = [_fit(places, s) for s in (scores / self._scales).T]
        predicted = self.logits(places)
        self._residuals, self._bests = logits - predicted, predicted.max(1)

    def places(self, settings: Iterable[dict[str, float]]) -> np.ndarray:
        """Settings on scales from 0 to 1, [N, D]."""
        return np.array(
            [[self._unit(name, s[name]) for name in self.space.distributions] for s in settings]
        )

    def _unit(self, name: str, value: float) -> float:
        d: Any = self.space.distributions[name]
        if d.log:
            return math.log(value / d.low) / math.log(d.high / d.low)
        return (value - d.low) / (d.high - d.low)

    def logits(self, places: np.ndarray) -> np.ndarray:
        """Noise-free logits of the accuracies, [N, epochs]."""
        scores = np.stack([process.predict(places) for process in self._processes], axis=1)
        return self._mean + (scores * self._scales) @ self._directions

    def draw(
        self, settings: dict[str, float], random: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """A run with these settings: accuracies by epoch, and the noise-free best one."""
        [logits] = self.logits(self.places([settings]))
        alike = np.argsort(np.abs(self._bests - logits.max()))[:ALIKE]
        noise = self._residuals[random.choice(alike)] * random.choice([-1, 1])
        return _share(logits + noise), float(_share(logits).max())

    def optimum(self) -> float:
        """The best noise-free accuracy in the space: of a Sobol sample, refined."""
        random = np.random.default_rng(0)
        places = qmc.Sobol(len(self.space.distributions), rng=0).random(2**13)
        for spread in (0.05, 0.03, 0.02, 0.01):
            top = places[np.argsort(self.logits(places).max(1))[-20:]]
            near = np.repeat(top, 100, axis=0)
            near = np.clip(near + random.normal(0, spread, near.shape), 0, 1)
            places = np.vstack([top, near])
        return float(_share(self.logits(places)).max())


def _fit(places: np.ndarray, scores: np.ndarray) -> GaussianProcessRegressor:
    lengths = Matern(np.ones(places.shape[1]), (0.1, 20), nu=2.5)
    kernel = ConstantKernel(1.0, (0.05, 20)) * lengths + WhiteKernel(0.05, (1e-3, 1))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0).fit(
            places, scores
        )


def _logit(share: np.ndarray) -> np.ndarray:
    inside = np.clip(share, 0.005, 0.995)
    return np.log(inside / (1 - inside))


def _share(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def check(space: Space, runs: list[Run]) -> dict[str, float]:
    """Predict the best accuracy of runs from the others, fold by fold."""
    order = np.random.default_rng(0).permutation(len(runs))
    predicted = np.zeros(len(runs))
    for fold in range(FOLDS):
        held = order[fold::FOLDS]
        surrogate = Surrogate(space, [runs[i] for i in np.setdiff1d(order, held)])
        places = surrogate.places(runs[i].settings for i in held)
        predicted[held] = _share(surrogate.logits(places)).max(1)
    bests = np.array([max(run.accuracies) for run in runs])
    errors = bests - predicted
    return {
        "runs": len(runs),
        "spread_points": 100 * bests.std(),
        "error_points": 100 * float(np.sqrt((errors**2).mean())),
        "rank_correlation": float(spearmanr(bests, predicted).statistic),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument(
        "source", type=Path, help="a sweep's folder; a file of curves with --check"
    )
    parser.add_argument("--check", action="store_true", help="predict held-out runs")
    arguments = parser.parse_args()
    if arguments.check:
        for (method, model), runs in read_runs(arguments.source).items():
            figures = check(space_of(method, runs), runs)
            words = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            print(f"{method}-{model}: {words}", flush=True)
    else:
        for row in condense(SweepFolder(arguments.source)):
            sys.stdout.write(json.dumps(row) + "\n")
