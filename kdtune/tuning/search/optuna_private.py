"""Optuna's private Gaussian process, of `GPSampler`: all private names that kdtune uses.

Optuna gives nobody the posterior of its sampler. `tests/tuning/search/test_optuna_private.py`
tests each name with the installed version.
"""

from collections.abc import Callable

import numpy as np
import optuna
import torch
from optuna._gp import acqf, gp
from optuna._gp.gp import GPRegressor as GPRegressor
from optuna._gp.search_space import SearchSpace
from optuna.samplers import GPSampler
from torch import Tensor

from kdtune.log.distributions import quiet_optuna

NormalizedSpace = SearchSpace

MIN_NOISE_VARIANCE = 1e-3
NOISE_CONCENTRATION, NOISE_RATE = 1.5, 4.0
"""The noise variance of standardised values has a gamma prior with mean 0.4 (Optuna's is 0.04).

Two runs that differ in the seed alone often differ as much as good settings do.
"""

NUM_QMC_SAMPLES = 128  # as in `GPSampler`

MIN_DISTANCE = 0.2
"""Points that are nearer, in length scales of the process, count as the same."""

NUM_CANDIDATES = 1024
"""Points of which the best one is taken where the best of all was tried before."""


def fit_process(points: np.ndarray, values: np.ndarray, is_categorical: np.ndarray) -> GPRegressor:
    """Return a Gaussian process (Matérn 5/2, one length scale per setting, and noise).

    Args:
        points: in the unit cube, [N, D].
        values: standardised, [N].
        is_categorical: for each setting, [D].
    """
    with quiet_optuna(optuna.logging.ERROR):  # if a fit fails, its defaults serve as well
        return gp.fit_kernel_params(
            X=points,
            Y=values,
            is_categorical=is_categorical,
            log_prior=_log_prior,
            minimum_noise=MIN_NOISE_VARIANCE,
            deterministic_objective=False,
        )


def _log_prior(process: GPRegressor) -> Tensor:
    """Return the log prior of Optuna's, but for the noise."""
    inverse_lengths, scale = process.inverse_squared_lengthscales, process.kernel_scale
    noise = process.noise_var
    return (
        -(0.1 / inverse_lengths + 0.1 * inverse_lengths).sum()
        + (torch.log(scale) - scale)
        + (NOISE_CONCENTRATION - 1) * torch.log(noise)
        - NOISE_RATE * noise
    )


class ShiftedProcess(GPRegressor):
    """A Gaussian process plus a prior mean.

    Args:
        process: fitted to values from which the prior mean was subtracted.
        prior_mean: of points, [..., D].
    """

    def __init__(self, process: GPRegressor, prior_mean: Callable[[Tensor], Tensor]):
        self.__dict__ |= process.__dict__
        self.process, self.prior_mean = process, prior_mean

    def posterior(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and variance of points."""
        mean, variance = super().posterior(x, joint)
        return mean + self.prior_mean(x), variance


class ProcessSampler(GPSampler):
    """Optuna's optimiser of an acquisition function, for a process that is fitted elsewhere.

    Args:
        options: as of `GPSampler`.
    """

    def best_point(
        self,
        process: GPRegressor,
        space: SearchSpace,
        tried: np.ndarray,
        best: np.ndarray,
        running: np.ndarray,
    ) -> np.ndarray:
        """Return the new point with the highest expected improvement on the best posterior mean.

        Where the best point was tried before, a search would stay in its corner: there the model
        is surest. Repeats, and not proposals, measure the noise of a point.

        Args:
            process: the posterior.
            space: of the points.
            tried: the points of the process, [N, D].
            best: the one with the best posterior mean, [D].
            running: points whose values are not known yet, [R, D].
        """
        threshold = float(process.posterior(torch.from_numpy(best))[0])
        function: acqf.BaseAcquisitionFunc
        if len(running):
            function = acqf.qLogEI(
                gpr=process,
                search_space=space,
                threshold=threshold,
                n_qmc_samples=NUM_QMC_SAMPLES,
                qmc_seed=int(self._rng.rng.randint(1 << 30)),
                normalized_params_of_running_trials=running,
            )
        else:
            function = acqf.LogEI(gpr=process, search_space=space, threshold=threshold)
        point: np.ndarray = self._optimize_acqf(function, best[np.newaxis])
        known = np.concatenate([tried, running])
        if _is_new(point[np.newaxis], known, process)[0]:
            return point
        drawn = space.sample_normalized_params(NUM_CANDIDATES, self._rng.rng)
        keeps = self._rng.rng.random_sample(drawn.shape) < 0.5
        candidates = np.where(keeps, point, drawn)  # share about half of the settings
        candidates = candidates[_is_new(candidates, known, process)]
        if not len(candidates):  # a space of a few points
            return point
        chosen: np.ndarray = candidates[int(function.eval_acqf_no_grad(candidates).argmax())]
        return chosen


def _is_new(points: np.ndarray, known: np.ndarray, process: GPRegressor) -> np.ndarray:
    """Return which points, [P, D], are far from all known ones, [N, D].

    A setting without an effect on the values has a long length scale, so it makes no point new.
    """
    differences = np.abs(points[:, np.newaxis] - known[np.newaxis])
    differences = np.minimum(differences, 1)  # as the kernel has it for any two choices
    distances = np.linalg.norm(differences / process.length_scales, axis=2)
    new: np.ndarray = (distances >= MIN_DISTANCE).all(axis=1)
    return new
