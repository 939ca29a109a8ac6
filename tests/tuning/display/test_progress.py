"""Progress of a sweep from the events of its log: counts, rates, time left."""

import math
from collections import Counter
from pathlib import Path

import pytest
from display_events import AT, IMAGES, KD, TARGETS, Told
from hypothesis import given
from hypothesis import strategies as st

from kdtune.log.events import (
    CacheUpdated,
    CellModelled,
    ConfirmStarted,
    SpaceExhausted,
    SweepResumed,
    TrialEnded,
    TrialProposed,
    WeightsMissing,
)
from kdtune.log.folder import SweepFolder
from kdtune.tuning.display.progress import (
    MAX_RECENT_TRIALS,
    RATE_WINDOW_EPOCHS,
    Goal,
    Progress,
    estimate_epochs_left,
    estimate_seconds_left,
)


def test_what_was_saved_counts_passes_and_the_epochs_that_learned_from_them():
    told = Told(IMAGES, TARGETS)
    told.trial("a")
    told.tell(CacheUpdated, "a", progress=TARGETS.model_copy(update={"seconds": 1.5}))
    told.trial("b")
    told.trial("live", cache_gb=0)
    said = "Cache: the teacher ran 2 times (4.0 s) for the 2 epochs that learned from it; "
    said += "the teacher ran live for 1 epochs; 2.0 GB of arrays."
    assert told.progress.describe_cache_savings() == said


def test_a_teacher_whose_targets_were_there_did_not_run():
    told = Told(IMAGES, TARGETS.model_copy(update={"state": "cached"}))
    told.trial("a")
    said = told.progress.describe_cache_savings()
    assert said.startswith("Cache: the teacher had run before for the 1 epochs that learned")


@pytest.mark.parametrize(
    ("prepared", "config", "said"),
    [
        ((IMAGES,), {"teacher_model": None}, "Cache: 1.0 GB of arrays."),
        ((), {"cache_gb": 0}, "Cache: the teacher ran live for 1 epochs."),
        ((), {"teacher_model": None}, ""),
    ],
)
def test_only_what_exists_is_mentioned(prepared, config, said):
    told = Told(*prepared)
    told.trial("a", **config)
    assert told.progress.describe_cache_savings() == said


def test_a_cell_counts_its_trials_by_their_ends():
    told = Told()
    for state in ("finished", "stopped", "stopped", "diverged", "crashed"):
        told.trial(f"{state}-{told.now:g}", state=state)
    told.propose("open")
    told.trial("other", cell=KD)
    assert told.progress.state_counts(AT) == {
        "finished": 1, "stopped": 2, "diverged": 1, "crashed": 1, "running": 1,
    }  # fmt: skip
    progress = told.progress
    assert (progress.num_ended, progress.num_running, progress.epochs_trained) == (6, 1, 6)
    assert (progress.updated_at(AT), progress.updated_at(KD)) == (5, 6)


def test_a_running_trial_leads_until_it_diverges():
    told = Told()
    assert told.progress.leader(AT) is None
    told.trial("a", accuracy=0.8, params={"lr": 0.1})
    told.trial("same", accuracy=0.8)
    best = told.progress.leader(AT)
    assert (best.trial_id, best.accuracy, best.num_runs) == ("a", 0.8, None)
    assert best.params == {"lr": 0.1}
    told.propose("b")
    told.epoch("b", 0.9)
    assert told.progress.leader(AT).trial_id == "b"
    told.end("b", "diverged", 0.9)
    assert told.progress.leader(AT).trial_id == "a"


def test_a_confirmation_is_led_by_the_highest_mean_of_finished_runs():
    told = Told(kind=ConfirmStarted)
    for run, accuracy in (("a-seed1", 0.8), ("a-seed2", 0.7), ("b-seed1", 0.76)):
        told.trial(run, accuracy=accuracy, candidate=run[0])
    told.propose("b-seed2", candidate="b")
    told.epoch("b-seed2", 0.1)  # its first epoch says nothing of its last
    best = told.progress.leader(AT)
    assert (best.trial_id, best.accuracy, best.num_runs) == ("b", 0.76, 1)
    told.end("b-seed2", accuracy=0.7)
    best = told.progress.leader(AT)
    assert (best.trial_id, best.accuracy, best.num_runs) == ("a", 0.75, 2)


def test_a_search_with_repeats_is_led_by_the_highest_mean():
    told = Told()
    told.trial("a", accuracy=0.8, params={"lr": 0.1})
    told.trial("b", accuracy=0.7, params={"lr": 0.2})
    told.propose("c", candidate="a", origin="repeat", params={"lr": 0.1})
    told.epoch("c", 0.1)  # its first epoch says nothing of its last
    assert told.progress.leader(AT).trial_id == "a"
    told.end("c", accuracy=0.5)
    best = told.progress.leader(AT)
    assert (best.trial_id, best.accuracy, best.num_runs) == ("b", 0.7, None)
    told.trial("d", accuracy=0.9, candidate="a", origin="repeat")
    best = told.progress.leader(AT)
    assert (best.trial_id, best.params) == ("a", {"lr": 0.1})
    assert best.accuracy == pytest.approx((0.8 + 0.5 + 0.9) / 3)


