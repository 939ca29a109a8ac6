"""The intervals and the decision rule, against loops, draws and what is worked out."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from kdtune.reports.page.sections.reading import FORMULAS
from kdtune.reports.tables.statistics import (
    Estimate,
    accuracy_interval,
    adjust_holm,
    bootstrap_best_sd,
    decide_verdict,
    estimate_mean,
    expected_error,
    wilson_interval,
)

NORMAL = norm.ppf(0.975)


def known(mean, half=1.0, share_search=0.0, **others):
    """Return an estimate with this half width; it has no seed variance, so df is infinite."""
    variance = (half / NORMAL) ** 2
    fields = dict(
        seeds=5, images=1000, seeds_won=4, seeds_lost=1, variance_seeds=0.0, variance_residual=0.0
    )
    fields |= dict(
        variance_images=(1 - share_search) * variance, variance_search=share_search * variance
    )
    return Estimate(mean=mean, **fields | others)


def without_pseudo_images(estimate):
    images = estimate.variance_images - estimate.variance_pseudo
    return replace(estimate, variance_images=images, variance_pseudo=0.0)


def by_loops(x):
    """Return the mean squares of images, seeds and the rest: two-way ANOVA, no replications."""
    n, seeds = len(x), len(x[0])
    mean = sum(sum(row) for row in x) / (n * seeds)
    of_image = [sum(row) / seeds for row in x]
    of_seed = [sum(row[s] for row in x) / n for s in range(seeds)]
    images = sum(seeds * (a - mean) ** 2 for a in of_image) / (n - 1)
    seed = sum(n * (b - mean) ** 2 for b in of_seed) / (seeds - 1)
    rest = 0.0
    for i in range(n):
        for s in range(seeds):
            rest += (x[i][s] - of_image[i] - of_seed[s] + mean) ** 2
    return mean, images, seed, rest / ((n - 1) * (seeds - 1))


tables = st.tuples(st.integers(2, 12), st.integers(2, 6)).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([-100.0, 0.0, 100.0]), min_size=size[1], max_size=size[1]),
        min_size=size[0],
        max_size=size[0],
    )
)


@given(tables, st.floats(0, 2))
def test_the_parts_are_those_of_a_two_way_analysis_of_variance(x, v_search):
    n, seeds = len(x), len(x[0])
    mean, images, seed, rest = by_loops(x)
    found = estimate_mean(np.array(x), v_search)
    assert (found.seeds, found.images) == (seeds, n)
    assert found.mean == pytest.approx(mean)
    pseudo = 3 * (100 / (n + 3)) ** 2
    v_images = max(images - rest, 0) / (n * seeds) + pseudo
    assert found.variance_seeds == pytest.approx(max(seed, rest) / (n * seeds), abs=1e-9)
    assert found.variance_images == pytest.approx(v_images, abs=1e-9)
    assert found.variance_pseudo == pytest.approx(pseudo)
    assert found.variance_residual == pytest.approx(rest / (n * seeds), abs=1e-9)
    assert found.variance == found.variance_seeds + found.variance_images + v_search
    columns = [sum(row[s] for row in x) for s in range(seeds)]
    assert found.seeds_won == sum(column > 0 for column in columns)
    assert found.seeds_lost == sum(column < 0 for column in columns)


def by_formulas(part, given):
    """Return the values by name of a part of the formulas on a report's page, read as Python."""
    functions = dict(max=max, sum=np.sum, sqrt=math.sqrt, t=t.ppf, var=lambda x: x.var(ddof=1))
    values = functions | given
    for name, formula in re.findall(r"^(\S+) {2,}([^;\n]+)", part, re.MULTILINE):
        if name not in given:
            values[name] = eval(formula.replace("^", "**"), {}, values)
    return values


