"""Sweeps' folders as `kdtune.log.folder` reads them, from the events of small sweeps."""

import json

import numpy as np

from kdtune.log.folder import SweepFolder

SPACE = {
    "distributions": {
        "lr": {
            "name": "FloatDistribution",
            "attributes": {"step": None, "low": 1e-3, "high": 10.0, "log": True},
        }
    }
}


def sweep_opening(methods, models, classes=("x", "y"), test_images=400, **config):
    """The event with which a sweep begins."""
    settings = {
        "name": "s", "data": "d", "teacher": "t.pth", "methods": methods, "models": models,
        "baselines": False, "trials": 2, "epochs": 4, "grace_period": 1, "reduction_factor": 2,
        "sampler": "auto", "scheduler": "asha", "min_difference": 0.5, "image_size": 8,
    }  # fmt: skip
    return {
        "event": "sweep", "config": {**settings, **config}, "views": {},
        "spaces": dict.fromkeys(methods, SPACE),
        "data": {
            "classes": list(classes), "train_images": 50, "validation_images": 20,
            "test_images": test_images, "fingerprint": "f", "test_fingerprint": "g",
            "skipped_images": [],
        },
        "teacher": {"sha256": "h", "model": "ResNet18", "validation_accuracy": 0.9},
        "environment": {"kdtune": "0.1.0", "torch": "2.14.1"},
    }  # fmt: skip


def write_sweep_folder(path, sweep, complete=True, **opening_changes):
    """Write the folder of a `test_leaderboard.Sweep`; `opening` as for `opened`."""
    proposals = [e for e in sweep.events if e["event"] == "asked"]
    methods, models = (
        list(dict.fromkeys(e[key] for e in proposals)) for key in ("method", "model")
    )
    opening_event = sweep_opening(methods or ["at"], models or ["A"], **opening_changes)
    completed = [{"event": "complete"}] * complete
    folder = SweepFolder(path)
    path.mkdir(parents=True)
    folder.log_path.write_text(_to_lines([opening_event, *sweep.events[1:], *completed]))
    if not sweep.confirmation:
        return folder
    confirm_opening = {"event": "confirm", "candidates": [], "seeds": 3, "top": 1}
    confirm_opening |= {key: opening_event[key] for key in ("config", "data")}
    folder.confirm_log_path.write_text(
        _to_lines([confirm_opening, *sweep.confirmation, *completed])
    )
    folder.confirm_folder.mkdir()
    np.savez(folder.test_labels_path, labels=np.zeros(400, int))
    for run, correct in sweep.right.items():
        np.savez(folder.predictions_path(run), predicted=(~correct).astype(int))
    return folder


def _to_lines(events):
    """Lines of a log; what every trial's event must have is that with which it was asked for."""
    trials = {e["trial_id"]: e for e in events if e["event"] == "asked"}
    complete_events = []
    for number, event in enumerate(events):
        proposal = trials.get(event.get("trial_id"), {})
        cell = {key: proposal[key] for key in ("method", "model") if proposal}
        space = (
            {"distributions": SPACE["distributions"]}
            if "lr" in proposal.get("parameters", {})
            else {}
        )
        defaults = {"distributions": {}, **space} if event["event"] == "asked" else {}
        complete_events.append(
            {**cell, **defaults, **event, "time": 1.7e9 + number, "session_seconds": number}
        )
    return "".join(json.dumps(event) + "\n" for event in complete_events)
