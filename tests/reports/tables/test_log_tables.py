"""Tables made from events, against what a person would count."""

import json

import pandas as pd
import pytest

from kdtune.errors import UserError
from kdtune.reports.tables.log_tables import (
    EPOCH_COLUMNS,
    MODEL_COLUMNS,
    RUN_COLUMNS,
    TRIAL_COLUMNS,
    bad_images_table,
    epochs_table,
    models_table,
    runs_table,
    trials_table,
)
from kdtune.reports.tables.notes import bad_images_note


def asked(trial_id, method, model, number, **parameters):
    return {
        "event": "asked", "time": 0.0, "trial_id": trial_id, "method": method, "model": model,
        "number": number, "origin": "sampler", "parameters": parameters,
        "config": {"method": method, **parameters},
    }  # fmt: skip


def epoch(trial_id, number, accuracy, seconds=2.0):
    return {
        "event": "epoch", "time": 0.0, "trial_id": trial_id, "epoch": number,
        "validation_accuracy": accuracy, "best_validation_accuracy": accuracy,
        "seconds": seconds, "device": "cpu", "threads": 1,
    }  # fmt: skip


def ended(trial_id, state, reason="because"):
    return {"event": "ended", "time": 0.0, "trial_id": trial_id, "state": state, "reason": reason}


def confirms(trial_id, method, model, seed, scores, state="finished"):
    """Events of a confirm run."""
    run = f"{trial_id}-seed{seed}"
    yield {**asked(run, method, model, seed), "origin": "confirm", "confirms": trial_id}
    yield from (epoch(run, number, score) for number, score in enumerate(scores, start=1))
    if state is not None:
        yield ended(run, state)


def chosen(method, model, trial_id):
    return {"event": "chosen", "method": method, "model": model, "confirms": trial_id}


def was_tested(run, accuracy):
    return {"event": "tested", "trial_id": run, "test_accuracy": accuracy, "test_images": 8}


EVENTS = [
    {"event": "sweep", "time": 0.0},
    asked("at-A-000", "at", "A", 0, lr=0.1, beta=10.0),
    asked("kd-A-000", "kd", "A", 0, lr=0.2),
    epoch("at-A-000", 1, 0.5),
    epoch("kd-A-000", 1, 0.25),
    ended("kd-A-000", "stopped"),
    epoch("at-A-000", 2, 0.75),
    epoch("at-A-000", 3, 0.75),
    epoch("at-A-000", 4, 0.625),
    ended("at-A-000", "finished"),
    asked("kd-A-001", "kd", "A", 1, lr=0.3),
    epoch("kd-A-001", 1, 0.5, seconds=3.0),
    ended("kd-A-001", "diverged"),
    asked("kd-A-002", "kd", "A", 2, lr=0.4),
    epoch("kd-A-002", 1, 0.5),
    asked("kd-A-003", "kd", "A", 3, lr=0.7),
    epoch("kd-A-003", 1, 0.25),
    ended("kd-A-003", "finished"),
    asked("at-B-000", "at", "B", 0, lr=0.5, beta=1.0),
    ended("at-B-000", "crashed"),
]
CONFIRM = [
    {"event": "confirm", "time": 0.0},
    {"event": "measured", "model": "A", "parameters": 7, "macs": 9, "latency_ms": 1.5,
     "latency_device": "cpu"},
    *confirms("at-A-000", "at", "A", 1, [0.5, 0.75, 0.625]),
    *confirms("at-A-000", "at", "A", 2, [0.5], "diverged"),
    *confirms("at-A-001", "at", "A", 1, [], "crashed"),
    *confirms("at-A-001", "at", "A", 2, [0.25], None),
    chosen("at", "A", "at-A-000"),
    was_tested("at-A-000-seed1", 0.875),
]  # fmt: skip


def test_trials():
    table = trials_table(EVENTS).set_index("trial_id")
    at = table.loc["at-A-000"]
    assert (at.state, at.epochs, at.best_epoch, at.device_seconds) == ("finished", 4, 2, 8.0)
    assert (at.best_validation_accuracy, at.last_validation_accuracy) == (0.75, 0.625)
    assert (at.lr, at.beta) == (0.1, 10.0)
    assert pd.isna(table.loc["kd-A-000"].beta)
    assert table.loc["kd-A-002"].state == "running"
    crashed = table.loc["at-B-000"]
    assert crashed.epochs == 0 and pd.isna(crashed.best_validation_accuracy)
    assert json.loads(at.configuration) == {"method": "at", "lr": 0.1, "beta": 10.0}


