"""The leaderboard of small sweeps, against what is worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from event_logs import OPENING_FIELDS
from report_sweeps import CONDITIONS, EVENTS, IMAGES, PROFILE, Sweep, four_cells, sweep_started
from scipy.stats import t

from kdtune.errors import UserError
from kdtune.log.events import ConfirmStarted
from kdtune.reports.tables.columns import LEADERBOARD
from kdtune.reports.tables.leaderboard import build_sweep_tables, redundant_columns
from kdtune.reports.tables.several_sweeps import explain_separate_tables, join_leaderboards


def test_the_columns_are_those_of_the_specification():
    assert build_sweep_tables([]).leaderboard.columns.tolist() == LEADERBOARD.names
    assert four_cells().tables.leaderboard.columns.tolist() == LEADERBOARD.names


def test_before_it_is_confirmed_there_is_a_row_a_cell_best_first():
    table = build_sweep_tables(EVENTS).leaderboard
    assert table[["model", "method", "status"]].values.tolist() == [
        ["A", "at", "not_confirmed"],
        ["A", "kd", "not_confirmed"],
        ["B", "at", "failed"],
    ]
    kd = table.iloc[1]
    assert kd.trial_id == "kd-A-000"  # the earliest of equals, and one that can be repeated
    assert kd.search_best_percent == 25.0
    assert (kd.trials_started, kd.trials_finished, kd.trials_stopped) == (4, 1, 1)
    assert (kd.trials_diverged, kd.trials_crashed) == (1, 0)
    assert (kd.search_epochs, kd.search_device_seconds) == (4, 9.0)
    assert (
        table[["rank", "test_accuracy_percent", "gain_over_student_points"]]
        .isna()
        .to_numpy()
        .all()
    )
    assert table.seeds_finished.tolist() == [0, 0, 0]


@pytest.mark.parametrize("events", [[], EVENTS[:1], EVENTS[:2]])
def test_a_sweep_that_has_barely_started_has_tables_too(events):
    tables = build_sweep_tables(events)
    assert tables.leaderboard.status.tolist() == ["running"] * len(tables.trials)


def score_interval(share, images, quantile):
    """Return the roots of (p - share)² = q² · p · (1 - p) / n, in percent."""
    q2 = quantile**2 / images
    return sorted(100 * np.roots([1 + q2, -2 * share - q2, share**2]))


def test_a_confirmed_cell_by_hand():
    sweep = Sweep().search("at", "A", 0.5, 0.6, 0.9, "diverged", 0.8, "crashed")
    sweep.confirm("at", "A", 2, [0.5, 0.5, 0.5], 0.7, choose=False)
    sweep.confirm("at", "A", 4, [0.6, 0.7, 0.8], 0.75)
    sweep.image_scores = {
        f"at-A-004-seed{seed}": np.arange(4) < right for seed, right in ((1, 2), (2, 3), (3, 4))
    }
    sweep.confirm_events.append(PROFILE)
    row = sweep.leaderboard.loc["at", "A"]
    wilson = score_interval(0.75, 4.50665, t.isf(0.025, 8.036))
    assert (row.status, row.trial_id) == ("ok", "at-A-004")
    assert json.loads(row.configuration)["lr"] == 0.5
    assert (row.test_accuracy_percent, row.test_seed_sd_points) == (75, 25)
    # V = 208.3 of seeds + 138.9 of images, df = 2 · 347.2² / (208.3² - 115.7²) = 8.036;
    # Wilson's interval of 4 · (75 · 25 / 4 + 612.2) / (347.2 + 612.2) = 4.507 images.
    assert (row.test_low_percent, row.test_high_percent) == pytest.approx(wilson, abs=1e-3)
    assert row.test_half_width_points == pytest.approx((wilson[1] - wilson[0]) / 2, abs=1e-3)
    assert (row.seeds_finished, row.seeds_diverged, row.test_images, row.validation_images) == (
        (3, 0, 4, 2000)
    )
    assert (row.validation_accuracy_percent, row.validation_seed_sd_points) == (75, 0)
    assert row.search_best_percent == 90
    assert row.optimism_gap_points == pytest.approx(20)  # of the trial that was not chosen
    assert row.validation_minus_test_points == 0
    assert pd.isna(row.left_to_gain_points)  # without a model
    assert (row.search_epochs, row.confirm_epochs, row.confirm_device_seconds) == (6, 6, 12.0)
    assert (row.parameters, row.macs, row.latency_ms, row.latency_device) == (7, 9, 1.5, "cpu")
    # Five values, of which the diverged one is 50, chance of two classes, and not 99.
    values, chances = [50, 50, 60, 80, 90], np.diff((np.arange(6) / 5) ** 5)
    mean = chances @ values
    assert row.search_luck_points == pytest.approx((chances @ (values - mean) ** 2) ** 0.5)
    assert pd.isna(row["rank"])  # there is nobody to be better than


def balanced(sweep, **values):
    """Return a sweep whose epochs and test results have balanced accuracies, by trial or run."""
    for log in (sweep.events, sweep.confirm_events):
        for number, event in enumerate(log):
            name = {"epoch_finished": "validation", "run_tested": "test"}.get(event.kind)
            value = values.get(getattr(event, "trial_id", "").replace("-", "_"))
            if name is not None and value is not None:
                log[number] = event.model_copy(update={f"{name}_balanced_accuracy": value})
    return sweep


def test_balanced_accuracies():
    """They are means over the runs of the accuracies; a column with the same numbers is hidden."""
    search = {"at_A_000": 0.5, "at_A_001": 0.7, "at_A_002": 0.6}
    sweep = balanced(Sweep().search("at", "A", 0.8, 0.9).repeat("at", "A", 1, 0.85), **search)
    board = sweep.leaderboard
    assert board.validation_balanced_accuracy_percent.tolist() == [pytest.approx(65)]
    assert redundant_columns(board) == {"test_balanced_accuracy_percent"}
    runs = {"at_A_001_seed1": 0.5, "at_A_001_seed2": 0.6, "at_A_001_seed3": 0.7}
    sweep = balanced(sweep.confirm("at", "A", 1, [0.75] * 3), **runs)
    row = sweep.leaderboard.loc["at", "A"]
    assert row.validation_balanced_accuracy_percent == pytest.approx(60)
    assert row.test_balanced_accuracy_percent == pytest.approx(60)
    assert redundant_columns(sweep.leaderboard) == set()
    both = {f"{split}_balanced_accuracy_percent" for split in ("validation", "test")}
    equal = balanced(Sweep().search("at", "A", 0.75).confirm("at", "A", 0, [0.75], 0.75),
                     at_A_000=0.75, at_A_000_seed1=0.75)  # fmt: skip
    equal.image_scores = {"at-A-000-seed1": np.arange(4) < 3}
    assert redundant_columns(equal.leaderboard) == both
    assert redundant_columns(four_cells().leaderboard) == both  # of an earlier version


def test_a_diverged_trial_counts_as_the_largest_class():
    """The best of two draws from two scores, 80 and that of one class: 80 with a chance of 3/4."""
    for config, counts, chance in (
        ({}, (), 50),
        ({}, (14, 6), 70),
        ({"metric": "balanced_accuracy"}, (14, 6), 50),
    ):
        sweep = Sweep().search("at", "A", 0.8, "diverged")
        sweep.events[0] = sweep_started(config, validation_class_counts=counts)
        expected = (80 - chance) * (3 / 4 * 1 / 4) ** 0.5
        assert sweep.leaderboard.search_luck_points.tolist() == [pytest.approx(expected)]


def test_the_looks_are_those_of_the_log():
    sweep = Sweep().search("at", "A", 0.7).confirm("at", "A", 0, [0.9, 0.8, 0.85, 0.7, 0.8])
    sweep.search("student", "A", 0.7).confirm("student", "A", 0, [0.7] * 5)
    assert {*sweep.tables.comparison["looks"]} == {1}
    opening = ConfirmStarted(config={}, seeds=5, top=1, candidates=(), **OPENING_FIELDS)
    sweep.confirm_events.insert(0, opening)
    row = sweep.tables.comparison.iloc[0]
    assert (row.look, row.looks, row.seeds) == (1, 3, 5)
    assert 0.018 < row.level < 0.05


def test_ranks_and_gains_follow_the_verdicts():
    board = four_cells().leaderboard
    assert board["rank"].unstack().to_dict() == {
        "A": {"at": 1, "fitnets": 2, "student": 3},
        "B": {"at": 1, "fitnets": 1, "student": 1},
    }
    assert board.loc[("at", "A")].gain_over_student_points == pytest.approx(30, abs=0.2)
    assert board.loc[("at", "A")].gain_over_student_half_width_points > 0
    assert pd.isna(board.loc[("student", "A")].gain_over_student_points)
    order = four_cells().tables.leaderboard
    assert order.method.tolist()[:3] == ["at", "fitnets", "student"]
    assert order.model.tolist() == ["A"] * 3 + ["B"] * 3


def test_a_baseline_that_wins_is_ranked_first():
    sweep = Sweep()
    for method, accuracy in (("at", 0.6), ("student", 0.9)):
        sweep.search(method, "A", 0.7).confirm(method, "A", 0, [accuracy] * 3)
    assert sweep.leaderboard["rank"].droplevel("model").to_dict() == {"student": 1, "at": 2}


def cell_of(search, *confirmed, choose=0):
    """Return a sweep of one cell: scores of its trials, results of the first trials' runs."""
    sweep = Sweep().search("at", "A", *search)
    for number, accuracies in enumerate(confirmed):
        sweep.confirm("at", "A", number, accuracies, choose=number == choose)
    return sweep


