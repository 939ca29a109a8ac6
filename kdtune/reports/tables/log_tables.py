"""What a sweep's logs hold, as DataFrames: trials, epochs, confirm runs, students, bad images.

Accuracies are shares of 1. Nothing here is compared; that is for the tables made from these.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from kdtune.log.events import (
    CandidateChosen,
    EpochFinished,
    Event,
    StudentProfiled,
    SweepStarted,
    TrialState,
)
from kdtune.log.trial_history import TrialHistory, TrialRecord

OUTCOME_COLUMNS = [
    "reason",
    "restarts",
    "epochs",
    "best_validation_accuracy",
    "best_epoch",
    "last_validation_accuracy",
    "device_seconds",
    "device",
    "threads",
]
"""What became of a trial or a run."""

TRIAL_COLUMNS = ["trial_id", "method", "model", "number", "origin", "state", *OUTCOME_COLUMNS]
"""Columns of the table of trials; hyperparameters and ``configuration`` follow."""

EPOCH_COLUMNS = ["trial_id", "method", "model", "epoch", "best_validation_accuracy"]
"""Columns that the table of epochs has also without any."""

RUN_COLUMNS = [
    "run_id",
    "method",
    "model",
    "trial_id",
    "seed",
    "status",
    "chosen",
    "epochs",
    "best_validation_accuracy",
    "best_epoch",
    "test_accuracy",
    "device_seconds",
    "restarts",
    "reason",
    "device",
    "threads",
    "configuration",
]
MODEL_COLUMNS = ["model", "parameters", "macs", "latency_ms", "latency_device"]

INTEGER_COLUMN_TYPES = {"best_epoch": "Int64", "threads": "Int64"}


def epochs_table(events: Iterable[Event]) -> pd.DataFrame:
    """One row an epoch of a trial, in the order in which they were reported.

    Columns:
        trial_id, method, model: whose epoch it is.
        epoch: from 1.
        lr: learning rate during the epoch.
        train_loss: mean of the method's loss over the training images.
        train_accuracy, validation_accuracy: shares of 1.
        validation_loss: mean cross-entropy.
        best_validation_accuracy: best up to here, the objective of the search.
        loss_<part>, loss_<part>_weighted: means of the parts of the training loss.
        seconds: training and validation of this epoch on the trial's device.
        device, threads: where it ran.
        session_seconds: since its driver opened the log.
    """
    rows = [
        {**event.identity, **event.as_row(), "session_seconds": event.session_seconds}
        for event in events
        if isinstance(event, EpochFinished)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=EPOCH_COLUMNS)


def trials_table(events: Iterable[Event]) -> pd.DataFrame:
    """One row a trial, in the order in which they were proposed.

    Columns:
        trial_id, method, model, number: the trial, and its place in its cell, from 0.
        origin: ``start`` (a known good point) or ``sampler``.
        state: ``finished``, ``stopped``, ``diverged``, ``crashed``; ``running`` if it never ended.
        reason: why it ended.
        restarts: how often it was begun again in another process.
        epochs: epochs trained.
        best_validation_accuracy: share of 1, the best of its epochs; empty if there is none.
        best_epoch: the first epoch that reached it.
        last_validation_accuracy: share of 1, of the last epoch.
        device_seconds: sum over its epochs.
        device, threads: where it ran.
        <hyperparameter>: the value that was searched; empty where a space does not have it. One
            that is called as a column above is in the configuration only.
        configuration: the complete settings, as JSON.

    Raises:
        UserError: the log is damaged.
    """
    trials = TrialHistory(events).trials.values()
    fixed_columns = {*TRIAL_COLUMNS, "configuration"}
    hyperparameters = dict.fromkeys(
        name for trial in trials for name in trial.proposed.params if name not in fixed_columns
    )
    rows = [
        {
            **trial.proposed.params,
            **trial.proposed.identity,
            "number": trial.proposed.number,
            "origin": trial.proposed.origin,
            **_outcome(trial),
            "configuration": json.dumps(trial.proposed.config),
        }
        for trial in trials
    ]
    columns = [*TRIAL_COLUMNS, *hyperparameters, "configuration"]
    return pd.DataFrame(rows, columns=columns).astype(INTEGER_COLUMN_TYPES)


def runs_table(confirm_events: Iterable[Event]) -> pd.DataFrame:
    """One row a confirm run, in the order in which they were asked for.

    Args:
        confirm_events: the log of ``kdtune confirm``; without events there are no rows.

    Columns:
        run_id, method, model: the run, and its cell.
        trial_id: the searched trial whose configuration it trains again.
        seed: the seed's number, from 1, the same in every cell.
        status: ``ok``, ``diverged``, ``crashed``; ``running`` if it never ended.
        chosen: whether its configuration was chosen for the cell.
        epochs: epochs trained.
        best_validation_accuracy: share of 1, the best of its epochs; empty if there is none.
        best_epoch: the first epoch that reached it.
        test_accuracy: share of 1; empty where test was not read.
        device_seconds: sum over its epochs.
        restarts: how often it was begun again in another process.
        reason: why it ended.
        device, threads: where it ran.
        configuration: its complete settings, as JSON.

    Raises:
        UserError: the log is damaged.
    """
    events = list(confirm_events)
    chosen = {
        event.cell: event.candidate for event in events if isinstance(event, CandidateChosen)
    }
    rows = [
        {
            "run_id": run.proposed.trial_id,
            "method": run.proposed.method,
            "model": run.proposed.model,
            "trial_id": run.proposed.candidate,
            "seed": run.proposed.number,
            "status": "ok" if run.state is TrialState.FINISHED else str(run.state),
            "chosen": chosen.get(run.cell) == run.proposed.candidate,
            "test_accuracy": run.tested.test_accuracy if run.tested else np.nan,
            "configuration": json.dumps(run.proposed.config),
            **_outcome(run),
        }
        for run in TrialHistory(events).trials.values()
    ]
    return pd.DataFrame(rows, columns=RUN_COLUMNS).astype({**INTEGER_COLUMN_TYPES, "chosen": bool})


def models_table(confirm_events: Iterable[Event]) -> pd.DataFrame:
    """One row a student that was measured, hooks and teacher removed.

    Columns:
        model: the architecture.
        parameters: count.
        macs: multiplications with addition in one image's forward pass.
        latency_ms: median milliseconds of a forward pass of one image.
        latency_device: where that was measured.
    """
    profiles = {e.model: e.model_dump() for e in confirm_events if isinstance(e, StudentProfiled)}
    table = pd.DataFrame(list(profiles.values()), columns=MODEL_COLUMNS)
    return table.astype({"parameters": "Int64", "macs": "Int64", "latency_ms": float})


def _outcome(trial: TrialRecord) -> dict[str, Any]:
    """Return how a trial ended, or how far it is, by column."""
    best = trial.best_epoch
    last = trial.epochs[-1] if trial.epochs else None
    return {
        "state": str(trial.state),
        "reason": trial.ended.reason if trial.ended else "",
        "restarts": len(trial.restarts),
        "epochs": last.epoch if last else 0,
        "best_validation_accuracy": best.validation_accuracy if best else np.nan,
        "best_epoch": best.epoch if best else pd.NA,
        "last_validation_accuracy": last.validation_accuracy if last else np.nan,
        "device_seconds": trial.device_seconds,
        "device": last.device if last else "",
        "threads": last.threads if last else pd.NA,
    }


def bad_images_table(events: Iterable[Event]) -> pd.DataFrame:
    """One row an image that was left out since it cannot be read.

    Columns:
        split: ``train``, ``validation`` or ``test``.
        file: its path.
        reason: why it cannot be read.
    """
    openings = (event for event in events if isinstance(event, SweepStarted))
    opening = next(openings, None)
    rows = [image.model_dump() for image in opening.data.skipped_images] if opening else []
    return pd.DataFrame(rows, columns=["split", "file", "reason"])
