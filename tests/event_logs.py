"""The log of a small sweep, by hand."""

import json

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.folder import SweepFolder

LR_DISTRIBUTION = {
    "name": "FloatDistribution",
    "attributes": {"step": None, "low": 1e-3, "high": 1.0, "log": True},
}
CHOICE_DISTRIBUTION = {"name": "CategoricalDistribution", "attributes": {"choices": [0, 2]}}


def sweep_opening(**config):
    """The event with which a sweep of at and student on the student A begins."""
    defaults = {
        "name": "s", "data": "d", "methods": ["at", "student"], "models": ["A"],
        "baselines": False, "epochs": 3, "settings": {"batch_size": 64},
    }  # fmt: skip
    sweep = SweepConfig.parse({**defaults, **config}).model_dump(mode="json")
    spaces = {method: {"distributions": {"lr": LR_DISTRIBUTION}} for method in ("at", "student")}
    return {"event": "sweep", "config": sweep, "spaces": spaces, "data": {}, "views": {}}


def trial_events(number, accuracies, state=None, method="at", **extra_params):
    """The events of a trial, to its end if that has a state.

    Args:
        number: in its cell.
        accuracies: of its epochs.
        state: how it ended; None if it did not.
        method: of it.
        searched: values besides that of lr.
    """
    cell = {"trial_id": f"{method}-A-{number:03d}", "method": method, "model": "A"}
    params = {"lr": 0.1 * (number + 1), **extra_params}
    settings = {"method": method, "model": "A", "batch_size": 64, **params}
    yield {
        "event": "asked", **cell, "number": number, "origin": "start", "parameters": params,
        "distributions": {"lr": LR_DISTRIBUTION, **dict.fromkeys(extra_params, CHOICE_DISTRIBUTION)},
        "config": TrainConfig.parse(settings).model_dump(),
    }  # fmt: skip
    for epoch, accuracy in enumerate(accuracies, start=1):
        best = max(accuracies[:epoch])
        epoch_fields = {"validation_accuracy": accuracy, "best_validation_accuracy": best}
        yield {"event": "epoch", **cell, "epoch": epoch, **epoch_fields, "seconds": 1.5}
    if state is not None:
        end = {
            "epochs": len(accuracies),
            "best_validation_accuracy": max(accuracies, default=None),
        }
        yield {"event": "ended", **cell, "state": state, "reason": f"it was {state}", **end}


def add_times(events, first=0):
    """Events with their times, a minute each."""
    for number, event in enumerate(events, start=first):
        yield {**event, "time": 1.7e9 + 60 * number, "session_seconds": 60 * number}


def write_log(path, events):
    """Write a sweep's folder with such a log."""
    path.mkdir(parents=True)
    folder = SweepFolder(path)
    folder.log_path.write_text("".join(json.dumps(event) + "\n" for event in add_times(events)))
    return folder