@pytest.mark.parametrize(
    ("sweep", "status", "diverged", "tested"),
    [
        (cell_of([0.7], [0.7, 0.7, 0.7]), "ok", 0, True),
        (cell_of([0.7], [0.7, 0.7, 0.7, "diverged"]), "unstable", 1, True),
        (cell_of([0.7], [0.7, 0.7, "diverged"]), "unstable", 1, True),
        (cell_of([0.7], [0.7, 0.7, "crashed"]), "incomplete", 0, True),
        (cell_of([0.7], [0.7, 0.7, 0.7, "crashed"]), "ok", 0, True),
        (cell_of([0.7], [0.7, 0.7, 0.7], choose=None), "incomplete", 0, False),
        (cell_of([0.7, 0.6], ["diverged"] * 3, ["crashed", "diverged", "diverged"], choose=None),
         "failed", 2, False),
        (cell_of([0.7], ["crashed"] * 3, choose=None), "incomplete", 0, False),
        (cell_of([0.7]), "not_confirmed", 0, False),
        (cell_of(["diverged", "crashed"]), "failed", 0, False),
    ],
)  # fmt: skip
def test_statuses(sweep, status, diverged, tested):
    row = sweep.leaderboard.loc["at", "A"]
    assert (row.status, row.seeds_diverged) == (status, diverged)
    assert pd.notna(row.test_accuracy_percent) == tested
    assert pd.notna(row.test_half_width_points) == (tested and row.seeds_finished >= 3)