def test_a_stopped_trial_does_not_lower_the_mean_of_its_finished_repeats():
    told = Told()
    told.trial("a", accuracy=0.5, state="stopped")
    told.trial("b", accuracy=0.75, candidate="a", origin="repeat")
    assert told.progress.leader(AT).accuracy == 0.75


def test_the_first_of_a_model_leads_until_a_trial_of_its_cell_is_proposed():
    told = Told()
    for trial, accuracy in (("a", 0.8), ("b", 0.7)):
        told.trial(trial, accuracy=accuracy)
    assert told.progress.leader(AT).trial_id == "a"
    estimates = [{"trial_id": trial, "mean": 0.7, "sd": 0.1} for trial in ("b", "a")]
    numbers = {"noise_sd": 0.01, "left_to_gain": 0.02, "search_luck": 0.01}
    told.tell(CellModelled, **numbers, estimates=estimates)
    assert (told.progress.leader(AT).trial_id, told.progress.leader(AT).accuracy) == ("b", 0.7)
    told.propose("other", KD)
    assert told.progress.leader(AT).trial_id == "b"
    told.propose("c")
    assert told.progress.leader(AT).trial_id == "a"


def test_runs_that_are_lost_or_crashed_are_run_again():
    told = Told(kind=ConfirmStarted)
    told.trial("a-seed1", candidate="a")
    told.trial("a-seed2", candidate="a", state="crashed")
    told.tell(WeightsMissing, "a-seed1")
    assert told.progress.num_ended == 1 and told.progress.leader(AT) is None
    told.open(kind=ConfirmStarted)
    assert told.progress.num_ended == 0
    told.trial("a-seed2", candidate="a")
    assert told.progress.state_counts(AT) == {"finished": 1}


def test_the_rate_is_that_of_the_latest_epochs_and_falls_when_none_comes():
    told = Told()
    told.propose("a")
    assert told.progress.epoch_rate() == (0, 0)
    told.now = 10
    told.epoch("a")
    told.now = 12
    told.epoch("a")
    assert told.progress.epoch_rate() == (2, 12)
    told.now = 24
    assert told.progress.epoch_rate() == (2, 24)
    for _ in range(RATE_WINDOW_EPOCHS + 1):
        told.now += 2
        told.epoch("a")
    assert told.progress.epoch_rate() == (RATE_WINDOW_EPOCHS, 2 * RATE_WINDOW_EPOCHS)


def test_the_rate_of_a_session_is_not_that_of_another():
    told = Told()
    told.trial("a")
    told.now = 1000
    told.open(kind=SweepResumed)
    told.now = 1003
    assert told.progress.epoch_rate() == (0, 3)


GOAL = Goal({AT: 3, KD: 2})


def test_time_left_by_hand():
    told = Told()
    assert told.progress.estimate_time_left(GOAL, 2) == (None, "a trial has ended")
    told.trial("at-0", 10)
    # Two of at's at 10 s each and two of kd's, which are taken for as long, in two slots.
    assert told.progress.estimate_time_left(GOAL, 2) == (20, "from 1 ended trial")
    told.trial("kd-0", 30, cell=KD)
    told.propose("kd-1", cell=KD)
    told.now += 12
    # Two of at's at 10 s, and 18 s of kd's second one.
    assert told.progress.estimate_time_left(GOAL, 2) == (19, "from 2 ended trials")
    assert told.progress.estimate_time_left(GOAL, 8) == (18, "from 2 ended trials")
    told.now += 100  # longer than any
    assert told.progress.estimate_time_left(GOAL, 2) == (10, "from 2 ended trials")


def test_the_start_of_a_process_is_no_part_of_a_trial():
    told = Told()
    told.propose("at-0")
    told.now = 25
    told.epoch("at-0", seconds=5)
    told.now = 30
    told.epoch("at-0", seconds=5)
    told.end("at-0")
    assert told.progress.estimate_time_left(Goal({AT: 2}), 1) == (10, "from 1 ended trial")


def test_the_latest_trials_say_how_long_others_take():
    told = Told()
    for number in range(2 * MAX_RECENT_TRIALS):
        told.trial(f"at-{number}", 100 if number < MAX_RECENT_TRIALS else 2)
    assert told.progress.estimate_time_left(Goal({AT: 2 * MAX_RECENT_TRIALS + 3}), 1)[0] == 6


def test_an_exhausted_cell_has_no_trials_left():
    told = Told()
    told.trial("at-0", 10)
    told.tell(SpaceExhausted, cell=KD, reason="no point is left")
    assert told.progress.estimate_time_left(GOAL, 1) == (20, "from 1 ended trial")


