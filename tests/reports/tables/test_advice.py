"""Advice on open comparisons, against a direct search and what is worked out by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from kdtune.reports.tables.advice import find_needed_numbers, limited_by, next_step_columns
from kdtune.reports.tables.statistics import Estimate


def make_estimate(mean=0.0, seeds=5, of_seeds=0.0, images=0.0, search=0.0, residual=0.0, pseudo=0):
    """Return an estimate from 1,000 images; without variance of seeds its df is infinite."""
    return Estimate(mean, seeds, 1000, 4, 1, of_seeds, images, search, residual, pseudo)


def needed(step, found, target, images=1000, trials=0):
    return find_needed_numbers(found, images, trials, target)[step]


def need(v_seeds, residual, others, seeds):
    """Return the difference that is found with a chance of 80 %."""
    variance, uncertain = v_seeds + others, v_seeds**2 - residual**2
    df = (seeds - 1) * variance**2 / uncertain if uncertain > 0 else math.inf
    return (t.ppf(0.975, df) + norm.ppf(0.8)) * math.sqrt(variance)


parts = st.sampled_from([0.0, 0.001, 0.01, 0.04, 0.1, 0.4, 1.0])


@given(st.integers(3, 20), parts, parts, parts, parts, st.floats(0.1, 2))
def test_seeds_are_those_that_a_direct_search_finds(seeds, of_seeds, images, search, rest, target):
    rest = min(rest, of_seeds)
    found = make_estimate(0, seeds, of_seeds, images, search, rest)
    enough = [
        n - seeds
        for n in range(seeds + 1, 21)
        if need(of_seeds * seeds / n, rest * seeds / n, images + search, n) <= target
    ]
    assert needed("seeds", found, target) == (enough[0] if enough else None)


def test_seeds_by_hand():
    # Of 5 + 7 seeds: (2.201 + 0.842) · √(0.06 · 5 / 12) = 0.481; of 5 + 6: 0.507.
    assert needed("seeds", make_estimate(of_seeds=0.06), 0.5) == 7
    # The last planned look has 20 seeds.
    assert needed("seeds", make_estimate(seeds=19, of_seeds=0.03), 0.5) == 1
    assert needed("seeds", make_estimate(seeds=20, of_seeds=0.04), 0.1) is None


def test_images_by_hand():
    found = make_estimate(images=0.3)
    # 2.8016² · 0.3 ≤ 0.5² from 9.42 times the images on: 1,000, 1,300, 1,700, 2,200, 2,800, ...
    assert needed("images", found, 0.5) == 11_000
    # What is no residual, or search luck, stays.
    assert needed("images", make_estimate(of_seeds=0.3), 0.5) is None
    residual = make_estimate(of_seeds=0.3, residual=0.3)
    assert needed("images", residual, 0.5) == 11_000
    assert needed("images", make_estimate(search=0.3), 0.5) is None


def test_pseudo_images_vanish_with_the_square_of_the_images():
    nothing = make_estimate(images=3 * (100 / 15) ** 2, pseudo=3 * (100 / 15) ** 2)
    nothing = replace(nothing, images=12)
    # 2.8016 · √3 · 100 / (n + 3) ≤ 0.5 from 968 images on.
    assert 968 <= needed("images", nothing, 0.5, images=12) <= 968 * 1.3
    assert nothing.with_more_images(10).variance == pytest.approx(3 * (100 / 123) ** 2)


def test_trials_by_hand():
    found = make_estimate(images=0.02, search=0.05)
    # 0.02 + 0.05 · (B / B')² ≤ (0.5 / 2.8016)² = 0.03185 from B' = 2.054 · B on.
    assert needed("trials", found, 0.5, trials=40) == 99  # after 50, 63 and 79
    assert needed("trials", found, 0.5, trials=0) is None
    assert needed("trials", make_estimate(images=0.02), 0.5, trials=40) is None
    assert needed("trials", make_estimate(images=0.04, search=0.05), 0.5, trials=40) is None


@pytest.mark.parametrize(
    ("part", "limit"), [("of_seeds", "seeds"), ("images", "images"), ("search", "search")]
)
def test_the_largest_part_is_the_limit(part, limit):
    fields = {"of_seeds": 0.1, "images": 0.1, "search": 0.1} | {part: 0.2}
    assert limited_by(make_estimate(**fields)) == limit


def step(found, trials=40):
    return next_step_columns(found, 1000, trials, 0.5)


def test_the_next_step_is_the_cheapest_that_settles_it_alone():
    seeds = step(make_estimate(of_seeds=0.04, images=0.005, search=0.005))
    assert (seeds["next_step"], seeds["next_step_settles"]) == ("seeds", True)
    trials = step(make_estimate(images=0.02, search=0.05))
    assert (trials["next_step"], trials["next_step_settles"]) == ("trials", True)
    images = step(make_estimate(images=0.3))
    assert (images["next_step"], images["test_images_needed"]) == ("images", 11_000)
    assert images["more_seeds"] is images["trials_needed"] is None


@pytest.mark.parametrize(
    ("part", "name", "column", "number"),
    [
        ("of_seeds", "seeds", "more_seeds", 5),
        ("search", "trials", "trials_needed", 80),
        ("images", "images", "test_images_needed", 2000),
    ],
)
def test_if_nothing_settles_it_alone_the_limit_is_halved_first(part, name, column, number):
    found = make_estimate(**{"of_seeds": 1.0, "images": 1.0, "search": 1.0} | {part: 2.0})
    columns = step(found)
    assert (columns["next_step"], columns["next_step_settles"]) == (name, False)
    assert columns[column] == number
    numbers = {columns[c] for c in ("more_seeds", "trials_needed", "test_images_needed")}
    assert numbers == {number, None}


def test_after_the_last_look_no_seed_is_left():
    found = make_estimate(seeds=20, of_seeds=2.0, images=1.0, search=1.0)
    assert step(found)["next_step"] == "seeds"
    assert step(found)["more_seeds"] is None