def test_epochs():
    table = epochs_table(EVENTS)
    assert table.trial_id.tolist() == ["at-A-000", "kd-A-000"] + ["at-A-000"] * 3 + [
        "kd-A-001",
        "kd-A-002",
        "kd-A-003",
    ]
    assert {"event", "time"}.isdisjoint(table.columns)


def test_runs():
    table = runs_table(CONFIRM)
    assert table.columns.tolist() == RUN_COLUMNS
    assert table[["run_id", "trial_id", "seed", "status", "chosen"]].values.tolist() == [
        ["at-A-000-seed1", "at-A-000", 1, "ok", True],
        ["at-A-000-seed2", "at-A-000", 2, "diverged", True],
        ["at-A-001-seed1", "at-A-001", 1, "crashed", False],
        ["at-A-001-seed2", "at-A-001", 2, "running", False],
    ]
    first = table.iloc[0]
    assert (first.epochs, first.best_epoch, first.device_seconds) == (3, 2, 6.0)
    assert (first.best_validation_accuracy, first.test_accuracy) == (0.75, 0.875)
    assert table.test_accuracy.isna().tolist() == [False, True, True, True]
    assert not runs_table(CONFIRM[:-2]).chosen.any()


def test_a_student_is_measured_once():
    again = {**CONFIRM[1], "latency_ms": 2.5, "latency_device": "cuda"}
    table = models_table([*CONFIRM, again])
    assert table.columns.tolist() == MODEL_COLUMNS
    assert table.values.tolist() == [["A", 7, 9, 2.5, "cuda"]]


def test_empty_logs_have_tables_with_all_columns():
    assert trials_table([]).columns.tolist() == [*TRIAL_COLUMNS, "configuration"]
    assert epochs_table([]).columns.tolist() == EPOCH_COLUMNS
    assert runs_table([]).columns.tolist() == RUN_COLUMNS and models_table([]).empty


@pytest.mark.parametrize(
    ("make", "events"),
    [
        (trials_table, EVENTS[4:]),
        (trials_table, [ended("x", "finished")]),
        (trials_table, [{"event": "restarted", "trial_id": "x"}]),
        (runs_table, [was_tested("x", 0.5)]),
        (runs_table, EVENTS),
    ],
)
def test_a_damaged_log_is_a_sentence(make, events):
    with pytest.raises(UserError, match=r"^The log is damaged: .*\.$"):
        make(events)


def test_logs_that_say_less_or_more_than_ours_have_tables():
    short = {k: v for k, v in EVENTS[3].items() if k not in ("device", "threads")}
    odd = asked("at-A-000", "at", "A", 0, device="x", state="y", configuration="z", lr=0.5)
    [row] = trials_table([odd, short]).itertuples()
    assert (row.device, row.state, row.lr, row.epochs) == ("", "running", 0.5, 1)
    assert pd.isna(row.threads) and json.loads(row.configuration)["state"] == "y"
    assert trials_table([odd, {"event": "of a later version", "trial_id": "x"}]).shape[0] == 1


def test_restarts_are_counted_by_trial():
    events = [*EVENTS, {"event": "restarted", "trial_id": "kd-A-002", "cause": "died"}]
    restarts = trials_table(events).set_index("trial_id").restarts
    assert restarts["kd-A-002"] == 1 and restarts.sum() == 1


def test_images_that_were_left_out_are_told():
    bad = [
        {"split": split, "file": f"{n}.png", "reason": "it is empty"}
        for n, split in enumerate(("train", "train", "validation"))
    ]
    events = [{"event": "sweep", "data": {"skipped_images": bad}}]
    assert bad_images_table(events).file.tolist() == ["0.png", "1.png", "2.png"]
    said = "Images that cannot be read were left out: 2 train, 1 validation (bad_images.csv)."
    assert bad_images_note(events) == said
    assert bad_images_note([{"event": "sweep", "data": {"skipped_images": []}}]) is None
