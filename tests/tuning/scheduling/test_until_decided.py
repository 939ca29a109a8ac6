"""Rounds of `until_decided`: which questions get seeds, and which searches get trials."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sweeps import Sweep
from sweep_folders import write_sweep_folder
from sweep_harness import sweep_config

from kdtune.reports.tables.comparison import CellResult, comparison_table
from kdtune.reports.tables.statistics import Estimate
from kdtune.tuning.scheduling.until_decided import (
    Question,
    add_seeds,
    add_trials,
    find_questions,
    list_questions,
)

PAIR = (("at", "A"), ("fitnets", "A"))


def estimate(mean, seeds=5, variance_seeds=0.09, variance_images=0.04, variance_search=0.0):
    variances = variance_seeds, variance_images, variance_search, 0.0
    return Estimate(mean, seeds, 1000, 0, 0, *variances)


def question(mean=0.0, is_open=True, margin=None, name="q", cells=PAIR, **fields):
    return Question(name, cells, estimate(mean, **fields), is_open, margin)


def test_an_open_question_gets_the_seeds_of_the_next_look_in_all_its_cells():
    added = add_seeds([question(0.6)], 0.5)
    assert (added.cells, added.seeds, added.reason) == (PAIR, 10, "open: q")
    assert add_seeds([question(0.6, seeds=10)], 0.5).seeds == 20


def test_no_seeds_for_what_is_answered_or_cannot_be_or_has_had_its_last_look():
    answered, last = question(0.6, is_open=False), question(0.6, seeds=20)
    hopeless = question(0.2, variance_images=4.0)  # images, not seeds, are too few
    assert add_seeds([answered, last, hopeless], 0.5) is None


def test_the_questions_with_the_fewest_seeds_come_first():
    kd = (("kd", "A"), ("at", "A"))
    questions = [question(0.6, seeds=10), question(0.6, name="other", cells=kd)]
    added = add_seeds(questions, 0.5)
    assert (added.cells, added.seeds, added.reason) == (kd, 10, "open: other")


def test_runs_that_crashed_are_not_waited_for():
    """With nine of ten seeds the next look is the one that the cells have had."""
    lacking = question(0.6, seeds=9)
    assert add_seeds([lacking], 0.5, dict.fromkeys(PAIR, 9)).seeds == 10
    assert add_seeds([lacking], 0.5, dict.fromkeys(PAIR, 10)) is None


def test_a_student_to_ship_is_left_out_only_beyond_its_margin():
    near, far = (question(mean, margin=0.5) for mean in (0.1, 1.6))
    assert near.chance_of_answer(20, 0.5) < 0.1 < far.chance_of_answer(20, 0.5)


def results_of(**accuracies):
    """Return results of methods on one student, with 3 seeds that are looked at."""
    rng, images = np.random.default_rng(0), 2_000
    hard = rng.random(images)
    runs = {m: hard + rng.normal(0, 0.1, (3, images)) < a for m, a in accuracies.items()}
    return {
        (m, "A"): CellResult(dict(enumerate(correct, start=1)), 3, 0, 0.0, looks=(3,))
        for m, correct in runs.items()
    }


def test_questions_are_the_first_pair_and_the_best_on_validation_against_each_other():
    results = results_of(at=0.80, fitnets=0.81, kd=0.60)
    ranked = [("fitnets", "A"), ("kd", "A"), ("at", "A")]
    method, kd, at = list_questions(comparison_table(results), ranked, results)
    assert (method.name, method.cells, method.margin) == ("at against fitnets", PAIR, None)
    assert (kd.name, kd.cells, kd.margin) == ("kd-A to ship", (ranked[0], ranked[1]), 0.5)
    assert (method.is_open, kd.is_open, at.is_open) == (True, False, True)
    assert at.difference.mean == pytest.approx(-method.difference.mean)
    assert at.difference.level == pytest.approx(method.difference.level)  # one-sided, of two


def test_only_methods_are_a_question_without_a_best_student():
    results = results_of(at=0.80, fitnets=0.60)
    [method] = list_questions(comparison_table(results), [], results)
    assert not method.is_open


def test_questions_are_judged_by_the_difference_that_matters_now(tmp_path):
    sweep = Sweep()
    for method in ("at", "fitnets"):
        sweep.search(method, "A", 0.7).confirm(method, "A", 0, [0.7, 0.72, 0.74])
    folder = write_sweep_folder(tmp_path / "s", sweep, min_difference=30.0)  # in its log
    assert [find_questions(folder, points)[0].is_open for points in (30.0, 0.2)] == [False, True]


@pytest.mark.parametrize("mean", [0.0, 0.4, 0.9])
def test_the_chance_is_that_of_simulated_seeds(mean):
    """Worked out by another way: true differences from the posterior, then all seeds anew."""
    rng, now = np.random.default_rng(3), estimate(mean)
    shared_sd, seed_sd = math.sqrt(0.04), math.sqrt(0.09 * 5)
    draws = 40_000
    # given the first five seeds, the mean of twenty moves by the fifteen others alone
    true = mean + rng.normal(0, math.sqrt(now.variance), draws)
    first = rng.normal(0, seed_sd / math.sqrt(5), draws)
    shared = rng.normal(0, shared_sd, draws)
    observed = true + shared + first
    others = true + shared + rng.normal(0, seed_sd / math.sqrt(15), draws)
    near = np.abs(observed - mean) < 0.05  # of all draws, those that look like ours
    later = 0.25 * observed[near] + 0.75 * others[near]
    half_width = replace(now, seeds=20, variance_seeds=0.09 / 4).half_width
    found = np.abs(later) > half_width
    expected = question(mean).chance_of_answer(20, min_difference=0.01)
    assert found.mean() == pytest.approx(expected, abs=0.04)


@given(mean=st.floats(-3, 3), seeds=st.integers(6, 40), margin=st.none() | st.floats(0.1, 2))
def test_a_chance_is_between_0_and_1(mean, seeds, margin):
    assert 0 <= question(mean, margin=margin).chance_of_answer(seeds, 0.5) <= 1 + 1e-9


def searched(luck, trials=10, methods=("at", "fitnets"), test_images=10_000, **settings):
    sweep = sweep_config(methods=methods, models=("A",), trials=trials, **settings)
    cells = [(method, "A") for method in methods]
    counts, lucks = dict.fromkeys(cells, trials), dict.fromkeys(cells, luck)
    return add_trials(sweep, counts, lucks, test_images, dict.fromkeys(cells, 0.75))


def test_trials_are_added_to_both_searches_that_luck_decides():
    added = searched(luck=0.8)
    assert added.cells == PAIR and 10 < added.trials <= 30
    assert searched(luck=0.05) is None
    assert searched(luck=50.0).trials == 30  # three times the plan at most


def test_a_search_that_ended_before_its_limit_gets_no_trials():
    sweep = sweep_config(methods=PAIR[0][0] + "," + PAIR[1][0], models="A", trials=10)
    lucks, counts = dict.fromkeys(PAIR, 0.8), {PAIR[0]: 10, PAIR[1]: 7}
    inputs = sweep, counts, lucks, 10_000
    scores = dict.fromkeys(PAIR, 0.75)
    assert add_trials(*inputs, scores) is not None
    assert add_trials(*inputs, scores, limits=dict.fromkeys(PAIR, 10)) is None


@pytest.mark.parametrize("scores", [[0.1, 0.4, 0.9], ["crashed"] * 3])
def test_a_pair_with_a_cell_whose_trials_all_failed_gets_no_trials(scores):
    sweep = sweep_config(methods=("at", "fitnets"), models=("A",), trials=3)
    table = Sweep().search("at", "A", *scores).search("fitnets", "A", *["crashed"] * 3).leaderboard
    trials, luck = table["trials_started"].to_dict(), table["search_luck_points"].to_dict()
    assert add_trials(sweep, trials, luck, 10_000, table["search_best_percent"] / 100) is None


def test_no_trials_where_images_are_what_lacks_or_there_is_no_pair():
    assert searched(luck=0.8, test_images=100) is None
    assert searched(luck=0.8, methods=("at",)) is None
    assert searched(luck=0.8, trials=None, total_epochs=100) is None