@pytest.mark.parametrize("grouped", [False, True])
def test_the_formulas_of_the_page_give_the_intervals(grouped):
    random = np.random.default_rng(5)
    of_seeds, of_runs = random.random((2, 1, 4)), random.random((2, 30, 4))
    right = 100.0 * (random.random((2, 30, 1)) + 0.2 * of_runs + of_seeds < 1.2)
    groups = [image // 2 for image in range(30)] if grouped else None
    shared, of_difference, of_accuracy = FORMULAS.values()
    for x in (right[0] - right[1], right[0]):
        found = replace(estimate_mean(x, 2.0, groups), level=0.02)
        if grouped:
            x = x.reshape(15, 2, 4).mean(axis=1)
        given = dict(x=x, n=len(x), S=4, v_search=2.0, level=0.02)
        given |= dict(m=x.mean(), a_i=x.mean(axis=1, keepdims=True), b_s=x.mean(axis=0))
        values = by_formulas(shared, given)
        assert found.variance_residual < found.variance_seeds
        difference = by_formulas(of_difference, values)
        assert (difference["V"], difference["df"]) == pytest.approx((found.variance, found.df))
        assert difference["±"] == pytest.approx(found.half_width)
    accuracy = by_formulas(of_accuracy, values)
    interval = accuracy_interval(right[0], groups)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(interval)


def test_seeds_that_agree_leave_infinite_degrees_of_freedom():
    found = estimate_mean(np.repeat([[100.0], [0.0], [0.0], [-100.0]], 3, axis=1))
    assert found.variance_seeds == 0
    assert found.df == math.inf
    assert found.half_width == pytest.approx(NORMAL * 100 * math.sqrt((2 / 3) / 4 + 3 / 7**2))


@pytest.mark.parametrize(("images", "width"), [(2, 67.9), (12, 22.6), (10_000, 0.034)])
def test_where_nothing_differs_the_width_is_that_of_the_rule_of_three(images, width):
    found = estimate_mean(np.zeros((images, 3)))
    assert (found.mean, found.p_value) == (0, 1)
    assert found.half_width == pytest.approx(width, rel=0.01)
    assert decide_verdict(found, 1.0) == ("equal" if images == 10_000 else "unclear")


def test_pseudo_images_are_negligible_among_many():
    x = 100.0 * np.random.default_rng(0).integers(-1, 2, (10_000, 1)) * (np.arange(5) < 5)
    x[np.random.default_rng(1).random(10_000) > 0.05] = 0  # the methods differ on 3 in 100
    found = estimate_mean(x)
    assert found.half_width / without_pseudo_images(found).half_width < 1.01


def test_seeds_that_agree_by_chance_do_not_close_the_interval():
    x = 100.0 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]] * 3)  # three equal means
    found = estimate_mean(x)
    assert found.variance_seeds == found.variance_residual > 0
    assert found.df == math.inf  # the residual is known from all images


@pytest.mark.parametrize("images", [12, 40])
@pytest.mark.parametrize("wins", [0.02, 0.1, 0.25])
def test_few_images_with_few_differences_are_covered(images, wins):
    random, covered = np.random.default_rng(2), 0
    for _ in range(400):
        x = np.repeat(100.0 * (random.random((images, 1)) < wins), 3, axis=1)
        found = estimate_mean(x)
        covered += found.low <= 100 * wins <= found.high
    assert covered >= 0.93 * 400


def test_an_accuracy_where_all_are_right_is_wilsons():
    expected = [100 * end for end in wilson_interval(12, 12)]
    assert accuracy_interval(np.full((12, 3), 100.0)) == pytest.approx(expected)
    assert expected == pytest.approx([75.75, 100], abs=0.01)
    assert accuracy_interval(np.zeros((12, 3))) == pytest.approx((0, 100 - expected[0]))


def test_an_accuracy_of_groups_is_that_of_so_many_images():
    groups = [i // 5 for i in range(60)]
    all_right = np.full((60, 3), 100.0)
    expected = [100 * end for end in wilson_interval(12, 12)]
    assert accuracy_interval(all_right, groups) == pytest.approx(expected)


def test_an_accuracy_of_many_images_has_the_interval_of_its_variance():
    random = np.random.default_rng(0)
    x = 100.0 * (random.random((4000, 1)) + 0.2 * random.random((4000, 5)) < 0.8)
    low, high = accuracy_interval(x)
    found = estimate_mean(x)
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.02)


