"""The model of a cell: a Gaussian process of the validation accuracy over its settings.

Values are warped to −log(top − accuracy) before each fit, with a top above the best trial, and
standardised. So differences among good settings count as much as those among bad ones (HEBO,
Cowen-Rivers et al. 2022, warps outputs for the same reason).

Other cells teach a cell: the posterior means of their models over the settings that both search
are its prior mean, each with a weight that falls to 0 where the two disagree.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr
from torch import Tensor

from kdtune.log.events import TrialEstimate
from kdtune.tuning.search.optuna_private import (
    GPRegressor,
    NormalizedSpace,
    ShiftedProcess,
    fit_process,
)

Space = Mapping[str, BaseDistribution]

MIN_TRIALS = 2
"""Completed trials without which a cell has no model."""

MAX_TRIALS = 100
"""Trials of a model, at most: the best half, and others evenly from the rest.

So a proposal costs as much after a thousand trials as after a hundred.
"""

TOP_MARGIN = 0.3
"""Distance of the warp's top above the best trial, as a share of best minus median."""

MIN_TOP_MARGIN = 1e-3
"""The least such distance, in accuracy."""

PRIOR_CORRELATION, PRIOR_WEIGHT = 0.5, 3.0
"""Rank correlation that two cells are expected to have, and the trials that outweigh it."""

MAX_SOURCES = 3
"""Cells that teach one, at most: those that agree best. Each makes a proposal slower."""

MIN_SOURCE_TRIALS = 3
"""Trials of a cell from which it teaches others."""