def test_a_cell_that_failed_makes_its_comparisons_unstable():
    sweep = Sweep().search("at", "A", 0.7).confirm("at", "A", 0, ["diverged"] * 3, choose=False)
    sweep.search("kd", "A", 0.7).confirm("kd", "A", 0, [0.7] * 3)
    [row] = sweep.tables.comparison.itertuples()
    assert row.verdict == "unstable"
    assert row.sentence == "AT diverged in 3 of 3 seeds on A. No winner is declared."
    assert sweep.leaderboard["rank"].isna().all()


def test_what_was_not_searched_has_no_luck():
    assert Sweep().search("at", "A", 0.7).leaderboard.search_luck_points.tolist() == [0]


def test_a_lost_file_of_predictions_leaves_the_rest():
    sweep = four_cells()
    del sweep.image_scores["at-A-000-seed1"]
    row = sweep.leaderboard.loc["at", "A"]
    assert row.test_accuracy_percent == pytest.approx(90, abs=0.3)
    assert pd.isna(row.test_half_width_points) and row.seeds_finished == 3


def test_a_choice_that_was_never_searched_is_a_sentence():
    sweep = Sweep().search("at", "A", 0.5).confirm("at", "A", 7, [0.5])
    with pytest.raises(UserError, match="damaged: at-A-007 was confirmed, but never searched"):
        _ = sweep.tables


