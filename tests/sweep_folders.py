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


def opened(methods, models, classes=("x", "y"), test_images=400, **config):
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


def write(path, sweep, complete=True, **opening):
    """Write the folder of a `test_leaderboard.Sweep`; `opening` as for `opened`."""
    asked = [e for e in sweep.events if e["event"] == "asked"]
    methods, models = (list(dict.fromkeys(e[key] for e in asked)) for key in ("method", "model"))
    first = opened(methods or ["at"], models or ["A"], **opening)
    done = [{"event": "complete"}] * complete
    folder = SweepFolder(path)
    path.mkdir(parents=True)
    folder.log.write_text(_lines([first, *sweep.events[1:], *done]))
    if not sweep.confirmation:
        return folder
    begun = {"event": "confirm", "candidates": [], "seeds": 3, "top": 1}
    begun |= {key: first[key] for key in ("config", "data")}
    folder.confirm_log.write_text(_lines([begun, *sweep.confirmation, *done]))
    folder.confirmed.mkdir()
    np.savez(folder.test_labels, labels=np.zeros(400, int))
    for run, right in sweep.right.items():
        np.savez(folder.predictions(run), predicted=(~right).astype(int))
    return folder


def _lines(events):
    """Lines of a log; what every trial's event must have is that with which it was asked for."""
    trials = {e["trial_id"]: e for e in events if e["event"] == "asked"}
    whole = []
    for number, event in enumerate(events):
        own = trials.get(event.get("trial_id"), {})
        cell = {key: own[key] for key in ("method", "model") if own}
        space = (
            {"distributions": SPACE["distributions"]} if "lr" in own.get("parameters", {}) else {}
        )
        plain = {"distributions": {}, **space} if event["event"] == "asked" else {}
        whole.append({**cell, **plain, **event, "time": 1.7e9 + number, "session_seconds": number})
    return "".join(json.dumps(event) + "\n" for event in whole)
