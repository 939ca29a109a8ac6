"""Warm start: observations of an earlier sweep where nothing differs, else points and a prior."""

import math
from collections.abc import Iterator
from typing import Any

import optuna

from kdtune.config.strengths import STRENGTHS, strengths_to_weights
from kdtune.log.events import Cell, EarlierCell, Observation, SweepOpening, TrialState, WarmStart
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory, TrialRecord
from kdtune.tuning.search.space import ConfigureTrial, SearchSpace, serialize_distributions

Earlier = WarmStart | EarlierCell

_IGNORED_SETTINGS = {
    "seed", "data_dir", "data_root", "teacher_model", "num_workers", "cache_gb", "cache_targets",
    "augment_views", "augment_seed",
}  # fmt: skip
"""Settings that do not invalidate an observation; data and teacher are compared by content."""


def make_warm_start_events(
    path: str,
    spaces: dict[str, SearchSpace],
    cells: list[Cell],
    opening_event: SweepOpening,
    configure_trial: ConfigureTrial,
) -> Iterator[Earlier]:
    """Yield what each cell of a new sweep learns from an earlier sweep, then what all cells do.

    Args:
        path: folder of the earlier sweep.
        spaces: the search space of each method.
        cells: cells of the new sweep.
        opening_event: the event that opens the new sweep.
        configure_trial: see `kdtune.tuning.search.space.ConfigureTrial`.
    """
    folder = SweepFolder(path)
    earlier_opening = folder.load_opening_events()[0]
    teachers = [
        event.teacher and event.teacher.sha256 for event in (earlier_opening, opening_event)
    ]
    history = TrialHistory(folder.load_events()).trials.values()
    earlier_trials = [trial for trial in history if not trial.proposed.is_repeat]
    observed_cells = set()
    for cell in cells:
        space = spaces[cell[0]]
        trials = [trial for trial in earlier_trials if trial.cell == cell]
        differences = (
            _find_difference(trial, space, configure_trial, teachers[0] == teachers[1])
            for trial in trials
        )
        if not trials:
            difference = f"it has no trials of {'-'.join(cell)}"
        elif earlier_opening.data.fingerprint != opening_event.data.fingerprint:
            difference = "its data differ"
        elif earlier_opening.metric != opening_event.metric:
            difference = "its metric differs"
        else:
            difference = next(filter(None, differences), "")
        observations, start_points = [], []
        if difference:
            trials = trials or [trial for trial in earlier_trials if trial.cell[0] == cell[0]]
            start_points = _choose_start_points(trials, space)
            reason = f"{len(start_points)} start points of {path}, no observations: {difference}"
        else:
            observed_cells.add(cell)
            observations = _make_observations(path, trials)
            reason = f"{len(observations)} observations of {path}: nothing differs"
        yield WarmStart(
            method=cell[0],
            model=cell[1],
            source=path,
            observations=tuple(observations),
            start=tuple(start_points),
            reason=reason,
        )
    for cell in dict.fromkeys(trial.cell for trial in earlier_trials):
        trials = [trial for trial in earlier_trials if trial.cell == cell]
        if cell not in observed_cells and (observations := _make_observations(path, trials)):
            yield EarlierCell(
                method=cell[0],
                model=cell[1],
                source=path,
                observations=tuple(observations),
                reason=f"a prior for all cells, from {len(observations)} trials of {path}",
            )


def _make_observations(path: str, trials: list[TrialRecord]) -> list[Observation]:
    return [
        Observation(
            trial_id=f"{path}/{trial.proposed.trial_id}",
            params=trial.proposed.params,
            distributions=trial.proposed.distributions,
            state=trial.state,
            best_validation_accuracies=tuple(e.best_validation_accuracy for e in trial.epochs),
        )
        for trial in trials
        if trial.is_successful or trial.state is TrialState.DIVERGED
    ]


def _find_difference(
    trial: TrialRecord, space: SearchSpace, configure_trial: ConfigureTrial, same_teacher: bool
) -> str | None:
    """Return why an earlier trial does not count as an observation; None if it does."""
    proposed = trial.proposed
    try:
        optuna_trial, settings = space.trial_at(space.restrict_point(proposed.params))
    except optuna.TrialPruned:
        return "its search space differs"
    current_point = optuna_trial.params, serialize_distributions(optuna_trial)
    if current_point != (proposed.params, proposed.distributions):
        return "its search space differs"
    weights = strengths_to_weights(settings, loss_scales={})
    config = configure_trial(trial.cell, 0, weights).model_dump()
    if config["teacher_model"] and not same_teacher:
        return "its teacher differs"
    ignored = set(_IGNORED_SETTINGS)
    for strength, weight in STRENGTHS.items():
        if (here := settings.get(strength)) is not None:
            # The weights differ, since each sweep has its own untrained student.
            there = proposed.config[weight] * proposed.loss_scales.get(weight, 1.0)
            if not math.isclose(there, here, rel_tol=1e-4):
                return f"{strength} {there:.4g} there, {here:.4g} here"
            ignored.add(weight)
    for key, value in proposed.config.items():
        if key not in ignored and value != config.get(key):
            return f"{key} {value} there, {config.get(key)} here"
    return None


def _choose_start_points(trials: list[TrialRecord], space: SearchSpace) -> list[dict[str, Any]]:
    """Return the best points of the trials, at most three, that are in the space."""
    successful = [trial for trial in trials if trial.is_successful]
    successful.sort(key=lambda trial: trial.epochs[-1].best_validation_accuracy, reverse=True)
    points: list[dict[str, Any]] = []
    for trial in successful:
        point = space.restrict_point(trial.proposed.params)
        if point and point not in points:
            points.append(point)
    return points[:3]