def test_the_limit_that_is_reached_first_counts():
    told = Told()
    told.now = 6
    assert told.progress.estimate_time_left(Goal({AT: None}, 10), 1) == (
        None,
        "an epoch has ended",
    )
    assert told.progress.estimate_time_left(Goal({AT: None}, None, 10), 1) == (
        4, "until the time budget is spent",
    )  # fmt: skip
    told.trial("at-0", 2)  # an epoch in 8 s
    assert told.progress.estimate_time_left(Goal({AT: None}, 3, 60), 1) == (
        16,
        "from 1 of 3 epochs",
    )
    assert told.progress.estimate_time_left(Goal({AT: 2}, 3, 60), 1) == (2, "from 1 ended trial")
    told.now = 70
    assert told.progress.estimate_time_left(Goal({AT: None}, 100, 60), 1)[0] == 0


def test_time_without_a_driver_is_no_part_of_a_trial():
    told = Told()
    told.propose("at-0")
    told.now = 4
    told.epoch("at-0")
    told.now = 1000
    told.open(kind=SweepResumed)
    told.now = 1006
    told.end("at-0")
    assert told.progress.stopwatch.elapsed_seconds == 10
    assert told.progress.estimate_time_left(Goal({AT: 2}), 1) == (10, "from 1 ended trial")


def test_the_log_alone_gives_the_same():
    told = Told(IMAGES)
    told.trial("at-0", 10, params={"lr": 0.1})
    told.trial("kd-0", 3, cell=KD, state="crashed")
    told.propose("at-1")
    told.now += 5
    told.epoch("at-1", 0.9)
    again = Progress(lambda: told.now)
    for event in told.events:
        again.fold(event)
    for get in (
        lambda p: [(p.state_counts(c), p.updated_at(c), p.leader(c)) for c in (AT, KD)],
        lambda p: (p.num_ended, p.num_running, p.epochs_trained, p.describe_cache_savings()),
        lambda p: (p.epoch_rate(), p.estimate_time_left(GOAL, 2), p.stopwatch.elapsed_seconds),
    ):
        assert get(again) == get(told.progress)


seconds = st.lists(st.floats(0, 1e6), max_size=9)


@given(seconds, seconds, st.integers(1, 9))
def test_time_left_keeps_what_must_hold(pending, running, slots):
    left = estimate_seconds_left(pending, running, slots)
    rests = [*pending, *running]
    assert 0 <= max(rests, default=0) <= left <= sum(rests) * (1 + 1e-9)
    assert estimate_seconds_left(pending, running, slots + 1) <= left
    assert estimate_seconds_left([*pending, 1.0], running, slots) >= left


@given(st.lists(st.sampled_from(["finished", "stopped", "diverged"]), max_size=5))
def test_nothing_is_known_before_a_trial_has_ended_and_nothing_is_negative_then(states):
    told = Told()
    for number, state in enumerate(states):
        told.trial(f"at-{number}", 1.0 + number, state=state)
    left, _ = told.progress.estimate_time_left(Goal({AT: 3}), 2)
    assert left is None if not states else left >= 0
    assert (left == 0) == (len(states) >= 3)


def test_trials_that_end_early_do_not_stand_for_those_that_go_on():
    # Of four trials, two ended after their first epoch, and two run, after three epochs of ten.
    left = estimate_epochs_left([(1, True), (1, True), (3, False), (3, False)], 10)
    assert left[3] == 7.0
    assert left[0] == 1 + 0.5 * 9
    assert estimate_epochs_left([], 3) == [3.0, 2.0, 1.0, 0.0]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=9))
def test_the_epochs_left_are_at_most_those_that_there_are(trials):
    left = estimate_epochs_left(trials, 5)
    assert all(0 <= epochs <= 5 - epoch for epoch, epochs in enumerate(left))


@pytest.mark.parametrize("log", ["search", "confirmation"])
def test_the_time_left_of_recorded_sweeps_is_right_within_a_factor_of_one_and_a_half(log):
    folder = SweepFolder(Path(__file__).parents[3] / "results" / "reference" / "fashion-mnist")
    events = folder.load_events() if log == "search" else folder.load_confirm_events()
    goal = Goal(Counter(event.cell for event in events if isinstance(event, TrialProposed)))
    last = max(n for n, event in enumerate(events) if isinstance(event, TrialEnded))

    def fold_until(seconds):
        progress = Progress(lambda: 0.0)
        for event in events[: last + 1]:
            progress.fold(event)
            if progress.stopwatch.logged_seconds >= seconds:
                break
        return progress

    total = fold_until(math.inf).stopwatch.logged_seconds
    for share in (0.25, 0.5, 0.75):
        progress = fold_until(share * total)
        left, _ = progress.estimate_time_left(goal, slots=2)
        assert 1 / 1.5 < left / (total - progress.stopwatch.logged_seconds) < 1.5
