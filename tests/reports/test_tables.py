"""Tables made from events, against what a person would count."""

import io
import json

import pandas as pd
import pytest

from kdtune.reports.tables import (
    CAVEAT,
    bad_images_note,
    bad_images_table,
    epochs_table,
    join_sweeps,
    leaderboard_table,
    render,
    to_csv,
    trials_table,
)


def asked(trial_id, method, model, number, **parameters):
    return {
        "event": "asked", "time": 0.0, "trial_id": trial_id, "method": method, "model": model,
        "number": number, "origin": "sampler", "parameters": parameters,
        "config": {"method": method, **parameters},
    }  # fmt: skip


def epoch(trial_id, number, accuracy, seconds=2.0):
    return {
        "event": "epoch", "time": 0.0, "trial_id": trial_id, "epoch": number,
        "validation_accuracy": accuracy, "seconds": seconds, "device": "cpu", "threads": 1,
    }  # fmt: skip


def ended(trial_id, state, reason="because"):
    return {"event": "ended", "time": 0.0, "trial_id": trial_id, "state": state, "reason": reason}


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


def test_leaderboard_has_a_row_a_cell_best_first():
    table = leaderboard_table(trials_table(EVENTS))
    assert table[["model", "method", "status"]].values.tolist() == [
        ["A", "at", "not_confirmed"],
        ["A", "kd", "not_confirmed"],
        ["B", "at", "failed"],
    ]
    kd = table.iloc[1]
    assert kd.trial_id == "kd-A-000"  # the earliest of equals, and one that can be repeated
    assert kd.search_best_percent == 25.0
    assert (kd.trials_started, kd.trials_finished, kd.trials_stopped) == (4, 1, 1)
    assert (kd.trials_diverged, kd.trials_crashed) == (1, 0)
    assert (kd.search_epochs, kd.search_device_seconds) == (4, 9.0)


@pytest.mark.parametrize("events", [[], EVENTS[:1], EVENTS[:2]])
def test_a_sweep_that_has_hardly_begun_has_tables_too(events):
    trials = trials_table(events)
    board = leaderboard_table(trials)
    assert len(board) == len(trials)
    assert len(epochs_table(events)) == 0
    assert CAVEAT in render(join_sweeps({"s": trials}), "table")


def test_forms_of_the_leaderboard():
    board = join_sweeps({"s": trials_table(EVENTS)})
    csv = pd.read_csv(io.StringIO(render(board, "csv")))
    assert csv.search_best_percent.tolist()[:2] == [75.0, 25.0]
    rows = json.loads(render(board, "json"))
    assert rows[0]["trial_id"] == "at-A-000" and rows[2]["trial_id"] is None
    markdown = render(board, "markdown").splitlines()
    assert markdown[0].count("|") == markdown[1].count("|") == markdown[2].count("|")
    assert "lr=0.1 beta=10" in render(board, "table")
    assert CAVEAT in render(board, "table") and CAVEAT in render(board, "markdown")


def test_a_baseline_that_comes_first_hides_no_hyperparameter():
    events = sorted(EVENTS, key=lambda e: "at-" in e.get("trial_id", ""))
    trials = trials_table(events)
    assert trials.columns[-3:].tolist() == ["lr", "beta", "configuration"]
    assert "lr=0.1 beta=10" in render(join_sweeps({"s": trials}), "table")


def test_several_sweeps_are_told_apart():
    trials = trials_table(EVENTS)
    board = join_sweeps({"one": trials, "two": trials})
    assert board.sweep.tolist() == ["one"] * 3 + ["two"] * 3


def test_restarts_are_counted_by_trial():
    events = [*EVENTS, {"event": "restarted", "trial_id": "kd-A-002", "cause": "died"}]
    restarts = trials_table(events).set_index("trial_id").restarts
    assert restarts["kd-A-002"] == 1 and restarts.sum() == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_no_text_in_a_csv_is_a_formula(text):
    table = pd.DataFrame({"reason": [text, "\t=1\r\n", None], "lr": [-1.0, 2.0, None]})
    back = pd.read_csv(io.StringIO(to_csv(table)), keep_default_na=False)
    assert back.reason.tolist() == [f"'{text}", r"\t=1\r\n", ""]
    assert back.lr.tolist() == ["-1.0", "2.0", ""]


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_hostile_text_is_shown_as_it_is(form):
    hostile = "[red]x[/red] \x1b[2J <b> a|b"
    events = [asked("at-A-000", "at", "A", 0, note=hostile), epoch("at-A-000", 1, 0.5)]
    events.append(ended("at-A-000", "finished"))
    shown = render(join_sweeps({"x": trials_table(events)}), form)
    assert "\x1b" not in shown
    bar = r"a\|b" if form == "markdown" else "a|b"
    assert rf"note=[red]x[/red] \x1b[2J <b> {bar}" in shown


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
