"""The student to ship: the best on validation, its comparisons on test, limits, and sentences."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_sweeps import (
    Sweep,
    diverged_seed,
    four_cells,
    half_confirmed,
    one_method,
    sweep_started,
)
from scipy.stats import t

from kdtune.errors import UserError
from kdtune.reports.tables.columns import LEADERBOARD, SHIP
from kdtune.reports.tables.comparison import CellResult
from kdtune.reports.tables.leaderboard import build_sweep_tables
from kdtune.reports.tables.ship import ShipLimits, select_ship_set, ship_table
from kdtune.reports.tables.ship_sentences import describe_ship_set, ship_view
from kdtune.reports.tables.statistics import estimate_mean

CELLS = [("at", "A"), ("fitnets", "A"), ("kd", "B")]


def board(validation=(80.0, 90.0, 85.0), **columns):
    """Return a leaderboard of confirmed cells, the best on test first, as it is sorted."""
    methods, models = zip(*CELLS, strict=True)
    values = {"validation_accuracy_percent": validation, "search_best_percent": 70.0, **columns}
    frame = pd.DataFrame({"method": methods, "model": models, "status": "ok"}).assign(**values)
    return LEADERBOARD.cast(frame.reindex(columns=LEADERBOARD.names))


def results_of(*accuracies, images=2000, seeds=3, luck=0.0):
    """Return results whose images and seeds vary; each cell has its mean accuracy, share of 1."""
    random = np.random.default_rng(0)
    hard = random.random(images)[:, None]
    noise = random.normal(0, 0.1, (len(accuracies), images, seeds))
    correct = [hard + noise[c] < a for c, a in enumerate(accuracies)]
    return {
        cell: CellResult(dict(enumerate(own.T, start=1)), seeds, 0, luck)
        for cell, own in zip(CELLS, correct, strict=False)
    }


def members(ship):
    return dict(zip(ship["method"], ship["in_ship_set"], strict=True))


def test_validation_alone_chooses_the_best():
    ship = ship_table(board(), results_of(0.9, 0.8, 0.6))
    assert ship["method"].tolist() == ["fitnets", "kd", "at"]
    assert ship["validation_rank"].tolist() == [1, 2, 3]
    assert members(ship) == {"fitnets": "best", "kd": "no", "at": "yes"}
    assert ship["behind_best_points"][2] < -5  # it is better on test, and that changes nothing


def test_equals_on_validation_are_in_the_order_of_the_sweep_not_of_test():
    leaderboard = board((80.0, 80.0, 80.0)).iloc[::-1]
    assert ship_table(leaderboard, results_of(0.7, 0.8, 0.9))["method"].tolist() == [
        "at", "fitnets", "kd",
    ]  # fmt: skip


def test_the_numbers_are_those_of_paired_one_sided_comparisons():
    results = results_of(0.80, 0.82, 0.815, luck=50.0)
    ship = ship_table(board(), results, min_difference=0.4).set_index("method")
    best, p_values = results["fitnets", "A"].image_scores, {}
    for method, model in CELLS[::2]:
        other = results[method, model].image_scores
        points = 100 * np.stack([best[s] * 1.0 - other[s] for s in (1, 2, 3)], axis=1)
        estimate = estimate_mean(points)
        row, error = ship.loc[method], math.sqrt(estimate.variance)
        assert row.behind_best_points == pytest.approx(points.mean())
        quantile = t.ppf(1 - 0.05 / 2, estimate.df)  # two comparisons share 5 %
        assert row.behind_best_high_points == pytest.approx(points.mean() + quantile * error)
        p_values[method] = t.sf((points.mean() - 0.4) / error, estimate.df)
        assert row.min_difference_points == 0.4
    small, large = sorted(p_values, key=p_values.get)
    assert ship.p_value_holm[small] == pytest.approx(min(2 * p_values[small], 1))
    assert ship.p_value_holm[large] == pytest.approx(
        min(max(2 * p_values[small], p_values[large]), 1)
    )
    assert ((ship["p_value_holm"] < 0.05) == (ship["in_ship_set"] == "no"))[["at", "kd"]].all()


def test_images_of_a_group_are_no_evidence_of_their_own():
    results = results_of(0.80, 0.83, 0.80, images=300)
    tenfold = {
        cell: CellResult({s: np.repeat(c, 10) for s, c in own.image_scores.items()}, 3, 0, 0.0)
        for cell, own in results.items()
    }
    groups = np.repeat(np.arange(300), 10).tolist()
    columns = ["behind_best_points", "behind_best_high_points", "p_value_holm"]
    alone, repeated = ship_table(board(), results), ship_table(board(), tenfold, groups)
    np.testing.assert_allclose(alone[columns], repeated[columns])
    assert set(repeated["independent_images"].dropna()) == {300}


def test_what_shares_too_few_tested_seeds_is_unknown():
    results = results_of(0.80, 0.82, 0.815)
    two_seeds = {s: c for s, c in results["kd", "B"].image_scores.items() if s < 3}
    results["kd", "B"] = CellResult(two_seeds, 3, 0, 0.0)
    ship = ship_table(board(), results)
    assert members(ship)["kd"] == "unknown" and members(ship)["at"] in ("yes", "no")
    untested = {cell: CellResult({}, 3, 0, 0.0) for cell in results}
    ship = ship_table(board(), untested)
    assert members(ship) == {"fitnets": "best", "kd": "unknown", "at": "unknown"}


def test_only_confirmed_cells_are_candidates():
    leaderboard = board(status=["ok", "unstable", "incomplete"])
    ship = ship_table(leaderboard, results_of(0.7, 0.8, 0.9))
    assert ship["in_ship_set"].tolist()[0] == "best" and ship["in_ship_set"][1:].isna().all()
    searched = board(status="not_confirmed", search_best_percent=[70.0, 71.0, np.nan])
    ship = ship_table(searched, {cell: CellResult({}, 0, 0, 0.0) for cell in CELLS})
    assert ship["method"].tolist() == ["fitnets", "at"]
    assert set(ship["in_ship_set"]) == {"unknown"} and select_ship_set(ship).empty
    assert ship_table(LEADERBOARD.make_frame(), {}).columns.tolist() == SHIP.names


def test_false_alarms_of_all_comparisons_together():
    """All others are behind by the difference that matters."""
    random, alarms, repeats = np.random.default_rng(1), 0, 60
    for _ in range(repeats):
        hard = random.random(500)[:, None]
        accuracies = 0.8 - 0.005 * np.array([1, 0, 1]) + random.normal(0, 0.003, (3, 3)).T
        correct = [hard + random.normal(0, 0.1, (500, 3)) < own for own in accuracies]
        results = {
            cell: CellResult(dict(enumerate(own.T)), 3, 0, 0.0)
            for cell, own in zip(CELLS, correct, strict=True)
        }
        alarms += "no" in members(ship_table(board(), results)).values()
    assert alarms / repeats <= 0.08


COSTS = {"parameters": [100, 100, 70], "latency_ms": [2.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    ("limits", "candidates"),
    [
        ({}, ["fitnets", "kd", "at"]),
        ({"max_parameters": 99}, ["kd"]),
        ({"max_parameters": 100}, ["fitnets", "kd", "at"]),
        ({"max_latency_ms": 2.5}, ["fitnets", "at"]),
        ({"model": "B"}, ["kd"]),
    ],
)
def test_limits_choose_the_candidates(limits, candidates):
    ship = ship_table(board(**COSTS), results_of(0.8, 0.8, 0.8), limits=ShipLimits(**limits))
    assert ship.dropna(subset="in_ship_set")["method"].tolist() == candidates
    assert len(ship) == 3 and ship["in_ship_set"][0] == "best"


@pytest.mark.parametrize(
    ("limits", "costs", "sentence"),
    [
        (
            {"max_parameters": 1},
            COSTS,
            "No student has at most 1 parameters; the least is 70, of B.",
        ),
        (
            {"max_latency_ms": 1.5},
            COSTS,
            "No student takes at most 1.5 ms; the least is 2 ms, of A.",
        ),
        (
            {"model": "A", "max_parameters": 99},
            COSTS,
            "No student has at most 99 parameters; the least is 100, of A.",
        ),
        ({"max_latency_ms": 1.5}, {}, "The costs of the students are not measured yet; "),
        ({"model": "AB"}, {}, "No cell has the model 'AB'; "),
    ],
)
def test_limits_that_nothing_meets_are_a_users_mistake(limits, costs, sentence):
    with pytest.raises(UserError) as error:
        ship_table(board(**costs), results_of(0.8, 0.8, 0.8), limits=ShipLimits(**limits))
    assert str(error.value).startswith(sentence)


def ship_row(method="fitnets", model="A", member="yes", **columns):
    values = {
        "status": "ok", "validation_accuracy_percent": 90.0, "search_best_percent": 91.0,
        "test_accuracy_percent": 75.2, "test_half_width_points": 0.8, "test_low_percent": 74.4,
        "test_high_percent": 76.0, "min_difference_points": 0.5,
    }  # fmt: skip
    return {**values, "method": method, "model": model, "in_ship_set": member, **columns}


BEST, YES = ship_row(member="best", parameters=200_000), ship_row("at", "A")
NO, UNKNOWN = ship_row("kd", member="no"), ship_row("kd", member="unknown")
SMALL = ship_row("at", "Tiny", parameters=1_000, behind_best_high_points=1.234)
PERFECT = {
    "test_accuracy_percent": 100.0, "test_half_width_points": 12.1, "test_low_percent": 75.8,
    "test_high_percent": 100.0,
}  # fmt: skip
SEARCHED = {"in_ship_set": "unknown", "test_half_width_points": np.nan}
FORMS = [
    ([BEST, NO, NO], {}, "Ship FitNets on A: 75.20 ± 0.80 % on test; all 2 others are shown to be "
     "worse by 0.5 points."),
    ([BEST, NO], {}, "Ship FitNets on A: 75.20 ± 0.80 % on test; KD on A is shown to be worse by "
     "0.5 points."),
    ([BEST, YES, NO], {}, "Ship FitNets on A: 75.20 ± 0.80 % on test; AT on A is not shown to be "
     "worse by 0.5 points."),
    ([BEST, YES, UNKNOWN, NO], {}, "Ship FitNets on A: 75.20 ± 0.80 % on test; 2 of 3 others are "
     "not shown to be worse by 0.5 points."),
    ([BEST, YES, UNKNOWN], {}, "Ship FitNets on A: 75.20 ± 0.80 % on test; none of 2 others is "
     "shown to be worse by 0.5 points."),
    ([BEST], {}, "Ship FitNets on A: 75.20 ± 0.80 % on test; no other student is a candidate."),
    ([BEST, YES, NO], {"limits": ShipLimits(max_parameters=9)}, "Within the limits ship FitNets "
     "on A: 75.20 ± 0.80 % on test; AT on A is not shown to be worse by 0.5 points."),
    ([{**BEST, **PERFECT}, YES], {}, "Ship FitNets on A: 100.0 % (75.8–100.0) on test; AT on A is "
     "not shown to be worse by 0.5 points."),
    ([{**BEST, "test_half_width_points": np.nan}, UNKNOWN], {}, "So far validation alone chose "
     "FitNets on A (90.00 %); without its test results nobody can say how sure that is."),
    ([{**BEST, **SEARCHED, "status": "not_confirmed"}], {}, "Not confirmed: FitNets on A leads by "
     "search score (91.00 %), which is not a result yet."),
    ([{**BEST, **SEARCHED}], {"has_test_images": False}, "Without test images nobody can say how "
     "sure it is: on validation FitNets on A leads by search score (91.00 %)."),
    ([{**BEST, **SEARCHED, "status": "incomplete"}], {}, "Fewer than 3 seeds are finished, too "
     "few to choose: so far FitNets on A leads by search score (91.00 %)."),
    ([{**BEST, **SEARCHED, "status": "unstable"}], {}, "No confirmed student is without a "
     "diverged seed: only FitNets on A leads by search score (91.00 %)."),
    ([], {}, "No student can be shipped: no trial has succeeded yet."),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "facts", "sentence"), FORMS)
def test_every_form_is_a_sentence_of_at_most_25_words(rows, facts, sentence):
    assert describe_ship_set(SHIP.make_frame(rows), **facts) == [sentence]
    assert len(sentence.split()) <= 25


def test_the_smallest_of_the_set_is_named():
    larger = ship_row("kd", "Large", parameters=10**9)
    rows = [BEST, larger, SMALL, ship_row("kd", "Tiniest", "no", parameters=1)]
    _, sentence = describe_ship_set(SHIP.make_frame(rows))
    assert sentence == (
        "Of these AT on Tiny is the smallest: 1,000 parameters instead of 200,000, at most 1.23 "
        "points worse (95 %)."
    )
    assert len(sentence.split()) <= 25
    not_compared = ship_row("at", "Tiny", "unknown", parameters=1_000)
    _, sentence = describe_ship_set(SHIP.make_frame([BEST, not_compared]))
    assert sentence.endswith("1,000 parameters instead of 200,000.")
    unmeasured = [{**row, "parameters": None} for row in (BEST, SMALL)]
    assert len(describe_ship_set(SHIP.make_frame(unmeasured))) == 1


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        (four_cells(), "Ship AT on A: 89.8 % (86.4–92.3) on test; all 5 "),
        (half_confirmed(), "Ship AT on A: 89.8 % (86.4–92.3) on test; all 5 "),
        (one_method(), "Ship AT on A: 74.8 % (64.5–82.8) on test; no "),
        (diverged_seed(), "Ship AT on A: "),
        (
            Sweep().search("at", "A", 0.7),
            "Not confirmed: AT on A leads by search score (70.00 %), ",
        ),
        (Sweep(), "No student can be shipped: no trial has succeeded yet."),
    ],
)
def test_every_sweep_says_what_to_ship(sweep, sentence):
    tables = sweep.tables
    assert tables.ship_sentences[0].startswith(sentence)
    assert len(ship_view(tables.ship)["student"]) == tables.ship["in_ship_set"].notna().sum()


def test_a_sweep_without_test_images_says_that_nobody_can_be_sure():
    events = [sweep_started(test_images=0), *Sweep().search("at", "A", 0.7).events[1:]]
    [sentence] = build_sweep_tables(events).ship_sentences
    assert sentence.startswith("Without test images nobody can say how sure it is")


def test_each_look_at_test_spends_a_part_of_the_false_alarms():
    def look_at(*looks):
        results = results_of(0.80, 0.82, 0.815, seeds=5)
        looked = {cell: replace(result, looks=looks) for cell, result in results.items()}
        return ship_table(board(), looked)

    once, first, second = look_at(), look_at(5), look_at(3, 5)
    points, bounds = "behind_best_points", "behind_best_high_points"
    np.testing.assert_allclose(first[points], once[points])
    np.testing.assert_allclose(second[points], once[points])
    assert (first[bounds] > once[bounds])[1:].all()  # 10 and 20 seeds are still to come
    assert (second[bounds] > once[bounds])[1:].all()


def test_of_equals_on_validation_the_smallest_is_best_then_the_first():
    equal = (90.0, 90.0 + 1e-13, 90.0)
    results = results_of(0.8, 0.8, 0.8)
    first = ship_table(board(equal), results)
    assert (first["method"][0], first["model"][0]) == CELLS[0]
    smallest = ship_table(board(equal, parameters=[9, 9, 5]), results)
    assert (smallest["method"][0], smallest["model"][0]) == CELLS[2]
