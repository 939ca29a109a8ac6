"""Method against method: verdicts and sentences by hand, and winners where there are none."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri
from scipy.stats import t

from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.comparison import CellResult, comparison_table, method_pairs
from kdtune.reports.tables.statistics import adjust_holm, bootstrap_best_sd

IMAGES = 400
PSEUDO = 3 * (100 / (IMAGES + 3)) ** 2  # variance of the pseudo images, 0.18472
WINNERS = ("better_a", "better_b")
SIDES = {"better_a": "better_b", "leaning_a": "leaning_b"}
SIDES |= {b: a for a, b in SIDES.items()}

SIGNED = {"low_points": "high_points", "high_points": "low_points"}
SIGNED |= {"difference_points": "difference_points"}
NAMED = {"method_a", "method_b", "model", "verdict", "seeds_won_a", "sentence"}
UNSIGNED = [name for name in COMPARISON.names if name not in SIGNED.keys() | NAMED]


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


def compare(a, b, looks=(), **others):
    """Return the row of AT against FitNets on the student R."""
    a, b = (replace(result, looks=looks) for result in (a, b))
    [row] = comparison_table({("at", "R"): a, ("fitnets", "R"): b}, **others).itertuples()
    return row


def half_width(share, luck=0.0):
    """Return the half width of a difference that is 100 on a share of the images, and 0 else."""
    v_images = 1e4 * share * (1 - share) / (IMAGES - 1) + PSEUDO
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
    # V = 900 / 399 + 0.18472 = 2.44036
    assert half_width(0.1) == pytest.approx(3.0618, abs=1e-4)
    assert row.verdict == "better_a"
    assert row.difference_points == pytest.approx(10)
    assert row.half_width_points == pytest.approx(3.0618, abs=1e-4)
    assert (row.low_points, row.high_points) == pytest.approx((6.9382, 13.0618), abs=1e-4)
    assert row.df == math.inf
    assert (row.models, row.seeds, row.test_images, row.seeds_won_a) == (1, 5, 400, 5)
    assert row.se_images_points == pytest.approx(math.sqrt(2.44036), abs=1e-5)
    assert (row.se_seeds_points, row.se_search_points) == (0, 0)
    assert row.limited_by == "images"
    assert pd.isna(row.next_step) and pd.isna(row.next_step_settles)
    assert pd.isna(row.more_seeds) and pd.isna(row.trials_needed)
    assert pd.isna(row.test_images_needed)
    assert (row.look, row.looks, row.level) == (1, 1, 0.05)
    assert row.min_difference_points == 0.5
    assert row.sentence == "AT is better than FitNets on R by 10.0 ± 3.1 points."


def test_a_gain_that_does_not_matter_by_hand():
    row = compare(confirmed(300, 300, 300), confirmed(260, 260, 260), min_difference=15)
    assert row.sentence == (
        "AT is better than FitNets on R by 10.0 ± 3.1 points, less than the 15 that matter."
    )
    between_both = compare(confirmed(300, 300, 300), confirmed(260, 260, 260), min_difference=10)
    assert between_both.sentence == "AT is better than FitNets on R by 10.0 ± 3.1 points."


def test_luck_of_both_searches_widens_the_interval():
    row = compare(confirmed(300, 300, 300, luck=3.0), confirmed(260, 260, 260, luck=4.0))
    assert row.se_search_points == pytest.approx(5)
    assert row.half_width_points == pytest.approx(1.959964 * math.sqrt(2.44036 + 25), abs=1e-3)
    assert row.half_width_without_search_points == pytest.approx(3.0618, abs=1e-4)
    assert row.limited_by == "search"


@pytest.mark.parametrize("luck", [0.0, 0.1, 5.0])
def test_identical_predictions_never_have_a_winner(luck):
    random = np.random.default_rng(0)
    cell = noisy(random, 0.75, luck=luck)
    row = compare(cell, cell)
    assert (row.difference_points, row.p_value, row.p_value_holm) == (0, 1, 1)
    assert row.seeds_won_a == 0
    assert row.seed_correlation == pytest.approx(1)
    assert row.half_width_points == pytest.approx(half_width(0, luck))  # 0.84 without luck
    assert row.verdict == "unclear"
    row = compare(cell, cell, min_difference=1.0)
    assert row.verdict == ("unclear" if luck == 5 else "equal")
    largest = f"a difference above {row.half_width_points:.2f} points is excluded."
    assert luck == 5 or row.sentence == f"AT and FitNets do equally well on R: {largest}"


def test_unclear_for_want_of_seeds_by_hand():
    none = between(0, 0)
    only_a = [between(300, 308), none, between(312, 318), none, none]
    only_b = [none, between(308, 312), none, between(318, 322), none]
    cells = [confirmed(*(between(0, 300) | o for o in side)) for side in (only_a, only_b)]
    row = compare(*cells, min_difference=1.7)
    # By seed 2, -1, 1.5, -1 and 0 points: v_seeds = 7.8 / 4 / 5.
    assert (row.difference_points, row.seeds_won_a) == (pytest.approx(0.3), 2)
    assert row.se_seeds_points == pytest.approx(math.sqrt(0.39))
    # Images: MS 5 · 8764 / 399 = 109.82, the rest (219820 - 43820 - 3120) / 1596 = 108.32.
    v_rest = 172880 / 1596 / 2000
    v_images = 5 * 8764 / 399 / 2000 - v_rest + PSEUDO
    assert row.se_images_points == pytest.approx(math.sqrt(v_images))
    variance = 0.39 + v_images
    assert row.df == pytest.approx(4 * variance**2 / (0.39**2 - v_rest**2))
    # Of 5 + 7 seeds: (2.007 + 0.842) · √0.3480 = 1.680; of 5 + 6: 1.722.
    assert (row.verdict, row.next_step, row.next_step_settles) == ("unclear", "seeds", True)
    assert row.more_seeds == 7
    assert row.sentence == (
        "AT or FitNets on R: it cannot be said; AT minus FitNets is 0.3 ± 1.7 points."
    )


def test_unclear_for_want_of_images_by_hand():
    a = confirmed(*[between(0, 300)] * 5)
    b = confirmed(*[between(4, 303)] * 5)  # loses four, wins three
    row = compare(a, b)
    # Mean 100 / 400; mean of squares 7 · 10⁴ / 400 = 175; V = (175 - 0.0625) / 399 = 0.4384.
    variance = 0.438440 + PSEUDO
    assert row.half_width_points == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-4)
    assert (row.next_step, row.next_step_settles, row.limited_by) == ("images", True, "images")
    assert pd.isna(row.more_seeds) and pd.isna(row.trials_needed)
    # 2.8016² · (0.4384 / f + PSEUDO / f²) ≤ 0.25 from f = 14.2 on; 5,500 are too few.
    assert row.test_images_needed == 6900
    assert row.sentence == (
        "AT or FitNets on R: it cannot be said; AT minus FitNets is 0.2 ± 1.5 points."
    )


def test_unclear_for_want_of_trials_by_hand():
    a, b = (replace(confirmed(300, 300, 300, luck=luck), trials=24) for luck in (1.5, 2.0))
    row = compare(a, b, min_difference=3)  # √(1.5² + 2²) = 2.5
    assert (row.verdict, row.limited_by) == ("unclear", "search")
    assert (row.next_step, row.next_step_settles) == ("trials", True)
    assert pd.isna(row.more_seeds) and pd.isna(row.test_images_needed)
    # PSEUDO + 6.25 · (24 / B)² ≤ (3 / 2.8016)² from B = 61.2 on: 30, 38, 48, 60, 75.
    assert row.trials_needed == 75
    assert row.sentence == (
        "AT or FitNets on R: it cannot be said; AT minus FitNets is 0.0 ± 5.0 points."
    )
    alone = compare(a, b)
    assert (alone.next_step, alone.next_step_settles, alone.trials_needed) == ("trials", False, 48)


@pytest.mark.parametrize("images", [2, 12])
def test_few_images_that_are_all_right_decide_nothing(images):
    cell = CellResult({seed: np.ones(images, dtype=bool) for seed in (1, 2, 3)}, 3, 0, 0.0)
    row = compare(cell, cell)
    assert (row.verdict, row.difference_points, row.next_step) == ("unclear", 0, "images")
    assert row.next_step_settles and 968 <= row.test_images_needed <= 1300


def three_students(*of_at, diverged=(), lacking=(), **others):
    """Return AT against FitNets on three students; FitNets has 300 images on each."""
    cells = {}
    for model, count in zip("RST", of_at, strict=True):
        fell = 1 if model in diverged else 0
        cells["at", model] = confirmed(*[count] * (0 if model in lacking else 5 - fell))
        if fell:
            cells["at", model] = confirmed(*[count] * 4, diverged=1)
        cells["fitnets", model] = confirmed(*[300] * 5)
    return comparison_table(cells, **others).set_index("model")


def test_leaning_by_hand():
    # Seven images of 400: 1.75 points, V = 1e4 · 0.0175 · 0.9825 / 399 + PSEUDO = 0.61564.
    table = three_students(307, 300, 300)
    row = table.loc["R"]
    assert row.verdict == "leaning_a"
    assert row.p_value == pytest.approx(math.erfc(1.75 / math.sqrt(2 * 0.61564)), abs=1e-5)
    assert row.p_value_holm == pytest.approx(3 * row.p_value)
    # 2.8016² · V ≤ 1.75² of 630 images, not of 500.
    assert (row.next_step, row.test_images_needed) == ("images", 630)
    assert row.sentence == (
        "AT is ahead of FitNets on R by 1.8 ± 1.5 points, but not safely, since 3 students were "
        "compared."
    )
    assert three_students(293, 300, 300).loc["R", "sentence"] == row.sentence.replace(
        "AT is ahead of FitNets", "FitNets is ahead of AT"
    )


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
    variance = 327.0833 / 399 + PSEUDO
    assert row.half_width_points == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-4)
    assert row.sentence == (
        "AT is better than FitNets on average over 3 students by 5.8 ± 2.0 points."
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
    row = three_students(300, 300, 300, min_difference=1.0).loc["all"]
    assert row.verdict == "equal"
    assert row.sentence == (
        "AT and FitNets do equally well on average over 3 students: a difference above 0.84 "
        "points is excluded."
    )
    row = three_students(304, 297, 300).loc["all"]
    # A twelfth; 100/3 points on 7 images: V = (7 · 1111.1 / 400 - 1/144) / 399 = 0.048715.
    assert row.verdict == "unclear"
    assert row.half_width_points == pytest.approx(
        1.959964 * math.sqrt(0.048715 + PSEUDO), abs=1e-5
    )
    assert row.test_images_needed == 1700  # 1,300 leave a variance of 0.0327, and 0.0319 is needed
    assert row.sentence == (
        "AT or FitNets on average over 3 students: it cannot be said; AT minus FitNets is "
        "0.08 ± 0.95 points."
    )


def test_search_scores_alone_are_no_result():
    row = compare(confirmed(), confirmed())
    assert (row.verdict, row.seeds) == ("not_confirmed", 0)
    assert pd.isna(row.difference_points) and pd.isna(row.p_value) and pd.isna(row.test_images)
    assert row.sentence == (
        "Not confirmed: R has search scores only, which name a winner by chance; run `kdtune "
        "confirm`."
    )
    table = three_students(300, 300, 340, lacking="RS")
    assert table.verdict.tolist() == [
        "not_confirmed",
        "not_confirmed",
        "better_a",
        "not_confirmed",
    ]
    assert table.loc["all", "sentence"].startswith(
        "Not confirmed: R, S have search scores only, which"
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
    assert row.sentence == "AT diverged in 2 of 5 seeds on R. No winner is declared."
    table = three_students(340, 340, 340, diverged="S")
    assert table.verdict.tolist() == ["better_a", "unstable", "better_a", "unstable"]
    assert table.loc["all", "sentence"] == (
        "AT diverged in 1 of 5 seeds on S. No winner is declared."
    )


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
    cells["at", "U"] = CellResult(
        dict(list(noisy(random, 0.7).image_scores.items())[:4]), 5, 1, 0.1
    )
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
                mean = abs(row.difference_points)
                leader = "AT minus FitNets" if row.difference_points > 0 else "FitNets minus AT"
                if row.verdict == "unclear":
                    assert f"{leader} is {mean:.1f} ±" in row.sentence
                    assert f"{leader} is {mean:.1f} ±" in other.sentence


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


def growing_cells():
    """Return two cells with 20 seeds that differ by about 2 points on 400 images."""
    random = np.random.default_rng(6)
    hard = random.standard_normal(IMAGES)
    sides = []
    for shift in (0.75, 0.65):
        noise, seed = random.standard_normal((20, IMAGES)), random.standard_normal((20, 1))
        right = hard + 0.5 * noise + 0.05 * seed < shift
        sides.append(CellResult(dict(enumerate(right, start=1)), 20, 0, 0.1))
    return sides


def first_seeds(cell, seeds):
    """Return the cell as it was when it had so many seeds."""
    return replace(
        cell, image_scores={seed: cell.image_scores[seed] for seed in range(1, seeds + 1)}
    )


def test_every_look_has_a_level_and_the_interval_that_goes_with_it():
    a, b = growing_cells()
    one, two, all_looks = (compare(a, b, looks=looks) for looks in ((5,), (5, 10), (5, 10, 20)))
    counts = [(row.look, row.looks, row.seeds) for row in (one, two, all_looks)]
    assert counts == [(1, 3, 5), (2, 3, 10), (3, 3, 20)]
    fixed = compare(first_seeds(a, 5), first_seeds(b, 5))
    assert (fixed.look, fixed.looks, fixed.level) == (1, 1, 0.05)
    assert one.level < 0.05 and one.half_width_points > fixed.half_width_points
    assert one.p_value == fixed.p_value
    ratio = t.isf(one.level / 2, one.df) / t.isf(0.025, one.df)
    assert one.half_width_points / fixed.half_width_points == pytest.approx(ratio)


def test_a_look_is_what_it_was_before_there_were_further_seeds():
    a, b = growing_cells()
    early = compare(first_seeds(a, 5), first_seeds(b, 5), looks=(5,))
    assert str(early) == str(compare(a, b, looks=(5,)))  # NaN is not NaN


def test_seeds_after_the_last_planned_look_change_nothing():
    a, b = growing_cells()
    looks = first_seeds(a, 8), first_seeds(b, 8)
    assert compare(*looks, looks=(5, 8)).seeds == 8
    a.image_scores[21] = b.image_scores[21] = np.ones(IMAGES, dtype=bool)
    assert str(compare(a, b, looks=(20, 21))) == str(compare(a, b, looks=(20,)))


def test_holm_and_the_decision_use_the_level_of_the_look():
    a, b = growing_cells()
    p_value = compare(first_seeds(a, 5), first_seeds(b, 5)).p_value
    row = compare(a, b, looks=(5,))
    assert row.verdict.startswith("better") == (row.p_value_holm < row.level)
    assert row.p_value_holm == pytest.approx(p_value)


def test_no_sentence_has_more_than_25_words():
    models = [f"student-{i}" for i in range(6)]
    counts = {"R": (340, 260), "S": (260, 340)}
    for own in (counts, dict.fromkeys(models, (320, 260))):
        for diverged, seeds in ((1, 5), (5, 0), (0, 2), (0, 0)):
            cells = {
                (method, model): confirmed(*[count] * seeds, diverged=diverged)
                for model, of_both in own.items()
                for method, count in zip(("at_paper", "fitnets"), of_both, strict=True)
            }
            for sentence in comparison_table(cells)["sentence"]:
                assert len(sentence.split()) <= 25, sentence
    mixed = {model: (340, 260) if i % 2 else (260, 340) for i, model in enumerate(models * 2)}
    cells = {
        (method, model): confirmed(*[count] * 3)
        for model, of_both in mixed.items()
        for method, count in zip(("at_paper", "fitnets"), of_both, strict=True)
    }
    assert comparison_table(cells)["sentence"].str.split().str.len().max() <= 25


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
    for _ in range(60):
        hard = random.standard_normal(1000)
        winners += compare(searched(random, hard), searched(random, hard)).verdict in WINNERS
    assert winners <= 6
