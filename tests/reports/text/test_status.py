"""How far a sweep is, in words."""

import time
from pathlib import Path

import pytest
from test_log_tables import EVENTS

from kdtune.config.sweep import SweepConfig
from kdtune.reports.text.status import status_lines

CONFIG = SweepConfig.parse(
    {
        "name": "x", "data": "d", "methods": ["at", "kd"], "models": ["A", "B"],
        "baselines": False, "trials": 4, "epochs": 9,
    }
)  # fmt: skip
OPENED = {
    "event": "sweep", "config": CONFIG.model_dump(mode="json"),
}  # fmt: skip


def lines(held, opened=(OPENED,), events=EVENTS, confirmed=()):
    events = [*events[:-1], {**events[-1], "time": time.time() - 90}]
    place = "process 7 on h", Path("results/x")
    return "\n".join(status_lines(list(opened), events, list(confirmed), held, *place)) + "\n"


def test_a_sweep_that_runs():
    said = lines(True)
    assert said.startswith(
        "results/x is being run by process 7 on h\n5 of 16 trials have ended, 8 "
    )
    assert "last event 1 min 30 s ago" in said and "resume" not in said
    assert "under way: kd-A-002, after epoch 1 of 9\n" in said


def test_a_sweep_that_was_interrupted_says_how_to_go_on():
    again = {"event": "restarted", "trial_id": "kd-A-002", "cause": "died"}
    said = lines(False, [OPENED, {**OPENED, "event": "resumed"}], [again, *EVENTS][1:] + [again])
    assert said.startswith("results/x: no process runs it") and "resumed 1 time\n" in said
    assert "under way: kd-A-002, after epoch 1 of 9, begun again 1 times" in said
    assert "to go on: kdtune resume results/x" in said


@pytest.mark.parametrize("held", [False, True])
def test_a_sweep_without_a_trial(held):
    said = lines(held, events=[{**OPENED, "time": 0.0}])
    assert "0 of 16 trials have ended, 0 epochs are trained" in said


def test_a_sweep_that_is_complete():
    said = lines(False, events=[*EVENTS, {"event": "complete"}])
    assert "it is complete; more trials" in said and "to go on" not in said


def test_a_folder_that_cannot_be_locked():
    assert "nobody can tell whether a process runs it" in lines(None)


def test_a_confirmation_that_was_interrupted_says_how_to_go_on():
    about = {"method": "at", "model": "A", "confirms": "at-A-000", "config": {}, "time": 0.0}
    asked = [{"event": "asked", "trial_id": f"s{n}", "number": n, **about} for n in (1, 2)]
    end = {"event": "ended", "trial_id": "s1", "state": "finished", "reason": "all"}
    confirmed = [*asked, {**end, "time": time.time() - 5}]
    complete = [*EVENTS, {"event": "complete"}]
    said = lines(False, events=complete, confirmed=confirmed)
    assert "confirmation: 1 runs have ended\n" in said
    assert "under way: s2, after epoch 0 of 9\n" in said
    assert said.endswith("to go on: kdtune confirm results/x\n") and "last event 5 s ago" in said
    done = [*confirmed, {"event": "complete", "time": 0.0}]
    assert "it is complete" in lines(False, events=complete, confirmed=done)
