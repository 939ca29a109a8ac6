"""Luck of a search, and what it has left to gain, by the model of its cell.

Functions are drawn from the posterior of the model over many points of the space. What a draw has
at its best point, and the settings with the best posterior mean lack, is left to gain if the
truth is that draw (the regret that terminators of Bayesian optimisation bound; Makarova et al.
2022, Ishibashi et al. 2023).

Luck is how much the true accuracy of what is chosen differs between repeated searches. Two parts
of its variance are added: that of the best settings if the tried ones were drawn again, which is
large after few or random trials, and that of what is left to gain, which remains where a search
has tried much of the same. `make bench-verdict` compares luck with the truth.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kdtune.reports.tables.statistics import bootstrap_best_sd
from kdtune.tuning.search.cell_model import CellModel

LEFT_TO_GAIN_QUANTILE = 0.9
"""Chance that no more is left to gain than the log says."""

OVERCONFIDENCE = 1.3
"""Factor on the deviations of draws from the posterior mean.

The posterior takes fitted length scales and noise for known, so it is too narrow.
"""

NUM_DRAWS = 512
"""Functions that are drawn."""

NUM_SPACE_POINTS, NUM_NEAR_POINTS = 512, 64
"""Points of the whole space, and near each of the best settings."""

NUM_CENTERS, NEAR_SD = 3, 0.1
"""Number of those settings, and the standard deviation of points around them, in the unit cube."""

_JITTER = 1e-6  # variance, so that points that lie together have a covariance of full rank


def draw_left_to_gain(model: CellModel, seed: int) -> np.ndarray:
    """Return draws of what is left to gain, in accuracy, at least 0, [NUM_DRAWS].

    Args:
        model: of a cell with a finished trial.
        seed: of points and draws.
    """
    rng = np.random.RandomState(seed)
    tried = model.finished_points()
    in_space = model.normalized.sample_normalized_params(NUM_SPACE_POINTS, rng)
    points = np.vstack([tried, in_space, _near_points(model, tried, rng)])
    draws = model.warp.invert(_draw_functions(model, torch.from_numpy(points), rng))
    gains: np.ndarray = draws.max(axis=1) - draws[:, 0]
    return gains


def search_luck(model: CellModel, gains: np.ndarray) -> float:
    """Return the standard deviation of what repeated searches choose, in accuracy.

    Args:
        model: of the cell.
        gains: result of `draw_left_to_gain`.
    """
    mean, _ = model.posterior()
    _, first_trials = np.unique(model.points, axis=0, return_index=True)
    expected = model.warp.invert(mean[first_trials])
    return math.hypot(bootstrap_best_sd(expected), gains.std())


def _near_points(model: CellModel, tried: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Return points near the best settings, which differ from them in what is continuous."""
    near = np.repeat(tried[:NUM_CENTERS], NUM_NEAR_POINTS, axis=0)
    steps = rng.normal(0, NEAR_SD, near.shape)
    continuous = model.normalized.continuous_indices
    near[:, continuous] = np.clip(near + steps, 0, 1)[:, continuous]
    return near


def _draw_functions(model: CellModel, points: Tensor, rng: np.random.RandomState) -> np.ndarray:
    """Return standardised values of functions, [NUM_DRAWS, points]."""
    mean, covariance = model.process.posterior(points, joint=True)
    covariance.diagonal().add_(_JITTER)
    values, vectors = torch.linalg.eigh(covariance)
    noise = torch.from_numpy(rng.standard_normal((NUM_DRAWS, len(points))))
    deviations = (noise * values.clamp_min(0).sqrt()) @ vectors.T
    draws: np.ndarray = (mean + OVERCONFIDENCE * deviations).numpy()
    return draws
