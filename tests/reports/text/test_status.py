"""Status of a sweep as text."""

import time
from pathlib import Path

import pytest
from report_sweeps import EVENTS, confirm_run, repeated, restarted, sweep_started

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Completed, SweepResumed
from kdtune.log.folder import SweepSnapshot
from kdtune.reports.text.status import status_lines

CONFIG = SweepConfig.parse(
    {
        "name": "x", "data": "d", "methods": ["at", "kd"], "models": ["A", "B"],
        "baselines": False, "trials": 4, "epochs": 9,
    }
)  # fmt: skip
STARTED = sweep_started(CONFIG.model_dump(mode="json"))
RESUMED = SweepResumed(**STARTED.model_dump(exclude={"kind"}))


class Snapshot(SweepSnapshot):
    """A sweep with these events."""

    def __init__(self, events, confirm_events, locked):
        self.path, self.locked = Path("results/x"), locked
        self._events, self._confirm_events = events, confirm_events

    def is_locked(self):
        return self.locked

    def lock_holder(self):
        return "process 7 on h"


def ago(event, seconds):
    return event.model_copy(update={"time": time.time() - seconds})


def lines(locked, events=EVENTS[1:], confirm_events=(), opening=STARTED):
    events = [opening, *events]
    events[-1] = ago(events[-1], 90)
    return "\n".join(status_lines(Snapshot(events, list(confirm_events), locked))) + "\n"


def test_a_sweep_that_runs():
    said = lines(True)
    assert said.startswith(
        "results/x is being run by process 7 on h\n5 of 16 trials have ended, 8 "
    )
    assert "last event 1 min 30 s ago" in said and "resume" not in said
    assert "running: kd-A-002, after epoch 1 of 9\n" in said


def test_a_repeat_is_shown_with_its_candidate():
    said = lines(True, [*EVENTS[1:], repeated("at-A-001", 1, "at-A-000")])
    assert "running: at-A-001 (repeat of at-A-000), after epoch 0 of 9\n" in said


def test_a_sweep_that_was_interrupted_says_how_to_continue():
    said = lines(False, [*EVENTS[1:], RESUMED, restarted("kd-A-002")])
    assert said.startswith("results/x: no process runs it") and "resumed 1 time\n" in said
    assert "running: kd-A-002, after epoch 1 of 9, restarted 1 time\n" in said
    assert "to continue: kdtune resume results/x" in said


@pytest.mark.parametrize("locked", [False, True])
def test_a_sweep_without_a_trial(locked):
    assert "0 of 16 trials have ended, 0 epochs are trained" in lines(locked, events=[])


def test_a_sweep_that_is_complete():
    said = lines(False, events=[*EVENTS[1:], Completed()])
    assert "it is complete; 'kdtune resume' adds trials" in said and "to continue" not in said


def test_a_folder_that_cannot_be_locked():
    assert "it is unknown whether a process runs it" in lines(None)


def test_a_confirmation_that_was_interrupted_says_how_to_continue():
    confirmed = [*confirm_run("at-A-000", 2, [], None), *confirm_run("at-A-000", 1, [])]
    confirmed[-1] = ago(confirmed[-1], 5)
    complete = [*EVENTS[1:], Completed()]
    said = lines(False, complete, confirmed)
    assert "confirmation: 1 runs have ended\n" in said
    assert "running: at-A-000-seed2, after epoch 0 of 9\n" in said
    assert said.endswith("to continue: kdtune confirm results/x\n") and "last event 5 s" in said
    assert "it is complete" in lines(False, complete, [*confirmed, Completed()])
