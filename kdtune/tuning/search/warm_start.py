"""Warm start: observations of an earlier sweep where nothing differs, else start points."""

from collections.abc import Iterator
from typing import Any

from kdtune.log.events import Cell, Observation, SweepOpening, TrialState, WarmStart
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory, TrialRecord
from kdtune.tuning.search.space import ConfigureTrial, SearchSpace, serialize_distributions

MAX_START_POINTS = 3
"""Start points that a cell takes from an earlier sweep, at most."""

IGNORED_SETTINGS = {
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
) -> Iterator[WarmStart]:
    """Yield what each cell of a new sweep learns from an earlier sweep.

    Args:
        path: folder of the earlier sweep.
        spaces: the search space of each method.
        cells: cells of the new sweep.
        opening_event: the event that opens the new sweep.
        configure_trial: see `kdtune.tuning.search.space.ConfigureTrial`.

    Raises:
        UserError: there is no sweep in the folder.
    """
    folder = SweepFolder(path)
    earlier_opening = folder.load_opening_events()[0]
    earlier_trials = list(TrialHistory(folder.load_events()).trials.values())
    for cell in cells:
        cell_trials = [trial for trial in earlier_trials if trial.cell == cell]
        difference = _explain_difference(
            cell, cell_trials, spaces[cell[0]], earlier_opening, opening_event, configure_trial
        )
        observations, start_points = [], []
        if difference is None:
            counted = [t for t in cell_trials if t.is_successful or t.state is TrialState.DIVERGED]
            observations = [_make_observation(path, trial) for trial in counted]
            reason = f"{len(observations)} observations of {path}: nothing differs"
        else:
            start_points = _choose_start_points(cell, cell_trials, earlier_trials, spaces[cell[0]])
            reason = f"{len(start_points)} start points of {path}, no observations: {difference}"
        yield WarmStart(
            method=cell[0],
            model=cell[1],
            source=path,
            observations=tuple(observations),
            start=tuple(start_points),
            reason=reason,
        )


def _make_observation(path: str, trial: TrialRecord) -> Observation:
    return Observation(
        trial_id=f"{path}/{trial.proposed.trial_id}",
        params=trial.proposed.params,
        distributions=trial.proposed.distributions,
        state=trial.state,
        best_validation_accuracies=tuple(e.best_validation_accuracy for e in trial.epochs),
    )


def _explain_difference(
    cell: Cell,
    trials: list[TrialRecord],
    space: SearchSpace,
    earlier: SweepOpening,
    current: SweepOpening,
    configure_trial: ConfigureTrial,
) -> str | None:
    """Return why earlier trials of a cell do not count as observations; None if they do."""
    if not trials:
        return f"it has no trials of {'-'.join(cell)}"
    if earlier.data.fingerprint != current.data.fingerprint:
        return "its data differ"
    for trial in trials:
        params, distributions = trial.proposed.params, trial.proposed.distributions
        optuna_trial, settings = space.trial_at(space.restrict_point(params))
        current_point = optuna_trial.params, serialize_distributions(optuna_trial)
        if current_point != (params, distributions):
            return "its search space differs"
        config = configure_trial(cell, 0, settings).model_dump()
        teachers = [opening.teacher and opening.teacher.sha256 for opening in (earlier, current)]
        if config["teacher_model"] and teachers[0] != teachers[1]:
            return "its teacher differs"
        for key, value in trial.proposed.config.items():
            if key not in IGNORED_SETTINGS and value != config.get(key):
                return f"{key} {value} there, {config.get(key)} here"
    return None


def _choose_start_points(
    cell: Cell,
    cell_trials: list[TrialRecord],
    earlier_trials: list[TrialRecord],
    space: SearchSpace,
) -> list[dict[str, Any]]:
    """Return the best points of the cell, else of the method on any student, in the space."""
    trials = cell_trials or [trial for trial in earlier_trials if trial.cell[0] == cell[0]]
    successful = [trial for trial in trials if trial.is_successful]
    points: list[dict[str, Any]] = []
    for trial in sorted(
        successful, key=lambda trial: trial.epochs[-1].best_validation_accuracy, reverse=True
    ):
        point = space.restrict_point(trial.proposed.params)
        if point and point not in points:
            points.append(point)
    return points[:MAX_START_POINTS]
