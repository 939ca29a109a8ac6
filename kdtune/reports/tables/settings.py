"""Importance and good ranges of the searched settings.

A sampler chose the trials, so a range is where it looked; other values may be as good.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from kdtune.config.strengths import STRENGTHS
from kdtune.errors import UserError
from kdtune.log.distributions import contains, is_log_scale, parse_distributions, quiet_optuna
from kdtune.log.events import Event, SweepOpening, TrialProposed, TrialState
from kdtune.reports.tables.columns import MIN_GOOD_TRIALS, MIN_IMPORTANCE_TRIALS, SETTINGS
from kdtune.reports.tables.log_tables import hyperparameter_columns

NEAR_END = 0.05
"""Share of a range, on its scale, within which a value is at its end."""

Spaces = Mapping[str, Mapping[str, BaseDistribution]]
"""Distributions by method and setting."""


def collect_distributions(events: Sequence[Event]) -> dict[str, dict[str, BaseDistribution]]:
    """Return the distributions that each method's settings were drawn from, the first of each."""
    by_method: dict[str, dict[str, BaseDistribution]] = {}
    try:
        for event in events:
            spaces = {}
            if isinstance(event, SweepOpening):
                spaces = {m: space.distributions for m, space in event.spaces.items()}
            elif isinstance(event, TrialProposed):
                spaces = {event.method: event.distributions}
            for method, serialized in spaces.items():
                known = by_method.setdefault(method, {})
                new = {name: value for name, value in serialized.items() if name not in known}
                known |= parse_distributions(new)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The log is damaged: it has no search spaces ({error!r}).") from error
    return by_method


def select_searched(
    spaces: Spaces, method: str, trials: pd.DataFrame
) -> dict[str, BaseDistribution]:
    """Return the distributions of the settings of a method that the table of trials has.

    Args:
        spaces: result of `collect_distributions`.
        method: name of the method.
        trials: the table `TRIALS`.
    """
    space = spaces.get(method, {})
    return {name: space[name] for name in hyperparameter_columns(space) if name in trials}


def settings_table(
    trials: pd.DataFrame, epochs: pd.DataFrame, spaces: Spaces, first_rung: int, chance: float
) -> pd.DataFrame:
    """Return `SETTINGS`; repeats are left out, since they have the settings of another trial.

    Args:
        trials: the table `TRIALS`.
        epochs: the table `EPOCHS`.
        spaces: result of `collect_distributions`.
        first_rung: epoch that most trials reached.
        chance: accuracy of answers of one class, share of 1; the score of a diverged trial.
    """
    rung_epochs = epochs[epochs["epoch"] == first_rung]
    rung_scores = rung_epochs.set_index("trial_id")["best_validation_accuracy"]
    rows, trials = [], trials[trials["candidate"].isna()]
    for (method, model), cell in trials.groupby(["method", "model"], sort=False):
        space = select_searched(spaces, method, cell)
        importances = _compute_importances(_with_rung_scores(cell, rung_scores, chance), space)
        ranked = cell.dropna(subset="rank_in_cell").sort_values("rank_in_cell")
        good_trials = ranked.head(max(MIN_GOOD_TRIALS, math.ceil(len(ranked) / 5)))
        for name, distribution in space.items():
            good_range = _good_range(good_trials[name], distribution)
            best = good_trials[name].iloc[0] if len(good_trials) else None
            rows.append((method, model, name, importances.get(name, np.nan), *good_range, best))
    return SETTINGS.make_frame(rows)


def _with_rung_scores(cell: pd.DataFrame, rung_scores: pd.Series, chance: float) -> pd.DataFrame:
    scores = cell["trial_id"].map(rung_scores).astype(float)
    scores = scores.mask(cell["state"] == TrialState.DIVERGED, chance)
    return cell.assign(value=scores)[cell["state"] != TrialState.CRASHED].dropna(subset="value")


def _compute_importances(
    trials: pd.DataFrame, space: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    values = trials["value"].sort_values(ascending=False)
    half = math.ceil(len(values) / 2)
    if len(values) < MIN_IMPORTANCE_TRIALS or values.iloc[half - 1] == values.min():
        return {}
    with quiet_optuna(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        study = optuna.create_study(direction="maximize")
        for trial in trials[[*space, "value"]].to_dict("records"):
            known = [name for name in space if not pd.isna(trial[name])]
            used = {name: space[name] for name in known if contains(space[name], trial[name])}
            params = {name: trial[name] for name in used}
            frozen = optuna.create_trial(value=trial["value"], params=params, distributions=used)
            study.add_trial(frozen)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.5)
        return get_param_importances(study, evaluator=evaluator)


def _good_range(values: pd.Series, distribution: BaseDistribution) -> tuple[float, float]:
    good_values = pd.to_numeric(values, errors="coerce").dropna().to_numpy(float)
    if isinstance(distribution, CategoricalDistribution) or len(good_values) < MIN_GOOD_TRIALS:
        return np.nan, np.nan
    is_log = is_log_scale(distribution)
    ends = np.quantile(np.log(good_values) if is_log else good_values, [0.1, 0.9])
    low, high = np.exp(ends) if is_log else ends
    return float(low), float(high)


def range_end_note(trials: pd.DataFrame, spaces: Spaces) -> str | None:
    """Return a sentence on the best settings of cells that are at an end of a range, if any are.

    Args:
        trials: the table `TRIALS`.
        spaces: result of `collect_distributions`.
    """
    found = []
    for _, best in trials[trials["rank_in_cell"] == 1].iterrows():
        cell = f"{best['method']}-{best['model']}"
        for name, distribution in select_searched(spaces, best["method"], trials).items():
            value = best[name]
            end = _nearest_end(value, distribution)
            limit = getattr(distribution, "high" if end == "upper" else "low", 0)
            # Nothing lies below 0, and a term of the least strength has hardly an effect.
            if end == "upper" or (end == "lower" and limit and name not in STRENGTHS):
                found.append(f"{name} {value:.3g} of {cell} ({end} end, {limit:g})")
    if not found:
        return None
    return f"Best settings at an end of a range, where a wider one may help: {', '.join(found)}."


def _nearest_end(value: Any, distribution: BaseDistribution) -> str | None:
    """Return ``lower`` or ``upper`` if a number is close to that end, on the range's scale."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return None
    if not isinstance(value, Real) or pd.isna(value):
        return None
    low, high, value = distribution.low, distribution.high, float(value)
    if is_log_scale(distribution):
        low, high, value = math.log(low), math.log(high), math.log(value)
    if low == high:
        return None
    position = (value - low) / (high - low)
    if position <= NEAR_END:
        return "lower"
    return "upper" if position >= 1 - NEAR_END else None


def overlapping_ranges(settings: pd.DataFrame) -> pd.DataFrame:
    """Return ``low`` and ``high`` of each setting that several models share; empty if disjoint."""
    rows = []
    for (method, name), setting_rows in settings.groupby(["method", "hyperparameter"], sort=False):
        low = setting_rows["good_low"].max(skipna=False)
        high = setting_rows["good_high"].min(skipna=False)
        if len(setting_rows) > 1:
            rows.append((method, name, *((low, high) if low <= high else (np.nan, np.nan))))
    return pd.DataFrame(rows, columns=["method", "hyperparameter", "low", "high"])
