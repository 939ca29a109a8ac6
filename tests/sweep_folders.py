"""Sweeps' folders as `kdtune.log.folder` reads them, from the events of small sweeps."""

import numpy as np
from event_logs import DATA, LR_DISTRIBUTION, OPENING_FIELDS, add_times, make_space, write_events

from kdtune.log.events import (
    Completed,
    ConfirmStarted,
    SweepStarted,
    TeacherSummary,
    TrialProposed,
)
from kdtune.log.folder import SweepFolder


def sweep_opening(methods, models, classes=("x", "y"), test_images=400, **config):
    """Return the event that opens a sweep."""
    settings = {
        "name": "s", "data": "d", "teacher": "t.pth", "methods": methods, "models": models,
        "baselines": False, "trials": 2, "epochs": 4, "grace_period": 1, "reduction_factor": 2,
        "sampler": "auto", "scheduler": "asha", "min_difference": 0.5, "image_size": 8,
        "top": 1, "seeds": 3,
    }  # fmt: skip
    opening = {
        **OPENING_FIELDS,
        "data": DATA.model_copy(update={"classes": tuple(classes), "test_images": test_images}),
        "teacher": TeacherSummary(
            path="t.pth", sha256="h", model="ResNet18", validation_accuracy=0.9
        ),
        "environment": {"kdtune": "0.1.0", "torch": "2.14.1"},
    }
    spaces = dict.fromkeys(methods, make_space(lr=LR_DISTRIBUTION))
    return SweepStarted(config={**settings, **config}, spaces=spaces, **opening)


def write_sweep_folder(path, sweep, complete=True, **opening_changes):
    """Write the folder of a `report_sweeps.Sweep`; the changes are those of `sweep_opening`."""
    proposals = [event for event in sweep.events if isinstance(event, TrialProposed)]
    methods = list(dict.fromkeys(event.method for event in proposals)) or ["at"]
    models = list(dict.fromkeys(event.model for event in proposals)) or ["A"]
    opening = sweep_opening(methods, models, **opening_changes)
    completed = [Completed()] * complete
    folder = SweepFolder(path)
    path.mkdir(parents=True)
    write_events(folder.log_path, add_times([opening, *sweep.events[1:], *completed], step=1))
    if not sweep.confirm_events:
        return folder
    shared_fields = {key: getattr(opening, key) for key in ("config", *OPENING_FIELDS)}
    confirm_opening = ConfirmStarted(candidates=(), seeds=3, top=1, **shared_fields)
    write_events(
        folder.confirm_log_path,
        add_times([confirm_opening, *sweep.confirm_events, *completed], step=1),
    )
    folder.confirm_folder.mkdir()
    np.savez(folder.test_labels_path, labels=np.zeros(400, int))
    for run, correct in sweep.image_scores.items():
        np.savez(folder.predictions_path(run), predicted=(~correct).astype(int))
    return folder