class Warp:
    """The warp of validation accuracies, from those that were seen.

    Attributes:
        values: those accuracies, warped and standardised.
    """

    def __init__(self, accuracies: Sequence[float]):
        seen = np.array(accuracies, dtype=float)
        best, median = (seen.max(), np.median(seen)) if len(seen) else (0.0, 0.0)
        self.top = float(best + max(TOP_MARGIN * (best - median), MIN_TOP_MARGIN))
        raw = -np.log(self.top - seen)
        self.mean = float(raw.mean()) if len(seen) else 0.0
        self.sd = max(float(raw.std()), 1e-10) if len(seen) else 1.0
        self.values: np.ndarray = (raw - self.mean) / self.sd

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Return the accuracies of standardised values."""
        accuracies: np.ndarray = self.top - np.exp(-(self.mean + self.sd * values))
        return accuracies

    def slope(self, values: np.ndarray) -> np.ndarray:
        """Return the accuracy per unit of standardised values."""
        slopes: np.ndarray = self.sd * (self.top - self.invert(values))
        return slopes


class CellModel:
    """A Gaussian process of the warped accuracies of a cell's trials.

    Args:
        trials: completed ones; a repeat is one more value at the same point.
        space: the searched settings, by name.
        sources: models of other cells.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], space: Space, sources: Sequence["CellModel"] = ()
    ):
        self.trials, self.space, self.names = _select_trials(trials), space, list(space)
        self.normalized = NormalizedSpace(dict(space))
        self.points = self.normalized.get_normalized_params(self.trials)
        self.warp = Warp([trial.value or 0.0 for trial in self.trials])
        self._parts: dict[tuple[str, ...], GPRegressor] = {}
        self.prior_mean = self._combine(sources)

    def _combine(self, sources: Sequence["CellModel"]) -> Callable[[Tensor], Tensor] | None:
        """Return the prior mean that other cells give; None if they give none."""
        found = [source.predict_for(self) for source in sources]
        weighted = [(self._agreement(predict), predict) for predict in found if predict]
        weighted.sort(key=lambda pair: -pair[0])
        weighted = [pair for pair in weighted[:MAX_SOURCES] if pair[0] > 0]
        total = sum(weight for weight, _ in weighted)

        def prior_mean(points: Tensor) -> Tensor:
            return torch.stack([w * w * predict(points) for w, predict in weighted]).sum(0) / total

        return prior_mean if weighted else None

    def _agreement(self, predict: Callable[[Tensor], Tensor]) -> float:
        """Return the expected rank correlation of this cell with another one's posterior mean."""
        prior, n = PRIOR_WEIGHT * PRIOR_CORRELATION, len(self.trials)
        if n < MIN_SOURCE_TRIALS:
            return PRIOR_CORRELATION
        predicted = predict(torch.from_numpy(self.points)).numpy()
        if np.ptp(predicted) == 0 or np.ptp(self.warp.values) == 0:  # nothing to rank
            return prior / (PRIOR_WEIGHT + n)
        correlation = spearmanr(self.warp.values, predicted).statistic
        return float((prior + n * correlation) / (PRIOR_WEIGHT + n))

    def predict_for(self, other: "CellModel") -> Callable[[Tensor], Tensor] | None:
        """Return the posterior mean over points of another cell; None if they share no setting."""
        scales = {
            n: _convert_scale(other.space[n], d) for n, d in self.space.items() if n in other.space
        }
        shared = {name: scale for name, scale in scales.items() if scale is not None}
        if not shared or len(self.trials) < MIN_SOURCE_TRIALS:
            return None
        process, columns = self.fit_part(list(shared)), [other.names.index(n) for n in shared]
        offsets, factors = torch.tensor(list(shared.values()), dtype=torch.float64).T
        return lambda points: process.posterior(offsets + factors * points[..., columns])[0]

    def fit_part(self, names: Sequence[str]) -> GPRegressor:
        """Return a process over some of the settings; the others count as noise."""
        if (key := tuple(names)) not in self._parts:
            columns = [self.names.index(name) for name in names]
            categorical = self.normalized.is_categorical[columns]
            self._parts[key] = fit_process(self.points[:, columns], self.warp.values, categorical)
        return self._parts[key]

    @cached_property
    def process(self) -> GPRegressor:
        """The posterior over points of the unit cube; needs `MIN_TRIALS` trials."""
        if self.prior_mean is None:
            return self.fit_part(self.names)
        residuals = self.warp.values - self.prior_mean(torch.from_numpy(self.points)).numpy()
        process = fit_process(self.points, residuals, self.normalized.is_categorical)
        return ShiftedProcess(process, self.prior_mean)

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Return posterior mean and standard deviation at the trials, standardised, [N] each."""
        mean, variance = self.process.posterior(torch.from_numpy(self.points))
        return mean.numpy(), np.sqrt(variance.numpy())

    def finished_points(self) -> np.ndarray:
        """Return the points of finished trials, those of the best posterior mean first, [F, D]."""
        mean, _ = self.posterior()
        is_finished = [trial.user_attrs.get("finished", False) for trial in self.trials]
        return self.points[[i for i in np.argsort(-mean, kind="stable") if is_finished[i]]]

    def estimates(self) -> list[TrialEstimate]:
        """Return the expected accuracies of the settings of finished trials, the best first.

        Settings are known by their first trial; trials have it as the attribute
        ``first_trial_id``, and ``finished``.
        """
        mean, sd = self.posterior()
        accuracies, sds = self.warp.invert(mean), sd * self.warp.slope(mean)
        is_finished = [trial.user_attrs.get("finished", False) for trial in self.trials]
        found: dict[str, TrialEstimate] = {}
        for i in np.argsort(-mean, kind="stable"):
            if is_finished[i]:
                trial_id = self.trials[i].user_attrs["first_trial_id"]
                values = {"mean": float(accuracies[i]), "sd": float(sds[i])}
                found.setdefault(trial_id, TrialEstimate(trial_id=trial_id, **values))
        return list(found.values())

    @property
    def noise_sd(self) -> float:
        """Standard deviation of runs that differ in the seed alone, near the best settings."""
        mean, _ = self.posterior()
        slope = self.warp.slope(mean.max())
        return float(np.sqrt(self.process.noise_var.item()) * slope)


def _convert_scale(own: BaseDistribution, other: BaseDistribution) -> tuple[float, float] | None:
    """Return offset and factor from the unit interval of one range to that of another.

    None is returned for ranges of another kind or scale, and for other choices.
    """
    if own == other:
        return 0.0, 1.0
    kinds = FloatDistribution | IntDistribution
    if not isinstance(own, kinds) or not isinstance(other, kinds) or own.log != other.log:
        return None
    convert: Callable[[float], float] = math.log if own.log else float
    low, high, other_low, other_high = map(convert, (own.low, own.high, other.low, other.high))
    width = other_high - other_low
    return (low - other_low) / width, (high - low) / width


def _select_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return at most `MAX_TRIALS` trials, in their order."""
    if len(trials) <= MAX_TRIALS:
        return list(trials)
    ranked = sorted(range(len(trials)), key=lambda i: -(trials[i].value or 0.0))
    best, others = ranked[: MAX_TRIALS // 2], ranked[MAX_TRIALS // 2 :]
    places = np.linspace(0, len(others) - 1, MAX_TRIALS - len(best)).round().astype(int)
    return [trials[i] for i in sorted([*best, *(others[place] for place in places)])]
