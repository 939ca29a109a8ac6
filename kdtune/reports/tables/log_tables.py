"""What a sweep's logs hold, as DataFrames: trials, epochs, confirm runs, students, bad images.

Accuracies are shares of 1. Nothing here is compared; that is for the tables made from these.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from kdtune.errors import UserError

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


def epochs_table(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
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
        {key: value for key, value in event.items() if key not in ("event", "time")}
        for event in events
        if event["event"] == "epoch"
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=EPOCH_COLUMNS)


def trials_table(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
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
    histories = _trial_histories(events)
    fixed_columns = {*TRIAL_COLUMNS, "configuration"}
    hyperparameters = dict.fromkeys(
        name
        for proposed, _ in histories
        for name in proposed["parameters"]
        if name not in fixed_columns
    )
    rows = [
        {
            **proposed["parameters"],
            **proposed,
            **outcome,
            "configuration": json.dumps(proposed["config"]),
        }
        for proposed, outcome in histories
    ]
    columns = [*TRIAL_COLUMNS, *hyperparameters, "configuration"]
    return pd.DataFrame(rows, columns=columns).astype(INTEGER_COLUMN_TYPES)


def runs_table(confirm_events: Iterable[dict[str, Any]]) -> pd.DataFrame:
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
        (event["method"], event["model"]): event["confirms"]
        for event in events
        if event["event"] == "chosen"
    }
    rows = []
    for proposed, outcome in _trial_histories(events):
        if "confirms" not in proposed:
            raise UserError(
                f"The log is damaged: {proposed['trial_id']} does not say which trial it confirms."
            )
        rows.append(
            {
                **proposed,
                **outcome,
                "run_id": proposed["trial_id"],
                "trial_id": proposed["confirms"],
                "seed": proposed["number"],
                "configuration": json.dumps(proposed["config"]),
                "status": {"finished": "ok"}.get(outcome["state"], outcome["state"]),
                "chosen": chosen.get((proposed["method"], proposed["model"]))
                == proposed["confirms"],
            }
        )
    return pd.DataFrame(rows, columns=RUN_COLUMNS).astype({**INTEGER_COLUMN_TYPES, "chosen": bool})


def models_table(confirm_events: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row a student that was measured, hooks and teacher removed.

    Columns:
        model: the architecture.
        parameters: count.
        macs: multiplications with addition in one image's forward pass.
        latency_ms: median milliseconds of a forward pass of one image.
        latency_device: where that was measured.
    """
    profiles = {e["model"]: e for e in confirm_events if e["event"] == "measured"}
    table = pd.DataFrame(list(profiles.values()), columns=MODEL_COLUMNS)
    return table.astype({"parameters": "Int64", "macs": "Int64", "latency_ms": float})


def _trial_histories(
    events: Iterable[dict[str, Any]],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """How each trial or run was asked for, and what became of it: `OUTCOME_COLUMNS`, state, test accuracy."""
    histories: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for event in events:
        kind = event["event"]
        if kind == "asked":
            histories[event["trial_id"]] = (
                event,
                {
                    "state": "running",
                    "reason": "",
                    "restarts": 0,
                    "epochs": 0,
                    "best_validation_accuracy": np.nan,
                    "best_epoch": pd.NA,
                    "last_validation_accuracy": np.nan,
                    "test_accuracy": np.nan,
                    "device_seconds": 0.0,
                    "device": "",
                    "threads": pd.NA,
                },
            )
        elif kind in ("epoch", "restarted", "ended", "tested"):
            if event["trial_id"] not in histories:
                raise UserError(
                    f"The log is damaged: {event['trial_id']} was never begun, but has an event "
                    f"'{kind}'."
                )
            _, outcome = histories[event["trial_id"]]
            if kind == "epoch":
                if not event["validation_accuracy"] <= outcome["best_validation_accuracy"]:
                    outcome["best_validation_accuracy"] = event["validation_accuracy"]
                    outcome["best_epoch"] = event["epoch"]
                outcome["last_validation_accuracy"] = event["validation_accuracy"]
                outcome["epochs"] = event["epoch"]
                outcome["device_seconds"] += event["seconds"]
                outcome["device"] = event.get("device", "")
                outcome["threads"] = event.get("threads", pd.NA)
            elif kind == "restarted":
                outcome["restarts"] += 1
            elif kind == "ended":
                outcome.update(state=event["state"], reason=event["reason"])
            else:
                outcome["test_accuracy"] = event["test_accuracy"]
    return list(histories.values())


def bad_images_table(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row an image that was left out since it cannot be read.

    Columns:
        split: ``train``, ``validation`` or ``test``.
        file: its path.
        reason: why it cannot be read.
    """
    openings = (event for event in events if event["event"] == "sweep")
    skipped_images = next(openings, {}).get("data", {}).get("skipped_images", [])
    return pd.DataFrame(skipped_images, columns=["split", "file", "reason"])
