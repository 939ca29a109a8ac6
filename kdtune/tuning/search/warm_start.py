"""What a sweep learns from earlier ones: observations where all is the same, else start points."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kdtune.log.events import Cell, Event, cell_of
from kdtune.log.folder import SweepFolder
from kdtune.tuning.search.space import Configure, Space, distributions_of

POINTS = 3
"""Start points that a cell takes from an earlier sweep."""

MAY_DIFFER = {
    "seed", "data_dir", "data_root", "teacher_model", "num_workers", "cache_gb", "cache_targets",
    "augment_views", "augment_seed",
}  # fmt: skip
"""Settings that do not change what an observation is worth. Data and teacher are compared by their
content."""


@dataclass
class _Past:
    """An earlier trial."""

    asked: Event
    bests: list[float] = field(default_factory=list)
    state: str = "running"

    @property
    def parameters(self) -> dict[str, Any]:
        return self.asked["parameters"]

    @property
    def sound(self) -> bool:
        """Whether it ended well, with an epoch at least."""
        return bool(self.bests) and self.state in ("finished", "stopped")


def warm_start(
    path: str,
    spaces: dict[str, Space],
    cells: list[Cell],
    opened: Event,
    configure: Configure,
) -> Iterator[Event]:
    """Look through an earlier sweep.

    Args:
        path: its folder.
        spaces: the search space of each method.
        cells: of the new sweep.
        opened: its opening event.
        configure: see `kdtune.tuning.search.space.Configure`.

    Yields:
        For each cell an event ``warm_start`` with ``observations`` (``trial_id``, ``parameters``,
        ``distributions``, ``state``, and ``best_validation_accuracies`` after each epoch),
        ``start`` (points) and ``reason``, a sentence.

    Raises:
        UserError: there is no sweep.
    """
    events = SweepFolder(path).events()
    past = list(_trials(events))
    for cell in cells:
        own = [trial for trial in past if cell_of(trial.asked) == cell]
        reason = _difference(cell, own, spaces[cell[0]], events[0], opened, configure)
        event = {"event": "warm_start", "method": cell[0], "model": cell[1], "source": path}
        if reason is None:
            seen = [trial for trial in own if trial.state == "diverged" or trial.sound]
            yield {
                **event,
                "observations": [_observation(path, trial) for trial in seen],
                "start": [],
                "reason": f"{len(seen)} observations of {path}: all is the same",
            }
        else:
            start = _start_points(cell, own, past, spaces[cell[0]])
            yield {
                **event,
                "observations": [],
                "start": start,
                "reason": f"{len(start)} start points of {path}, no observations: {reason}",
            }


def _trials(events: list[Event]) -> Iterator[_Past]:
    trials: dict[str, _Past] = {}
    for event in events:
        if event["event"] == "asked":
            trials[event["trial_id"]] = _Past(event)
        elif event["event"] == "epoch":
            trials[event["trial_id"]].bests.append(event["best_validation_accuracy"])
        elif event["event"] == "ended":
            trials[event["trial_id"]].state = event["state"]
    return iter(trials.values())


def _observation(path: str, trial: _Past) -> dict[str, Any]:
    return {
        "trial_id": f"{path}/{trial.asked['trial_id']}",
        "parameters": trial.parameters,
        "distributions": trial.asked["distributions"],
        "state": trial.state,
        "best_validation_accuracies": trial.bests,
    }


def _difference(
    cell: Cell,
    trials: list[_Past],
    space: Space,
    then: Event,
    now: Event,
    configure: Configure,
) -> str | None:
    """Why earlier trials of a cell are no observations of it; None if they are."""
    if not trials:
        return f"it has no trials of {'-'.join(cell)}"
    if then["data"]["fingerprint"] != now["data"]["fingerprint"]:
        return "its data are others"
    for trial in trials:
        asked, settings = space.at(space.inside(trial.parameters))
        if (
            asked.params != trial.parameters
            or distributions_of(asked) != trial.asked["distributions"]
        ):
            return "its search space is another"
        config = configure(cell, 0, settings).model_dump()
        if config["teacher_model"] and then["teacher"]["sha256"] != now["teacher"]["sha256"]:
            return "its teacher is another"
        for key, value in trial.asked["config"].items():
            if key not in MAY_DIFFER and value != config.get(key):
                return f"{key} {value} there, {config.get(key)} here"
    return None


def _start_points(
    cell: Cell, own: list[_Past], past: list[_Past], space: Space
) -> list[dict[str, Any]]:
    """The best points of the cell, or of the method on any student, that lie in the space."""
    trials = own or [trial for trial in past if trial.asked["method"] == cell[0]]
    sound = [trial for trial in trials if trial.sound]
    points = []
    for trial in sorted(sound, key=lambda trial: trial.bests[-1], reverse=True):
        point = space.inside(trial.parameters)
        if point and point not in points:
            points.append(point)
    return points[:POINTS]
