"""Scores of settings with repeats, worked out by hand."""

import math

import pytest
from event_logs import cell_modelled, repeat_events, trial_events

from kdtune.log.settings_scores import SettingsScores

CELL = "at", "A"
FIRST, SECOND, THIRD = "at-A-000", "at-A-001", "at-A-002"


def trials(*accuracies, state="finished"):
    """Yield the events of trials of one epoch."""
    for number, accuracy in enumerate(accuracies):
        yield from trial_events(number, [accuracy], state)


def test_without_repeats_a_score_is_that_of_the_trial_and_the_earliest_of_equals_leads():
    scores = SettingsScores([*trials(0.5, 0.75, 0.75), *trial_events(3, [0.25, 0.5], "stopped")])
    assert scores.scores(CELL) == {FIRST: 0.5, SECOND: 0.75, THIRD: 0.75, "at-A-003": 0.5}
    assert scores.rank(CELL) == [SECOND, THIRD, FIRST, "at-A-003"]
    assert scores.repeat_sd(CELL) is None and scores.noise_sd(CELL) is None


def test_a_score_is_the_mean_over_the_trial_and_its_repeats():
    events = [
        *trials(0.75, 0.875),
        *repeat_events(2, 1, [0.5, 0.625], "finished"),
        *repeat_events(3, 1, [0.25, 0.25], "stopped"),  # by the budget: nobody knows its end
        *repeat_events(4, 1, [0.25], "diverged"),
        *repeat_events(5, 1, [0.25]),
    ]
    scores = SettingsScores(events)
    assert scores.scores(CELL) == {FIRST: 0.75, SECOND: 0.75}
    assert scores.rank(CELL) == [FIRST, SECOND]  # a repeat has no rank


def test_a_stopped_trial_counts_until_a_repeat_finishes():
    events = [*trials(0.5, state="stopped"), *repeat_events(1, 0, [0.75], "finished")]
    assert SettingsScores(events[:3]).scores(CELL) == {FIRST: 0.5}
    assert SettingsScores(events).scores(CELL) == {FIRST: 0.75}


@pytest.mark.parametrize("state", ["diverged", "crashed", None])
def test_trials_that_failed_or_run_have_no_score(state):
    assert SettingsScores(trials(0.5, state=state)).rank(CELL) == []


def test_a_model_ranks_what_it_has_estimated_before_all_others():
    events = [*trials(0.75, 0.5, 0.625), cell_modelled({THIRD: 0.6, SECOND: 0.55})]
    scores = SettingsScores(events)
    assert scores.rank(CELL) == [THIRD, SECOND, FIRST]
    assert scores.estimates(CELL) == {THIRD: 0.6, SECOND: 0.55}
    assert scores.noise_sd(CELL) == 0.01


def test_a_model_is_stale_once_a_trial_of_its_cell_is_proposed_or_has_ended():
    proposed, epoch, ended = trial_events(1, [0.5], "finished")
    model, events = cell_modelled({FIRST: 0.7}), [*trials(0.75), proposed, epoch]
    scores = SettingsScores([*events, model])
    scores.fold(ended)
    assert scores.estimates(CELL) == {}
    scores = SettingsScores([*trials(0.75), model])
    for event in trial_events(0, [0.5], "finished", method="student"):  # of another cell
        scores.fold(event)
    assert scores.estimates(CELL) == {FIRST: 0.7}
    scores.fold(proposed)
    assert scores.estimates(CELL) == {} and scores.noise_sd(CELL) is None


def test_the_noise_is_pooled_within_settings():
    events = [
        *trials(0.70, 0.80, 0.10),
        *repeat_events(3, 0, [0.72], "finished"),
        *repeat_events(4, 1, [0.80], "finished"),
        *repeat_events(5, 1, [0.83], "finished"),
    ]
    # Around 0.71: 2 · 0.01²; around 0.81: 2 · 0.01² + 0.02²; of 5 runs with 2 means.
    sd = math.sqrt((2e-4 + 6e-4) / 3)
    assert SettingsScores(events).repeat_sd(CELL) == pytest.approx(sd)
    assert SettingsScores(events).noise_sd(CELL) == pytest.approx(sd)