def test_groups_widen_the_interval_and_leave_the_mean():
    sweep = Sweep().search("at", "A", 0.7).confirm("at", "A", 0, [0.7, 0.6, 0.65])
    logs = sweep.events, sweep.confirm_events, sweep.image_scores
    alone, grouped = (
        build_sweep_tables(*logs, groups=groups).leaderboard.iloc[0]
        for groups in (None, [i // 40 for i in range(IMAGES)])
    )
    assert grouped.test_accuracy_percent == alone.test_accuracy_percent
    assert grouped.test_half_width_points > 2 * alone.test_half_width_points


def test_sweeps_that_agree_are_joined_and_told_apart():
    one, two = four_cells().tables, build_sweep_tables(EVENTS)
    [board] = join_leaderboards(
        {"r/one": one, "r/two": two}, {"r/one": CONDITIONS, "r/two": CONDITIONS}
    )
    assert board.columns.tolist() == ["sweep", *LEADERBOARD.names, "settings"]
    assert board[["model", "sweep", "method"]].values.tolist()[:5] == [
        ["A", "r/one", "at"],
        ["A", "r/one", "fitnets"],
        ["A", "r/one", "student"],
        ["A", "r/two", "at"],
        ["A", "r/two", "kd"],
    ]
    assert explain_separate_tables({"r/one": CONDITIONS, "r/two": CONDITIONS}) == []


def test_sweeps_that_differ_are_kept_apart_and_it_is_said_why():
    abouts = {
        "a": CONDITIONS, "b": {**CONDITIONS, "data": "g", "teacher": "sha"}, "c": CONDITIONS,
        "d": {**CONDITIONS, "epochs": 6},
    }  # fmt: skip
    boards = join_leaderboards(dict.fromkeys(abouts, build_sweep_tables(EVENTS)), abouts)
    assert [board.sweep.unique().tolist() for board in boards] == [["a", "c"], ["b"], ["d"]]
    assert explain_separate_tables(abouts) == [
        "a, c and b are kept apart: they differ in data and teacher.",
        "a, c and d are kept apart: they differ in epochs.",
        "b and d are kept apart: they differ in data and teacher and epochs.",
    ]


def test_a_single_sweep_has_no_column_for_it():
    [board] = join_leaderboards({"s": build_sweep_tables(EVENTS)}, {"s": CONDITIONS})
    assert board.columns.tolist() == [*LEADERBOARD.names, "settings"]
    assert board.settings.tolist() == ["lr=0.1 beta=10", "lr=0.2", ""]


def test_repeats_are_trials_but_no_settings():
    sweep = Sweep().search("at", "A", 0.80, 0.70, 0.78).repeat("at", "A", 0, 0.70)
    row = sweep.leaderboard.loc["at", "A"]
    assert (row.trials_started, row.trials_finished, row.trials_repeated) == (4, 4, 1)
    assert row.search_epochs == 4
    assert (row.trial_id, row.search_best_percent) == ("at-A-002", 78)  # the other mean is 75
    assert row.search_noise_sd_points == pytest.approx(10 / 2**0.5)  # of 80 and 70
    # One score a setting: 75, 70, 78.
    values, chances = [70, 75, 78], np.diff((np.arange(4) / 3) ** 3)
    luck = (chances @ (values - chances @ values) ** 2) ** 0.5
    assert row.search_luck_points == pytest.approx(luck)


def test_a_model_names_the_best_trial_and_the_noise_until_it_is_stale():
    sweep = Sweep().search("at", "A", 0.80, 0.70, 0.78).model("at", "A", 0.02, t1=0.74, t0=0.73)
    row = sweep.leaderboard.loc["at", "A"]
    assert (row.trial_id, row.search_best_percent) == ("at-A-001", 70)
    assert (row.search_noise_sd_points, row.trials_repeated) == (2, 0)
    row = sweep.search("at", "B", 0.5).leaderboard.loc["at", "A"]  # another cell
    assert row.trial_id == "at-A-001"
    row = sweep.repeat("at", "A", 1, 0.60).leaderboard.loc["at", "A"]
    assert row.trial_id == "at-A-000"
    assert row.search_noise_sd_points == pytest.approx(10 / 2**0.5)


def test_luck_and_what_is_left_to_gain_are_those_of_the_model_until_it_is_stale():
    sweep = Sweep().search("at", "A", 0.80, 0.70)
    plain = sweep.leaderboard.search_luck_points.item()
    sweep.model("at", "A", changes={"left_to_gain": 0.035, "search_luck": 0.02}, t0=0.8)
    row = sweep.leaderboard.loc["at", "A"]
    assert (row.left_to_gain_points, row.search_luck_points) == (pytest.approx(3.5), 2)
    row = sweep.repeat("at", "A", 1, 0.70).leaderboard.loc["at", "A"]
    assert pd.isna(row.left_to_gain_points) and row.search_luck_points == plain


def test_the_optimism_is_that_of_the_mean():
    sweep = Sweep().search("at", "A", 0.80).repeat("at", "A", 0, 0.70)
    row = sweep.confirm("at", "A", 0, [0.7] * 3, 0.71).leaderboard.loc["at", "A"]
    assert (row.search_best_percent, row.optimism_gap_points) == (75, pytest.approx(4))
