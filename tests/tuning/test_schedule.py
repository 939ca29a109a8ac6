"""What the log says of a trial's end."""

import re

import pytest
from machinery import EPOCHS, Machinery

from kdtune.results import SweepFolder


def ends(folder):
    return [e for e in SweepFolder(folder).events() if e["event"] == "ended"]


def test_an_end_says_who_stopped_the_trial_and_on_what_numbers(tmp_path):
    machinery = Machinery(tmp_path / "log.jsonl", methods="at", models="A")
    one, two = machinery.suggest(), machinery.suggest()
    assert machinery.report(one, 1, 0.47)
    assert not machinery.report(two, 1, 0.38, best=0.41)
    [end] = ends(tmp_path)
    assert (end["state"], end["epochs"], end["best_validation_accuracy"]) == ("stopped", 1, 0.41)
    assert end["reason"] == "asha, epoch 1: 41.00 %, the cut was 47.00 % among 1"


def test_a_trial_that_goes_all_the_way_is_finished_whatever_the_rule(tmp_path):
    machinery = Machinery(tmp_path / "log.jsonl", methods="at", models="A", grace_period=EPOCHS)
    machinery.train(machinery.suggest(), [0.9] * EPOCHS)
    machinery.train(machinery.suggest(), [0.1] * EPOCHS)
    assert [(e["state"], e["reason"]) for e in ends(tmp_path)] == [
        ("finished", f"all {EPOCHS} epochs")
    ] * 2


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_every_rule_signs_with_its_name(tmp_path, scheduler):
    given = {"methods": "at", "models": "A", "scheduler": scheduler, "trials": 30}
    machinery = Machinery(tmp_path / "log.jsonl", **given)
    accuracies = iter(n / 100 for n in range(90, 50, -1))
    while not ends(tmp_path):
        machinery.report(machinery.suggest(), 1, next(accuracies))
    reason = ends(tmp_path)[0]["reason"]
    assert re.fullmatch(rf"{scheduler}, epoch 1: .* %, the cut was .* % among \d", reason)


def test_notes_and_epochs_are_logged_as_they_come(tmp_path):
    machinery = Machinery(tmp_path / "log.jsonl", methods="at", models="A")
    trial = machinery.suggest()
    machinery.schedule.on_trial_result(None, trial, {"note": '{"state": "built", "bytes": 7}'})
    machinery.report(trial, 1, 0.5)
    view, epoch = SweepFolder(tmp_path).events()[-2:]
    assert (view["event"], view["trial_id"], view["bytes"]) == ("view", "at-A-000", 7)
    assert (epoch["event"], epoch["epoch"], epoch["validation_accuracy"]) == ("epoch", 1, 0.5)
    assert "pid" not in epoch  # what Ray adds stays outside
