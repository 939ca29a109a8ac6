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
        ("better_a", 2.04, 1.06, "AT is better than FitNets on R by 2.0 ± 1.1 points."),
        (
            "better_b",
            -0.3,
            0.15,
            "FitNets is better than AT on R by 0.30 ± 0.15 points, less than the 0.5 that matter.",
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


ESTIMATED = [v for v in Verdict if v not in ("not_confirmed", "unstable", "depends")]


def test_no_verdict_has_more_than_25_words():
    pair = ("at_paper", "fitnets")  # "AT (paper)" has two words
    for verdict, model, mean in product(ESTIMATED, ["R", None], [0.1, -0.1, 12.0]):
        sentence = describe_verdict(verdict, pair, model, 12, known(mean, 0.15))
        assert len(sentence.split()) <= MOST_WORDS, sentence


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


def test_no_advice_has_more_than_25_words():
    for given in product(["seeds", "trials", "images"], [None, 5800], [True, False]):
        assert len(advise(*given).split()) <= MOST_WORDS, given


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
