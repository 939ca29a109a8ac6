"""Method against method: verdicts and sentences by hand, and winners where there are none."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.comparison import CellResult, comparison_table, method_pairs
from kdtune.reports.tables.statistics import adjust_holm, bootstrap_best_sd

IMAGES = 400
WINNERS = ("better_a", "better_b")
SIDES = {"better_a": "better_b", "leaning_a": "leaning_b"}
SIDES |= {b: a for a, b in SIDES.items()}

SIGNED = {"low_points": "high_points", "high_points": "low_points"}
SIGNED |= {"difference_points": "difference_points"}
UNSIGNED = [
    "models",
    "seeds",
    "test_images",
    "half_width_points",
    "half_width_without_search_points",
    "p_value",
    "p_value_holm",
    "df",
    "se_seeds_points",
    "se_images_points",
    "se_search_points",
    "seed_correlation",
    "limited_by",
    "more_seeds",
    "test_images_needed",
]


def confirmed(*right, luck=0.0, diverged=0, seeds=None):
    """Return a cell; each run classified the first images, or the given ones, correctly."""
    of_seed = {
        seed: np.arange(IMAGES) < count if isinstance(count, int) else np.asarray(count)
        for seed, count in enumerate(right, start=1)
    }
    return CellResult(of_seed, seeds or len(right) + diverged, diverged, luck)


def between(first, last):
    """Return a mask of the images from `first` up to `last`."""
    return (np.arange(IMAGES) >= first) & (np.arange(IMAGES) < last)


def compare(a, b, **others):
    """Return the row of AT against FitNets on the student R."""
    [row] = comparison_table({("at", "R"): a, ("fitnets", "R"): b}, **others).itertuples()
    return row


def half_width(share, luck=0.0):
    """Return the half width of a difference that is 100 on a share of the images, and 0 else."""
    v_images = 1e4 * share * (1 - share) / (IMAGES - 1)
    return 1.959964 * math.sqrt(v_images + 2 * luck**2)


def noisy(random, share, images=IMAGES, seeds=5, luck=0.1):
    """Return a cell that classifies a random share of the images correctly."""
    right = random.random((seeds, images)) < share
    return CellResult(dict(enumerate(right, start=1)), seeds, 0, luck)


def test_own_methods_come_first_then_all_against_each_baseline():
    own = [("at", "fitnets")]
    student = [("at", "student"), ("fitnets", "student"), ("kd", "student")]
    kd = [("at", "kd"), ("fitnets", "kd")]
    assert method_pairs(["at", "fitnets", "kd", "student"]) == [*own, *student, *kd]
    pairs = method_pairs(["student", "kd", "fitnets", "at"])
    assert {frozenset(pair) for pair in pairs} == {*map(frozenset, [*own, *student, *kd])}
    assert len(pairs) == 6
    assert method_pairs(["at"]) == []


def test_a_method_alone_has_no_row():
    table = comparison_table({("at", "R"): confirmed(300, 300, 300)})
    assert len(table) == 0
    assert table.columns.tolist() == COMPARISON.names


def test_a_winner_by_hand():
    row = compare(confirmed(300, 300, 300, 300, 300), confirmed(260, 260, 260, 260, 260))
    assert half_width(0.1) == pytest.approx(2.9436, abs=1e-4)
    assert row.verdict == "better_a"
    assert row.difference_points == pytest.approx(10)
    assert row.half_width_points == pytest.approx(2.9436, abs=1e-4)
    assert (row.low_points, row.high_points) == pytest.approx((7.0564, 12.9436), abs=1e-4)
    assert row.df == math.inf
    assert (row.models, row.seeds, row.test_images, row.seeds_won_a) == (1, 5, 400, 5)
    assert row.se_images_points == pytest.approx(1.50188, abs=1e-5)
    assert (row.se_seeds_points, row.se_search_points) == (0, 0)
    assert row.limited_by == "images"
    assert pd.isna(row.more_seeds) and pd.isna(row.test_images_needed)
    assert row.min_difference_points == 0.5
    assert row.sentence == (
        "AT beats FitNets on R by 10.0 ± 2.9 points (5 of 5 seeds). The gain is more than the 0.5 "
        "points that matter."
    )


def test_the_other_winner_by_hand():
    row = compare(confirmed(260, 260, 260), confirmed(300, 300, 300))
    assert row.verdict == "better_b"
    assert row.difference_points == pytest.approx(-10)
    assert row.seeds_won_a == 0
    assert row.sentence == (
        "FitNets beats AT on R by 10.0 ± 2.9 points (3 of 3 seeds). The gain is more than the 0.5 "
        "points that matter."
    )


def test_a_gain_that_does_not_matter_by_hand():
    row = compare(confirmed(300, 300, 300), confirmed(260, 260, 260), min_difference=15)
    assert row.sentence == (
        "AT beats FitNets on R by 10.0 ± 2.9 points (3 of 3 seeds). This is less than the 15 "
        "points that matter here."
    )
    between_both = compare(confirmed(300, 300, 300), confirmed(260, 260, 260), min_difference=10)
    assert between_both.sentence == "AT beats FitNets on R by 10.0 ± 2.9 points (3 of 3 seeds)."


def test_luck_of_both_searches_widens_the_interval():
    row = compare(confirmed(300, 300, 300, luck=3.0), confirmed(260, 260, 260, luck=4.0))
    assert row.se_search_points == pytest.approx(5)
    assert row.half_width_points == pytest.approx(1.959964 * math.hypot(1.50188, 5), abs=1e-3)
    assert row.half_width_without_search_points == pytest.approx(2.9436, abs=1e-4)
    assert row.limited_by == "search"


@pytest.mark.parametrize("luck", [0.0, 0.1, 5.0])
def test_identical_predictions_never_have_a_winner(luck):
    random = np.random.default_rng(0)
    cell = noisy(random, 0.75, luck=luck)
    row = compare(cell, cell)
    assert (row.difference_points, row.p_value, row.p_value_holm) == (0, 1, 1)
    assert row.seeds_won_a == 0
    assert row.seed_correlation == pytest.approx(1)
    assert row.half_width_points == pytest.approx(1.959964 * math.sqrt(2) * luck)
    if luck < 0.18:
        assert row.verdict == "equal"
        assert row.sentence == (
            "AT and FitNets do equally well on R: a difference above "
            f"{row.half_width_points:.2f} points is excluded."
        )
    else:
        assert row.verdict == "unclear"


def test_unclear_for_want_of_seeds_by_hand():
    only_a = [between(300, 304), between(0, 0), between(306, 309), between(0, 0), between(0, 0)]
    only_b = [between(0, 0), between(304, 306), between(0, 0), between(309, 311), between(0, 0)]
    row = compare(
        *(confirmed(*(between(0, 300) | own for own in side)) for side in (only_a, only_b))
    )
    # By seed 1, -0.5, 0.75, -0.5 and 0 points: v_seeds = 1.95 / 4 / 5.
    assert (row.difference_points, row.seeds_won_a) == (pytest.approx(0.15), 2)
    assert row.se_seeds_points == pytest.approx(math.sqrt(0.0975))
    # Images: MS 5 · 4391 / 399 = 55.02, the rest (109955 - 21955 - 780) / 1596 = 54.65.
    v_images = (5 * 4391 / 399 - 87220 / 1596) / 2000
    assert row.se_images_points == pytest.approx(math.sqrt(v_images))
    assert row.df == pytest.approx(4 * (1 + v_images / 0.0975) ** 2)
    # Of 5 + 13 seeds: (2.110 + 0.842) · √(0.4875 / 18 + 0.0002) = 0.487; of 5 + 12: 0.503.
    assert (row.verdict, row.more_seeds) == ("unclear", 13)
    assert row.sentence == (
        "It cannot be said which is better on R: AT minus FitNets is 0.15 ± 0.87 points; "
        "differences up to 1.02 points cannot be excluded. Too few seeds: about 13 more would "
        "probably settle 0.50 points."
    )


def test_unclear_for_want_of_images_by_hand():
    a = confirmed(*[between(0, 300)] * 5)
    b = confirmed(*[between(4, 303)] * 5)  # loses four, wins three
    row = compare(a, b)
    # Mean 100 / 400; mean of squares 7 · 10⁴ / 400 = 175; V = (175 - 0.0625) / 399 = 0.4384.
    assert row.half_width_points == pytest.approx(1.959964 * math.sqrt(0.438440), abs=1e-4)
    assert pd.isna(row.more_seeds)
    # 2.8016² · V ≤ 0.25 from 13.8 times the images on: 1.25¹² = 14.6, 1.25¹¹ = 11.6.
    assert row.test_images_needed == 5800
    assert row.sentence == (
        "It cannot be said which is better on R: AT minus FitNets is 0.2 ± 1.3 points; "
        "differences up to 1.5 points cannot be excluded. More seeds would not help: 400 test "
        "images are too few; about 5,800 would settle 0.5 points."
    )


def test_unclear_for_want_of_trials_by_hand():
    row = compare(
        confirmed(300, 300, 300, luck=1.5), confirmed(300, 300, 300, luck=2.0)
    )  # √(1.5² + 2²) = 2.5
    assert (row.verdict, row.limited_by) == ("unclear", "search")
    assert pd.isna(row.more_seeds) and pd.isna(row.test_images_needed)
    assert row.sentence == (
        "It cannot be said which is better on R: AT minus FitNets is 0.0 ± 4.9 points; "
        "differences up to 4.9 points cannot be excluded. Neither seeds nor images would settle "
        "it; the search is the limit (a repeated search moves the result by about ±5.0): give "
        "every cell more trials."
    )


def three_students(*of_at, diverged=(), lacking=()):
    """Return AT against FitNets on three students; FitNets has 300 images on each."""
    cells = {}
    for model, count in zip("RST", of_at, strict=True):
        fell = 1 if model in diverged else 0
        cells["at", model] = confirmed(*[count] * (0 if model in lacking else 5 - fell))
        if fell:
            cells["at", model] = confirmed(*[count] * 4, diverged=1)
        cells["fitnets", model] = confirmed(*[300] * 5)
    return comparison_table(cells).set_index("model")


def test_leaning_by_hand():
    # Five images of 400: 1.25 points, V = 1e4 · 0.0125 · 0.9875 / 399 = 0.30937.
    table = three_students(305, 300, 300)
    row = table.loc["R"]
    assert row.verdict == "leaning_a"
    assert row.p_value == pytest.approx(math.erfc(1.25 / math.sqrt(2 * 0.30937)), abs=1e-5)
    assert row.p_value_holm == pytest.approx(3 * row.p_value)
    # 2.8016² · 0.30937 ≤ 1.25² from 1.55 times the images on: 1.25².
    assert row.sentence == (
        "AT is ahead of FitNets on R by 1.2 ± 1.1 points, but with 3 models checked this is not "
        "safe. More seeds would not help: 400 test images are too few; about 620 would settle "
        "1.2 points."
    )
    assert three_students(295, 300, 300).loc["R", "sentence"] == row.sentence.replace(
        "AT is ahead of FitNets", "FitNets is ahead of AT"
    )
    assert table.loc["S", "verdict"] == "equal"


def test_holm_is_over_the_models_of_a_pair_and_not_over_all():
    table = three_students(305, 306, 292)
    models = table.loc[["R", "S", "T"]]
    assert models.p_value_holm.to_numpy() == pytest.approx(adjust_holm(models.p_value.tolist()))
    assert table.loc["all", "p_value_holm"] == table.loc["all", "p_value"]
    assert (table.p_value_holm >= table.p_value).all()


def test_the_mean_over_models_by_hand():
    table = three_students(340, 330, 300)
    row = table.loc["all"]
    assert (row.models, row.seeds, row.verdict) == (3, 5, "better_a")
    assert row.difference_points == pytest.approx((10 + 7.5 + 0) / 3)
    # 200/3 points on 30 images, 100/3 on 10, 0 else: mean of squares 361.1, V = 327.1 / 399.
    assert row.half_width_points == pytest.approx(1.959964 * math.sqrt(327.0833 / 399), abs=1e-4)
    assert row.sentence == (
        "On average over 3 models AT beats FitNets by 5.8 ± 1.8 points (better on 2, worse on 0, "
        "undecided on 1). The gain is more than the 0.5 points that matter."
    )


def test_the_other_wins_over_all_models():
    row = three_students(260, 270, 300).loc["all"]
    assert row.verdict == "better_b"
    assert row.sentence == (
        "On average over 3 models FitNets beats AT by 5.8 ± 1.8 points (better on 2, worse on 0, "
        "undecided on 1). The gain is more than the 0.5 points that matter."
    )


def test_luck_of_all_models_is_that_of_their_mean():
    cells = {
        (method, model): confirmed(300, 300, 300, luck=luck)
        for model, of_a, of_b in (("R", 1.0, 2.0), ("S", 3.0, 0.5))
        for method, luck in (("at", of_a), ("fitnets", of_b))
    }
    row = comparison_table(cells).set_index("model").loc["all"]
    assert row.se_search_points == pytest.approx(math.sqrt(1 + 4 + 9 + 0.25) / 2)


def test_it_depends_comes_before_a_winner():
    table = three_students(340, 330, 280)
    row = table.loc["all"]
    assert table.verdict.tolist() == ["better_a", "better_a", "better_b", "depends"]
    assert row.p_value < 0.05
    assert row.sentence == "It depends on the student: AT is better on R, S, FitNets on T."


def test_all_equal_and_all_unclear():
    row = three_students(300, 300, 300).loc["all"]
    assert row.verdict == "equal"
    assert row.sentence == (
        "AT and FitNets do equally well on average over 3 models: a difference above 0.00 points "
        "is excluded."
    )
    row = three_students(304, 297, 300).loc["all"]
    # A twelfth; 100/3 points on 7 images: V = (7 · 1111.1 / 400 - 1/144) / 399 = 0.048715.
    assert row.verdict == "unclear"
    assert row.sentence == (
        "It cannot be said which is better on average over 3 models: AT minus FitNets is 0.08 ± "
        "0.43 points; differences up to 0.52 points cannot be excluded. More seeds would not "
        "help: 400 test images are too few; about 620 would settle 0.50 points."
    )


def test_search_scores_alone_are_no_result():
    row = compare(confirmed(), confirmed())
    assert (row.verdict, row.seeds) == ("not_confirmed", 0)
    assert pd.isna(row.difference_points) and pd.isna(row.p_value) and pd.isna(row.test_images)
    assert row.sentence == (
        "Not confirmed: R has search scores only. Such scores are too high by 0.3 to 3 points and "
        "name a winner by chance; run `kdtune confirm`."
    )
    table = three_students(300, 300, 340, lacking="RS")
    assert table.verdict.tolist() == [
        "not_confirmed",
        "not_confirmed",
        "better_a",
        "not_confirmed",
    ]
    assert table.loc["all", "sentence"].startswith(
        "Not confirmed: R, S have search scores only. Such scores"
    )
    assert table.loc["T", "p_value_holm"] == table.loc["T", "p_value"]  # a family of one


def test_two_shared_seeds_are_too_few():
    a = confirmed(300, 300, 300)
    b = CellResult({3: between(0, 260), 2: between(0, 260), 7: between(0, 260)}, 3, 0, 0.0)
    row = compare(a, b)
    assert (row.verdict, row.seeds) == ("not_confirmed", 2)
    assert row.sentence == (
        "Not confirmed: AT and FitNets share 2 finished seeds on R, and 3 are needed; run `kdtune "
        "confirm` with more --seeds."
    )


def test_only_shared_seeds_are_compared():
    a = confirmed(300, 300, 300, 400)  # the last one is AT's alone
    row = compare(a, confirmed(260, 260, 260))
    assert (row.seeds, row.difference_points) == (3, pytest.approx(10))


def test_who_diverged_wins_nothing():
    row = compare(confirmed(340, 340, 340, diverged=2), confirmed(300, 300, 300, 300, 300))
    assert row.verdict == "unstable"
    assert row.difference_points == pytest.approx(10)
    assert row.sentence == (
        "AT diverged in 2 of 5 seeds on R; in the runs that finished AT minus FitNets is 10.0 ± "
        "2.9 points. No winner is declared."
    )
    table = three_students(340, 340, 340, diverged="S")
    assert table.verdict.tolist() == ["better_a", "unstable", "better_a", "unstable"]
    assert table.loc["all", "sentence"].startswith("AT diverged in 1 of 5 seeds on S; in the runs")


def test_who_diverged_in_all_seeds_has_no_numbers():
    row = compare(confirmed(diverged=5), confirmed(300, 300, 300, 300, diverged=1))
    assert row.verdict == "unstable"
    assert pd.isna(row.difference_points)
    assert row.sentence == (
        "AT diverged in 5 of 5 seeds on R; FitNets diverged in 1 of 5 seeds on R. No winner is "
        "declared."
    )


def test_too_few_shared_seeds_come_before_those_that_diverged():
    row = compare(confirmed(340, 340, diverged=3), confirmed(300, 300, 300, 300, diverged=1))
    assert row.verdict == "not_confirmed"
    assert row.sentence.startswith("Not confirmed: AT and FitNets share 2 finished seeds on R")


def test_swapping_the_methods_flips_signs_and_names():
    random = np.random.default_rng(5)
    cells = {
        (method, model): noisy(random, share)
        for model, of_a, of_b in (
            ("R", 0.80, 0.60),  # better
            ("S", 0.60, 0.80),  # worse
            ("T", 0.755, 0.75),  # nobody knows
        )
        for method, share in (("at", of_a), ("fitnets", of_b))
    }
    cells["at", "U"] = CellResult(dict(list(noisy(random, 0.7).correct.items())[:4]), 5, 1, 0.1)
    cells["fitnets", "U"] = noisy(random, 0.7)
    for models in ("R", "S", "T", "U", "RT", "ST", "RST", "RSTU"):
        some = {cell: own for cell, own in cells.items() if cell[1] in models}
        rows = comparison_table(some).itertuples()
        others = comparison_table(dict(reversed(some.items()))).set_index("model")
        for row in rows:
            other = others.loc[row.model]
            assert (other.method_a, other.method_b) == (row.method_b, row.method_a)
            for column, opposite in SIGNED.items():
                assert other[opposite] == pytest.approx(-getattr(row, column))
            for column in UNSIGNED:
                assert same(other[column], getattr(row, column)), column
            assert other.verdict == SIDES.get(row.verdict, row.verdict)
            assert other.seeds_won_a + row.seeds_won_a <= row.seeds
            if row.verdict.startswith(("better", "leaning")):
                assert other.sentence == row.sentence
            elif row.verdict == "depends":
                assert row.sentence.endswith("AT is better on R, FitNets on S.")
                assert other.sentence.endswith("FitNets is better on S, AT on R.")
            else:
                assert f"AT minus FitNets is {row.difference_points:.1f} ±" in row.sentence
                assert f"FitNets minus AT is {-row.difference_points:.1f} ±" in other.sentence


def same(one, other):
    """Return True if two values of a table are alike; missing values are alike."""
    if isinstance(one, str):
        return one == other
    return (pd.isna(one) and pd.isna(other)) or one == pytest.approx(other)


def test_groups_widen_the_interval():
    a, b = confirmed(300, 301, 302), confirmed(260, 262, 261)
    groups = [f"patient {i // 8}" for i in range(IMAGES)]
    apart, together = compare(a, b), compare(a, b, groups=groups)
    assert together.difference_points == pytest.approx(apart.difference_points)
    assert together.half_width_points > 2 * apart.half_width_points
    assert together.test_images == IMAGES


def latent(accuracy):
    return ndtri(accuracy / 100)


def searched(random, hard, trials=40, validation_images=1000, seeds=5):
    """Return a confirmed cell; its method is always the same, its search is not."""
    truth = 75 - random.gamma(1.0, 1.5, trials)
    validation = truth + random.normal(0, math.sqrt(0.42 * 1875 / validation_images), trials)
    own = 0.45 * random.standard_normal(len(hard))
    run = 0.65 * random.standard_normal((seeds, len(hard)))
    spread = math.sqrt(1 + 0.45**2 + 0.65**2)
    right = hard + own + run < spread * latent(truth[validation.argmax()])
    return CellResult(dict(enumerate(right, start=1)), seeds, 0, bootstrap_best_sd(validation))


def test_two_searches_of_one_method_seldom_have_a_winner():
    random = np.random.default_rng(7)
    winners = 0
    for _ in range(200):
        hard = random.standard_normal(1000)
        a, b = searched(random, hard), searched(random, hard)
        assert compare(a, a).verdict not in WINNERS
        winners += compare(a, b).verdict in WINNERS
    assert winners <= 20
