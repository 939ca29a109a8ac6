"""The interval, the decision rule and the advice, against loops, draws and what is worked out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from kdtune.reports.tables.sentences import (
    advise_next_step,
    describe_detectable_difference,
    describe_verdict,
    format_points,
)
from kdtune.reports.tables.statistics import (
    Estimate,
    adjust_holm,
    bootstrap_best_sd,
    decide_verdict,
    estimate_mean,
    expected_error,
    late_gain,
    limited_by,
    more_seeds_needed,
    needed_test_images,
    search_luck,
)

NORMAL = norm.ppf(0.975)
PAIR = ("at", "fitnets")


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
    assert found.variance_seeds == pytest.approx(seed / (n * seeds), abs=1e-9)
    assert found.variance_images == pytest.approx(max(images - rest, 0) / (n * seeds), abs=1e-9)
    assert found.variance_residual == pytest.approx(rest / (n * seeds), abs=1e-9)
    assert found.variance == found.variance_seeds + found.variance_images + v_search
    columns = [sum(row[s] for row in x) for s in range(seeds)]
    assert found.seeds_won == sum(column > 0 for column in columns)
    assert found.seeds_lost == sum(column < 0 for column in columns)


def test_an_interval_by_hand():
    found = estimate_mean(
        np.array([[100, 0, 100], [0, 0, 100], [0, -100, 0], [100, 100, 100.0]]), 4.0
    )
    # Seeds have means 50, 0, 75; images 66.7, 33.3, -33.3, 100.
    v_seeds = 4 * np.var([50, 0, 75], ddof=1) / 12
    assert found.variance_seeds == pytest.approx(v_seeds)
    assert found.df == pytest.approx(found.variance**2 / (v_seeds**2 / 2))
    root = math.sqrt(found.variance)
    assert found.half_width == pytest.approx(t.ppf(0.975, found.df) * root)
    assert found.p_value == pytest.approx(2 * t.sf(125 / 3 / root, found.df))
    assert (found.low + found.high) / 2 == pytest.approx(125 / 3)
    assert found.high - found.low == pytest.approx(2 * found.half_width)


def test_seeds_that_agree_leave_infinite_degrees_of_freedom():
    found = estimate_mean(np.repeat([[100.0], [0.0], [0.0], [-100.0]], 3, axis=1))
    assert found.variance_seeds == 0
    assert found.df == math.inf
    assert found.half_width == pytest.approx(NORMAL * 100 * math.sqrt((2 / 3) / 4))


def test_where_nothing_varies_the_width_is_zero_and_p_one():
    found = estimate_mean(np.zeros((5, 3)))
    assert (found.mean, found.half_width, found.p_value) == (0, 0, 1)


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
    assert found.variance_seeds == pytest.approx(seed / size, abs=1e-9)
    assert found.variance_images == pytest.approx(max(images - rest, 0) / size, abs=1e-9)


def test_groups_of_one_image_change_nothing():
    x = 100 * np.random.default_rng(0).integers(-1, 2, (20, 4)).astype(float)
    apart = [f"patient {i:02d}" for i in range(20)]
    assert estimate_mean(x, 0.1, apart) == estimate_mean(x, 0.1)


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


def test_the_late_gain_is_what_the_second_half_added():
    nothing = math.nan
    assert late_gain([70, 72, 71, 75]) == 3
    assert late_gain([70, 75, 71, 72, 60]) == 0
    assert late_gain([nothing, 70, 71, nothing]) == 1
    assert math.isnan(late_gain([70])) and math.isnan(late_gain([nothing, 70]))


def test_a_search_that_still_improves_has_its_late_gain_as_luck():
    settled, rising = [75.0, 70.0, 74.9, 70.0], [30.0, 32.9, 39.4, 39.8]
    assert search_luck(settled) == bootstrap_best_sd(settled)
    assert search_luck(rising) == pytest.approx(math.hypot(bootstrap_best_sd(rising), 6.9))
    assert search_luck(rising, seed_sd=9.3) == bootstrap_best_sd(rising)  # 0.75 · 9.3 is above 6.9
    assert search_luck([*rising, math.nan]) == search_luck(rising)
    noisy = [70.0, 60.0, 71.0, 50.0]
    assert late_gain(noisy) < 2 * bootstrap_best_sd(noisy)
    assert search_luck(noisy) == bootstrap_best_sd(noisy)


def test_holm_by_hand():
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.2]) == pytest.approx([0.2])
    assert adjust_holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert adjust_holm([]).tolist() == []


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


def need(variance, df):
    return (t.ppf(0.975, df) + norm.ppf(0.8)) * math.sqrt(variance)


def seeds_by_search(found, target):
    for more in range(1, 21):
        seeds = found.seeds + more
        v_seeds = found.variance_seeds * found.seeds / seeds
        variance = v_seeds + found.variance_images + found.variance_search
        df = variance**2 / (v_seeds**2 / (seeds - 1)) if v_seeds else math.inf
        if need(variance, df) <= target:
            return more
    return None


def images_by_search(found, n, target):
    for q in range(1, 21):
        r = min(found.variance_seeds, found.variance_residual)
        v_seeds = found.variance_seeds - r + r / 1.25**q
        variance = v_seeds + found.variance_images / 1.25**q + found.variance_search
        df = variance**2 / (v_seeds**2 / (found.seeds - 1)) if v_seeds else math.inf
        if need(variance, df) <= target:
            return int(float(f"{n * 1.25**q:.1e}")) if n * 1.25**q >= 10 else None
    return None


parts = st.sampled_from([0.0, 0.001, 0.01, 0.04, 0.1, 0.4, 1.0])


@settings(deadline=None)  # it hangs on what else the machine does
@given(st.floats(-2, 2), st.integers(3, 10), parts, parts, parts, parts, st.floats(0.1, 2))
def test_advice_is_what_a_direct_search_finds(mean, seeds, of_seed, image, search, rest, matters):
    found = Estimate(mean, seeds, 1000, 0, 0, of_seed, image, search, rest)
    target = max(abs(mean), matters)
    assert more_seeds_needed(found, matters) == seeds_by_search(found, target)
    assert needed_test_images(found, 1000, matters) == images_by_search(found, 1000, target)


def test_images_have_two_digits():
    found = known(0.0, 0.7)
    # (1.96 + 0.84)² · V ≤ 0.5² from four times the images on: 1.25^7 = 4.77, 1.25^6 = 3.81.
    assert needed_test_images(found, 1000) == 4800
    assert needed_test_images(found, 333) == 1600
    assert needed_test_images(found, 12_345) == 59_000
    assert needed_test_images(found, 1) == 5


def test_advice_in_words():
    seeds = Estimate(0.2, 5, 1000, 3, 2, 0.06, 0.0, 0.0, 0.0)
    # Of 5 + 7 seeds: (2.201 + 0.842) · √(0.06 · 5 / 12) = 0.481; of 5 + 6: 0.507.
    assert advise_next_step(seeds, 1000) == (
        "Too few seeds: about 7 more would probably settle 0.50 points."
    )
    assert advise_next_step(known(0.3, 0.7), 1000) == (
        "More seeds would not help: 1,000 test images are too few; about 4,800 would settle 0.50 "
        "points."
    )
    assert advise_next_step(known(1.04, 5.0, 1.0), 1000) == (
        "Neither seeds nor images would settle it; the search is the limit (a repeated search "
        "moves the result by about ±5.1): give every cell more trials."
    )


@pytest.mark.parametrize(
    ("part", "limit"),
    [("variance_seeds", "seeds"), ("variance_images", "images"), ("variance_search", "search")],
)
def test_the_largest_part_is_the_limit(part, limit):
    fields = {"variance_seeds": 0.1, "variance_images": 0.1, "variance_search": 0.1} | {part: 0.2}
    assert limited_by(known(0.0, **fields)) == limit


@pytest.mark.parametrize(
    ("verdict", "mean", "half", "said"),
    [
        ("better_a", 1.234, 0.876, "AT beats FitNets on R by 1.23 ± 0.88 points (4 of 5 seeds)."),
        (
            "better_a",
            0.3,
            0.15,
            "AT beats FitNets on R by 0.30 ± 0.15 points (4 of 5 seeds). This is less than the "
            "0.5 points that matter here.",
        ),
        (
            "better_a",
            2.04,
            1.06,
            "AT beats FitNets on R by 2.0 ± 1.1 points (4 of 5 seeds). The gain is more than the "
            "0.5 points that matter.",
        ),
        ("better_b", -1.234, 0.876, "FitNets beats AT on R by 1.23 ± 0.88 points (4 of 5 seeds)."),
        (
            "better_b",
            -0.3,
            0.15,
            "FitNets beats AT on R by 0.30 ± 0.15 points (4 of 5 seeds). This is less than the "
            "0.5 points that matter here.",
        ),
        (
            "leaning_a",
            1.2,
            1.1,
            "AT is ahead of FitNets on R by 1.2 ± 1.1 points, but with 3 models checked this is "
            "not safe. ADVICE",
        ),
        (
            "leaning_b",
            -1.2,
            1.1,
            "FitNets is ahead of AT on R by 1.2 ± 1.1 points, but with 3 models checked this is "
            "not safe. ADVICE",
        ),
        (
            "equal",
            -0.1,
            0.3,
            "AT and FitNets do equally well on R: a difference above 0.40 points is excluded.",
        ),
        (
            "unclear",
            -0.7,
            1.5,
            "It cannot be said which is better on R: AT minus FitNets is -0.7 ± 1.5 points; "
            "differences up to 2.2 points cannot be excluded. ADVICE",
        ),
    ],
)
def test_sentences_by_hand(verdict, mean, half, said):
    found = known(mean, half)
    assert describe_verdict(verdict, PAIR, "R", 3, found, "ADVICE", "4 of 5 seeds") == said


@pytest.mark.parametrize(
    ("verdict", "mean", "half", "said"),
    [
        (
            "better_a",
            0.8,
            0.6,
            "On average over 3 models AT beats FitNets by 0.80 ± 0.60 points (COUNTED).",
        ),
        (
            "better_b",
            -0.8,
            0.6,
            "On average over 3 models FitNets beats AT by 0.80 ± 0.60 points (COUNTED).",
        ),
        (
            "equal",
            0.1,
            0.3,
            "AT and FitNets do equally well on average over 3 models: a difference above 0.40 "
            "points is excluded.",
        ),
        (
            "unclear",
            0.4,
            0.7,
            "It cannot be said which is better on average over 3 models: AT minus FitNets is "
            "0.40 ± 0.70 points; differences up to 1.10 points cannot be excluded. ADVICE",
        ),
    ],
)
def test_sentences_about_all_models_by_hand(verdict, mean, half, said):
    assert describe_verdict(verdict, PAIR, None, 3, known(mean, half), "ADVICE", "COUNTED") == said


def test_nothing_is_minus_zero():
    assert format_points(-0.004, 0.5) == "0.00"
    assert format_points(-0.04, 1.5) == "0.0"
    assert format_points(-0.06, 1.5) == "-0.1"


@pytest.mark.parametrize(
    ("test_images", "within", "of_specification"),
    [
        (500, 0.11, [(2.8, 1.8), (2.4, 1.6), (2.1, 1.4)]),
        (2_000, 0.1, [(1.5, 0.9), (1.2, 0.8), (1.1, 0.7)]),
        (10_000, 0.11, [(0.7, 0.44), (0.6, 0.40), (0.5, 0.36)]),
    ],
)
def test_what_can_be_seen_is_near_another_simulation(test_images, within, of_specification):
    for seeds, widths in zip((3, 5, 10), of_specification, strict=True):
        alone, together = (expected_error(test_images, seeds, models) for models in (1, 3))
        assert (alone.half_width, together.half_width) == pytest.approx(widths, abs=within)
        surer = expected_error(test_images, seeds, 1, 0.92)
        assert surer.half_width / alone.half_width == pytest.approx(0.7, abs=0.12)


def test_what_can_be_seen_in_words():
    assert describe_detectable_difference(2000, 5, 1) == (
        "with 2,000 test images and 5 seeds no difference under 1.2 points can be seen on a "
        "student (at 75 % accuracy, after 40 trials a cell; fewer show less)"
    )
    assert describe_detectable_difference(10_000, 5, 3) == (
        "with 10,000 test images and 5 seeds no difference under 0.66 points can be seen on a "
        "student, none under 0.42 on average over 3 (at 75 % accuracy, after 40 trials a cell; "
        "fewer show less)"
    )


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
    assert 0.03 <= decided(2000, 1000, 5) <= 0.08


def test_copies_of_images_raise_false_alarms_unless_they_are_groups():
    assert decided(1000, 300, 5, copied=100) > 0.1
    assert 0.03 <= decided(1000, 300, 5, copied=100, grouped=True) <= 0.08