@pytest.mark.parametrize(("images", "accuracy"), [(12, 0.95), (50, 0.99), (300, 0.8)])
def test_accuracies_of_new_images_and_seeds_are_covered(images, accuracy):
    random, covered = np.random.default_rng(3), 0
    limit = norm.ppf(accuracy) * math.sqrt(1 + 0.7**2 + 0.05**2)
    for _ in range(400):
        image, seed = random.standard_normal((images, 1)), random.standard_normal(3)
        run = random.standard_normal((images, 3))
        low, high = accuracy_interval(100.0 * (image + 0.7 * run + 0.05 * seed < limit))
        covered += low <= 100 * accuracy <= high
    assert covered >= 0.93 * 400


@given(tables, st.floats(0.01, 2))
def test_p_and_the_interval_say_the_same(x, v_search):
    found = estimate_mean(np.array(x), v_search)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


@given(tables)
def test_swapping_the_sides_flips_the_signs(x):
    found, other = estimate_mean(np.array(x)), estimate_mean(-np.array(x))
    assert other.mean == -found.mean
    assert other.half_width == pytest.approx(found.half_width)
    assert other.p_value == pytest.approx(found.p_value)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    assert found.swapped.swapped == found
    swapped = found.swapped
    assert (swapped.mean, swapped.seeds_won) == (other.mean, other.seeds_won)
    assert swapped.seeds_lost == other.seeds_lost


@given(tables, st.data())
def test_groups_take_the_place_of_images(x, data):
    n, seeds = len(x), len(x[0])
    patients = st.sampled_from(["p1", "p2", "p3"])
    groups = ["p1", "p2", *data.draw(st.lists(patients, min_size=n - 2, max_size=n - 2))]
    names = sorted(set(groups))
    sums = [
        [
            len(names) / n * sum(x[i][s] for i in range(n) if groups[i] == name)
            for s in range(seeds)
        ]
        for name in names
    ]
    mean, images, seed, rest = by_loops(sums)
    found = estimate_mean(np.array(x), 0.0, groups)
    assert found.images == len(names)
    assert found.mean == pytest.approx(mean)
    assert found.mean == pytest.approx(np.mean(x))
    size = len(names) * seeds
    pseudo = 3 * (100 / (len(names) + 3)) ** 2
    v_images = max(images - rest, 0) / size + pseudo
    assert found.variance_seeds == pytest.approx(max(seed, rest) / size, abs=1e-9)
    assert found.variance_images == pytest.approx(v_images, abs=1e-9)


@pytest.mark.parametrize("count", [1, 4, 40])
def test_luck_is_the_spread_of_the_best_of_a_repeated_search(count):
    random = np.random.default_rng(3)
    values = random.normal(75, 1, count)
    best = random.choice(values, (20_000, count)).max(axis=1)
    assert bootstrap_best_sd(values) == pytest.approx(best.std(), rel=0.02)
    assert bootstrap_best_sd(values / 100) == pytest.approx(bootstrap_best_sd(values) / 100)


def test_luck_without_a_search_is_zero():
    assert (
        bootstrap_best_sd([]) == bootstrap_best_sd([75.0]) == bootstrap_best_sd([75.0, 75.0]) == 0
    )


def test_holm_by_hand():
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.2]) == pytest.approx([0.2])
    assert adjust_holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert adjust_holm([]).tolist() == []


def test_holm_counts_p_values_in_units_of_their_levels():
    # 0.02 of 0.04 is more than 0.012 of 0.02; twice the second is above its level, too.
    assert adjust_holm([0.02, 0.012], [0.04, 0.02]) == pytest.approx([0.04, 0.02])
    assert adjust_holm([0.001, 0.004], [0.05, 0.01]) == pytest.approx([0.002, 0.004])
    assert adjust_holm([0.3, 0.9], [0.02, 0.02]).tolist() == adjust_holm([0.3, 0.9]).tolist()


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_monotone_and_never_below_p(p_values):
    adjusted = adjust_holm(p_values)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert (adjusted >= p_values).all()
    assert (adjusted <= 1).all()
    m, ascending = len(p_values), sorted(p_values)
    for place, index in enumerate(order):
        largest = max((m - q) * ascending[q] for q in range(place + 1))
        assert adjusted[index] == pytest.approx(min(1, largest))


