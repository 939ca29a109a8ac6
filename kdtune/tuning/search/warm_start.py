"""What a sweep learns from earlier ones: observations where all is the same, else start points."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kdtune.log.events import Cell, Event, cell_of
from kdtune.log.folder import SweepFolder
from kdtune.tuning.search.space import ConfigureTrial, SearchSpace, serialize_distributions

MAX_START_POINTS = 3
"""Start points that a cell takes from an earlier sweep."""

IGNORED_SETTINGS = {
    "seed", "data_dir", "data_root", "teacher_model", "num_workers", "cache_gb", "cache_targets",
    "augment_views", "augment_seed",
}  # fmt: skip
"""Settings that do not change what an observation is worth. Data and teacher are compared by their
content."""


@dataclass
class _EarlierTrial:
    """An earlier trial."""

    proposal: Event
    best_accuracies: list[float] = field(default_factory=list)
    state: str = "running"

    @property
    def params(self) -> dict[str, Any]:
        return self.proposal["parameters"]

    @property
    def is_successful(self) -> bool:
        """Whether it ended well, with an epoch at least."""
        return bool(self.best_accuracies) and self.state in ("finished", "stopped")


def make_warm_start_events(
    path: str,
    spaces: dict[str, SearchSpace],
    cells: list[Cell],
    opening_event: Event,
    configure_trial: ConfigureTrial,
) -> Iterator[Event]:
    """Look through an earlier sweep.

    Args:
        path: its folder.
        spaces: the search space of each method.
        cells: of the new sweep.
        opened: its opening event.
        configure: see `kdtune.tuning.search.space.ConfigureTrial`.

    Yields:
        For each cell an event ``warm_start`` with ``observations`` (``trial_id``, ``parameters``,
        ``distributions``, ``state``, and ``best_validation_accuracies`` after each epoch),
        ``start`` (points) and ``reason``, a sentence.

    Raises:
        UserError: there is no sweep.
    """
    events = SweepFolder(path).load_events()
    earlier_trials = list(_read_trials(events))
    for cell in cells:
        cell_trials = [trial for trial in earlier_trials if cell_of(trial.proposal) == cell]
        reason = _explain_difference(
            cell, cell_trials, spaces[cell[0]], events[0], opening_event, configure_trial
        )
        event = {"event": "warm_start", "method": cell[0], "model": cell[1], "source": path}
        if reason is None:
            observed = [
                trial for trial in cell_trials if trial.state == "diverged" or trial.is_successful
            ]
            yield {
                **event,
                "observations": [_make_observation(path, trial) for trial in observed],
                "start": [],
                "reason": f"{len(observed)} observations of {path}: all is the same",
            }
        else:
            start_points = _choose_start_points(cell, cell_trials, earlier_trials, spaces[cell[0]])
            yield {
                **event,
                "observations": [],
                "start": start_points,
                "reason": f"{len(start_points)} start points of {path}, no observations: {reason}",
            }


def _read_trials(events: list[Event]) -> Iterator[_EarlierTrial]:
    trials: dict[str, _EarlierTrial] = {}
    for event in events:
        if event["event"] == "asked":
            trials[event["trial_id"]] = _EarlierTrial(event)
        elif event["event"] == "epoch":
            trials[event["trial_id"]].best_accuracies.append(event["best_validation_accuracy"])
        elif event["event"] == "ended":
            trials[event["trial_id"]].state = event["state"]
    return iter(trials.values())


def _make_observation(path: str, trial: _EarlierTrial) -> dict[str, Any]:
    return {
        "trial_id": f"{path}/{trial.proposal['trial_id']}",
        "parameters": trial.params,
        "distributions": trial.proposal["distributions"],
        "state": trial.state,
        "best_validation_accuracies": trial.best_accuracies,
    }


def _explain_difference(
    cell: Cell,
    trials: list[_EarlierTrial],
    space: SearchSpace,
    earlier: Event,
    current: Event,
    configure_trial: ConfigureTrial,
) -> str | None:
    """Why earlier trials of a cell are no observations of it; None if they are."""
    if not trials:
        return f"it has no trials of {'-'.join(cell)}"
    if earlier["data"]["fingerprint"] != current["data"]["fingerprint"]:
        return "its data are others"
    for trial in trials:
        optuna_trial, settings = space.trial_at(space.restrict_point(trial.params))
        if (
            optuna_trial.params != trial.params
            or serialize_distributions(optuna_trial) != trial.proposal["distributions"]
        ):
            return "its search space is another"
        config = configure_trial(cell, 0, settings).model_dump()
        if (
            config["teacher_model"]
            and earlier["teacher"]["sha256"] != current["teacher"]["sha256"]
        ):
            return "its teacher is another"
        for key, value in trial.proposal["config"].items():
            if key not in IGNORED_SETTINGS and value != config.get(key):
                return f"{key} {value} there, {config.get(key)} here"
    return None


def _choose_start_points(
    cell: Cell,
    cell_trials: list[_EarlierTrial],
    earlier_trials: list[_EarlierTrial],
    space: SearchSpace,
) -> list[dict[str, Any]]:
    """The best points of the cell, or of the method on any student, that lie in the space."""
    trials = cell_trials or [
        trial for trial in earlier_trials if trial.proposal["method"] == cell[0]
    ]
    successful = [trial for trial in trials if trial.is_successful]
    points = []
    for trial in sorted(successful, key=lambda trial: trial.best_accuracies[-1], reverse=True):
        point = space.restrict_point(trial.params)
        if point and point not in points:
            points.append(point)
    return points[:MAX_START_POINTS]
