"""Processes that make no progress."""

import pytest
from event_logs import make_metrics

from kdtune.log.events import EpochFinished
from kdtune.runtime.signals import InterruptHandler
from kdtune.tuning.scheduling.watchdog import LONGEST_EPOCH_FACTOR, Watchdog


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def finished_epoch(seconds):
    metrics = dict(make_metrics(1, 0.5, seconds=seconds))
    return EpochFinished(trial_id="a", method="at", model="Net", **metrics)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock, monkeypatch):
    ended = []

    class End:
        def options(self, **where):
            return self

        def remote(self, pid):
            ended.append(pid)

    monkeypatch.setattr("kdtune.tuning.scheduling.watchdog._kill", End())
    watch = Watchdog(60, InterruptHandler(20, print), clock)
    watch.ended = ended
    watch.fold(finished_epoch(1.0))
    for pid, trial_id in enumerate(("a", "b")):
        watch.add_process(trial_id, "Net", pid, 56 * "0")
    return watch


def at(watch, clock, now):
    clock.now = now
    watch.on_step_end(0, [])
    return watch.ended


def test_no_progress_for_the_set_time_is_the_end(watch, clock):
    assert at(watch, clock, 50) == []
    watch.record_progress("b")
    assert at(watch, clock, 61) == [0]
    assert at(watch, clock, 62) == [0]  # once
    assert watch.remove_process("a") == "no progress for 1 min"
    assert watch.remove_process("a") is None
    assert at(watch, clock, 111) == [0, 1]


def test_ten_of_the_longest_epochs_of_a_student_are_allowed(watch, clock):
    watch.fold(finished_epoch(30.0))
    watch.record_progress("b")
    assert at(watch, clock, LONGEST_EPOCH_FACTOR * 30) == []
    assert sorted(at(watch, clock, LONGEST_EPOCH_FACTOR * 30 + 1)) == [0, 1]
    assert watch.remove_process("a") == "no progress for 5 min"


def test_while_no_epoch_is_known_there_is_more_time(watch, clock):
    watch.remove_process("a"), watch.remove_process("b")
    watch.add_process("c", "Other", 7, 56 * "0")
    assert at(watch, clock, LONGEST_EPOCH_FACTOR * 60) == []
    assert at(watch, clock, LONGEST_EPOCH_FACTOR * 60 + 1) == [7]


def test_a_trial_that_was_left_is_not_watched(watch, clock):
    assert watch.remove_process("a") is None and watch.remove_process("b") is None
    assert at(watch, clock, 1e9) == []
