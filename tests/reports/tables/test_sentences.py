"""Sentences about comparisons, word for word, and their length."""

from itertools import product

import pytest

from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.sentences import (
    advise_next_step,
    describe_detectable_difference,
    describe_verdict,
    format_points,
)
from kdtune.reports.tables.statistics import Estimate, Verdict

PAIR = ("at", "fitnets")
MOST_WORDS = 25


def known(mean, half=1.0):
    """Return an estimate with this half width; it has no seed variance, so df is infinite."""
    variance = (half / 1.959964) ** 2
    parts = {"variance_seeds": 0.0, "variance_images": variance, "variance_search": 0.0}
    return Estimate(mean, 5, 1000, 4, 1, **parts, variance_residual=0.0)


@pytest.mark.parametrize(
    ("verdict", "mean", "half", "sentence"),
    [
        ("better_a", 1.234, 0.876, "AT is better than FitNets on R by 1.23 ± 0.88 points."),
        ("better_b", -0.87, 0.46, "FitNets is better than AT on R by 0.87 ± 0.46 points."),
        ("better_a", 2.04, 1.06, "AT is better than FitNets on R by 2.0 ± 1.1 points."),
        (
            "better_b",
            -0.3,
            0.15,
            "FitNets is better than AT on R by 0.30 ± 0.15 points, less than the 0.5 that matter.",
        ),
        (
            "leaning_a",
            1.2,
            1.1,
            "AT is ahead of FitNets on R by 1.2 ± 1.1 points, but not safely, since 3 students "
            "were compared.",
        ),
        (
            "leaning_b",
            -1.2,
            1.1,
            "FitNets is ahead of AT on R by 1.2 ± 1.1 points, but not safely, since 3 students "
            "were compared.",
        ),
        (
            "equal",
            -0.1,
            0.3,
            "AT and FitNets do equally well on R: a difference above 0.40 points is excluded.",
        ),
        (
            "unclear",
            0.7,
            1.5,
            "AT or FitNets on R: it cannot be said; AT minus FitNets is 0.7 ± 1.5 points.",
        ),
        (
            "unclear",
            -0.7,
            1.5,
            "AT or FitNets on R: it cannot be said; FitNets minus AT is 0.7 ± 1.5 points.",
        ),
    ],
)
def test_verdicts_in_words(verdict, mean, half, sentence):
    assert describe_verdict(verdict, PAIR, "R", 3, known(mean, half)) == sentence


@pytest.mark.parametrize(
    ("verdict", "mean", "half", "sentence"),
    [
        (
            "better_b",
            -0.8,
            0.6,
            "FitNets is better than AT on average over 2 students by 0.80 ± 0.60 points.",
        ),
        (
            "equal",
            0.1,
            0.3,
            "AT and FitNets do equally well on average over 2 students: a difference above 0.40 "
            "points is excluded.",
        ),
        (
            "unclear",
            -0.8,
            1.08,
            "AT or FitNets on average over 2 students: it cannot be said; FitNets minus AT is "
            "0.8 ± 1.1 points.",
        ),
    ],
)
def test_verdicts_on_all_models_in_words(verdict, mean, half, sentence):
    assert describe_verdict(verdict, PAIR, None, 2, known(mean, half)) == sentence


ESTIMATED = [v for v in Verdict if v not in ("not_confirmed", "unstable", "depends")]


@pytest.mark.parametrize(
    ("verdict", "model", "mean"), [*product(ESTIMATED, ["R", None], [0.1, -0.1, 12.0])]
)
def test_no_verdict_has_more_than_25_words(verdict, model, mean):
    pair = ("at_paper", "fitnets")  # "AT (paper)" has two words
    sentence = describe_verdict(verdict, pair, model, 12, known(mean, 0.15))
    assert len(sentence.split()) <= MOST_WORDS


def advise(step, number=None, settles=True, folder="results/x", difference=0.2):
    """Return the advice for a comparison whose next step is this one."""
    column = {"seeds": "more_seeds", "trials": "trials_needed", "images": "test_images_needed"}
    row = {
        "method_a": "at", "method_b": "fitnets", "seeds": 5, "difference_points": difference,
        "half_width_points": 0.9, "min_difference_points": 0.5, "next_step": step,
        "next_step_settles": settles,
    }  # fmt: skip
    if step:
        row[column[step]] = number
    [record] = COMPARISON.make_frame([row]).to_dict("records")
    return advise_next_step(record, folder)


def test_the_next_step_is_one_command():
    assert advise("seeds", 7) == (
        "A difference of 0.50 points would probably be settled by `kdtune confirm results/x "
        "--seeds 12`."
    )
    assert advise("trials", 80, difference=-0.8) == (
        "A difference of 0.80 points would probably be settled by a new sweep (`kdtune sweep ... "
        "--trials 80 --warm-start results/x`)."
    )
    assert advise("images", 5800) == (
        "A difference of 0.50 points would probably be settled by 5,800 test images."
    )
    assert advise("trials", 24, settles=False) == (
        "Nothing alone would settle it; begin with what limits it most: a new sweep (`kdtune "
        "sweep ... --trials 24 --warm-start results/x`)."
    )
    assert advise("seeds") == "It stays open: seeds limit it, and no step is left."
    assert advise(None) is None
    assert "`kdtune confirm 'my sweep' --seeds 6`" in advise("seeds", 1, folder="my sweep")


@pytest.mark.parametrize(
    ("step", "number", "settles"),
    [*product(["seeds", "trials", "images"], [None, 5800], [True, False])],
)
def test_no_advice_has_more_than_25_words(step, number, settles):
    assert len(advise(step, number, settles).split()) <= MOST_WORDS


def test_nothing_is_minus_zero():
    assert format_points(-0.004, 0.5) == "0.00"
    assert format_points(-0.04, 1.5) == "0.0"
    assert format_points(-0.06, 1.5) == "-0.1"


def test_what_can_be_seen_in_words():
    assert describe_detectable_difference(2000, 5, 1) == (
        "with 2,000 test images and 5 seeds no difference under 1.2 points can be seen on a "
        "student (at 75 % accuracy, after 40 trials a cell; fewer show less)"
    )
    assert describe_detectable_difference(10_000, 5, 3) == (
        "with 10,000 test images and 5 seeds no difference under 0.65 points can be seen on a "
        "student, none under 0.41 on average over 3 (at 75 % accuracy, after 40 trials a cell; "
        "fewer show less)"
    )
