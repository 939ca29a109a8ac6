"""Which settings matter, what good ones are, and whether those are good on every student.

Told from few trials that a sampler chose, so ranges are where it looked, not all that is good.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from kdtune.errors import UserError
from kdtune.log.distributions import is_log_scale
from kdtune.log.events import SUCCESSFUL_STATES, Event, SweepOpening, TrialProposed
from kdtune.reports.tables.log_tables import TRIAL_COLUMNS

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces studies in memory

MIN_IMPORTANCE_TRIALS = 30
"""Trials that must have a value at the first rung before importance is told."""

MIN_GOOD_TRIALS = 5
"""Trials that make a good range, at least."""

SETTINGS_COLUMNS = [
    "method",
    "model",
    "hyperparameter",
    "importance",
    "good_low",
    "good_high",
    "best",
]
Spaces = Mapping[str, Mapping[str, BaseDistribution]]


def collect_distributions(events: Sequence[Event]) -> dict[str, dict[str, BaseDistribution]]:
    """What each method's settings were searched in, by name.

    Of a space that is a function, what its trials were drawn from: of each setting the first.

    Raises:
        UserError: the log is damaged.
    """
    by_method: dict[str, dict[str, BaseDistribution]] = {}
    try:
        for event in events:
            if isinstance(event, SweepOpening):
                spaces = {m: space.distributions for m, space in event.spaces.items()}
            elif isinstance(event, TrialProposed):
                spaces = {event.method: event.distributions}
            else:
                continue
            for method, distributions in spaces.items():
                method_space = by_method.setdefault(method, {})
                for name, serialized in distributions.items():
                    if name not in method_space:
                        method_space[name] = json_to_distribution(json.dumps(serialized))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The log is damaged: it has no search spaces ({error!r}).") from error
    return by_method


def settings_table(
    trials: pd.DataFrame, epochs: pd.DataFrame, spaces: Spaces, first_rung: int, chance: float
) -> pd.DataFrame:
    """One row a cell and searched setting.

    Args:
        trials: as `kdtune.reports.tables.log_tables.trials_table` makes it.
        epochs: as `kdtune.reports.tables.log_tables.epochs_table` makes it.
        spaces: as `collect_distributions` gives them.
        first_rung: epoch up to which most trials were trained.
        chance: share of 1 that guessing has: what a diverged trial is worth.

    Columns:
        method, model: the cell.
        hyperparameter: the setting.
        importance: share of 1, of the settings together: PED-ANOVA (Watanabe et al. 2023) of being
            among the better half at the first rung. Empty below `MIN_IMPORTANCE_TRIALS` trials that got
            there or diverged, or where no half is better.
        good_low, good_high: 10 % and 90 % quantile (of the logarithms where the space has a log
            scale) of the best fifth of the sound trials, at least `MIN_GOOD_TRIALS`; empty if there are
            fewer, and for choices.
        best: value of the best trial of the search; empty if that does not have it.
    """
    rung_epochs = epochs[epochs["epoch"] == first_rung].drop_duplicates("trial_id", keep="last")
    rung_scores = rung_epochs.set_index("trial_id")["best_validation_accuracy"]
    rows = []
    for (method, model), cell in trials.groupby(["method", "model"], sort=False):
        space = {
            name: distribution
            for name, distribution in spaces.get(method, {}).items()
            if name in cell and name not in TRIAL_COLUMNS
        }
        importances = _compute_importances(_with_rung_scores(cell, rung_scores, chance), space)
        successful = cell[cell["state"].isin(SUCCESSFUL_STATES)].dropna(
            subset="best_validation_accuracy"
        )
        ranked = successful.sort_values("best_validation_accuracy", ascending=False, kind="stable")
        good_trials = ranked.head(max(MIN_GOOD_TRIALS, math.ceil(len(ranked) / 5)))
        for name, distribution in space.items():
            low, high = _good_range(good_trials[name], distribution)
            rows.append(
                {
                    "method": method,
                    "model": model,
                    "hyperparameter": name,
                    "importance": importances.get(name, np.nan),
                    "good_low": low,
                    "good_high": high,
                    "best": good_trials[name].iloc[0] if len(good_trials) else None,
                }
            )
    return pd.DataFrame(rows, columns=SETTINGS_COLUMNS).astype({"best": object})


def _with_rung_scores(cell: pd.DataFrame, rung_scores: pd.Series, chance: float) -> pd.DataFrame:
    """The trials whose value at the first rung is known, with it."""
    scores = (
        cell["trial_id"].map(rung_scores).astype(float).mask(cell["state"] == "diverged", chance)
    )
    return cell.assign(value=scores)[cell["state"] != "crashed"].dropna(subset="value")


def _compute_importances(
    trials: pd.DataFrame, space: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    values = trials["value"].sort_values(ascending=False)
    if (
        len(values) < MIN_IMPORTANCE_TRIALS
        or values.iloc[math.ceil(len(values) / 2) - 1] == values.min()
    ):
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in trials[[*space, "value"]].to_dict("records"):
        params = {
            name: value
            for name, value in trial.items()
            if name in space and not pd.isna(value) and _contains(space[name], value)
        }
        study.add_trial(
            optuna.trial.create_trial(
                value=trial["value"],
                params=params,
                distributions={name: space[name] for name in params},
            )
        )
    with warnings.catch_warnings():  # of a setting that a single trial has, or lacks
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.5)
        return get_param_importances(study, evaluator=evaluator)


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value may come from there; spaces of a function may be of several widths."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def _good_range(values: pd.Series, distribution: BaseDistribution) -> tuple[float, float]:
    if isinstance(distribution, CategoricalDistribution):
        return np.nan, np.nan
    good_values = pd.to_numeric(values, errors="coerce").dropna().to_numpy(float)
    if len(good_values) < MIN_GOOD_TRIALS:
        return np.nan, np.nan
    if is_log_scale(distribution):
        low, high = np.exp(np.quantile(np.log(good_values), [0.1, 0.9]))
    else:
        low, high = np.quantile(good_values, [0.1, 0.9])
    return float(low), float(high)


def overlapping_ranges(settings: pd.DataFrame) -> pd.DataFrame:
    """One row a method and setting that is searched on several models.

    Args:
        settings: as `settings_table` makes it.

    Columns:
        method, hyperparameter: the setting.
        low, high: where the good ranges of all models overlap: the recommended range; empty if
            they do not, or one of them is unknown.
    """
    rows = []
    for (method, name), setting_rows in settings.groupby(["method", "hyperparameter"], sort=False):
        low, high = (
            setting_rows["good_low"].max(skipna=False),
            setting_rows["good_high"].min(skipna=False),
        )
        if len(setting_rows) > 1:
            overlap = (low, high) if low <= high else (np.nan, np.nan)
            rows.append((method, name, *overlap))
    return pd.DataFrame(rows, columns=["method", "hyperparameter", "low", "high"])