@pytest.mark.parametrize(
    ("found", "p_value_holm", "verdict"),
    [
        (known(1.2), 0.03, "better_a"),
        (known(-1.2), 0.03, "better_b"),
        (known(1.2), 0.06, "leaning_a"),
        (known(-1.2), 0.06, "leaning_b"),
        (known(0.1, 0.3), 0.5, "equal"),
        (known(0.3, 0.2), 0.01, "better_a"),  # a winner, though it does not matter
        (known(0.3, 0.2), 0.06, "leaning_a"),
        (known(0.25, 0.3), 0.3, "unclear"),
        (known(-0.25, 0.3), 0.3, "unclear"),
        (known(0.9), 0.2, "unclear"),
        (known(0.0, 0.0), 1.0, "equal"),
    ],
)
def test_the_first_rule_that_holds_decides(found, p_value_holm, verdict):
    assert decide_verdict(found, p_value_holm) == verdict


def test_what_matters_can_be_set():
    assert decide_verdict(known(0.4, 0.9), 0.4, min_difference=0.5) == "unclear"
    assert decide_verdict(known(0.4, 0.9), 0.4, min_difference=1.5) == "equal"


@pytest.mark.parametrize(
    ("test_images", "of_specification"),
    [
        (500, [(2.8, 1.8), (2.4, 1.6), (2.1, 1.4)]),
        (2_000, [(1.5, 0.9), (1.2, 0.8), (1.1, 0.7)]),
        (10_000, [(0.7, 0.44), (0.6, 0.40), (0.5, 0.36)]),
    ],
)
def test_what_can_be_seen_is_near_another_simulation(test_images, of_specification):
    for seeds, widths in zip((3, 5, 10), of_specification, strict=True):
        within = 0.25 if seeds == 3 else 0.11  # there the residual was as uncertain as the seeds
        errors = [expected_error(test_images, seeds, models) for models in (1, 3)]
        alone, together = map(without_pseudo_images, errors)
        assert (alone.half_width, together.half_width) == pytest.approx(widths, abs=within)
        surer = without_pseudo_images(expected_error(test_images, seeds, 1, 0.92))
        assert surer.half_width / alone.half_width == pytest.approx(0.7, abs=0.12)


def no_difference(random, images, seeds):
    """Return the difference of two equally good methods; hard images are hard for both."""
    hard = random.standard_normal((images, 1))
    own = 0.5 * random.standard_normal((2, images, 1))
    run = 0.7 * random.standard_normal((2, images, seeds))
    luck = 0.01 * random.standard_normal((2, 1, seeds))
    a, b = hard + own + run + luck < 0.9
    return 100.0 * a - 100.0 * b


def decided(repeats, images, seeds, copied=0, grouped=False):
    """Return the share of repeats that name a winner where there is none."""
    random = np.random.default_rng(11)
    places = np.r_[np.arange(images), np.tile(np.arange(copied), 4)]
    winners = 0
    for _ in range(repeats):
        x = no_difference(random, images, seeds)[places]
        found = estimate_mean(x, 0.0, places.tolist() if grouped else None)
        winners += decide_verdict(found, found.p_value).startswith("better")
    return winners / repeats


def test_false_alarms_are_as_rare_as_promised():
    assert 0.03 <= decided(600, 1000, 5) <= 0.08


def test_copies_of_images_raise_false_alarms_unless_they_are_groups():
    assert decided(400, 300, 5, copied=100) > 0.08
    assert 0.03 <= decided(400, 300, 5, copied=100, grouped=True) <= 0.08
