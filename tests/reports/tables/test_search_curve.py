"""Progress of a search by hand, and what is expected of fewer trials."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sweeps import EVENTS, Sweep, ended, epoch, proposed

from kdtune.reports.tables.columns import SEARCH_CURVE
from kdtune.reports.tables.log_tables import epochs_table, trials_table
from kdtune.reports.tables.search_curve import expected_best, search_curve_table


def curve(events, chance=0.5):
    return search_curve_table(trials_table(events), epochs_table(events), chance)


def test_a_curve_by_hand():
    events = [
        *(proposed(f"at-A-{n}") for n in range(5)),
        epoch("at-A-0", 1, 0.6),
        epoch("at-A-1", 1, 0.9),  # diverges in the end
        epoch("at-A-2", 1, 0.5),
        epoch("at-A-2", 2, 0.7),
        ended("at-A-2", "finished"),  # after 4 epochs of the cell
        epoch("at-A-0", 2, 0.65),
        ended("at-A-0", "stopped"),
        epoch("at-A-1", 2, 0.1),
        ended("at-A-1", "diverged"),
        ended("at-A-3", "crashed"),
        epoch("at-A-4", 1, 0.99),  # is still running
    ]
    table = curve(events)
    assert table.columns.tolist() == SEARCH_CURVE.names
    assert table.trials.tolist() == [1, 2, 3, 4]
    assert table.epochs.tolist() == [4, 4, 5, 6]  # when t3 crashed, no epoch tells
    assert table.best_percent.tolist() == pytest.approx([70, 70, 70, 70])
    # Worth 50, 50, 65 and 70: the mean, the mean over the 6 pairs, over the 4 triples, the best.
    expected = [58.75, (50 + 65 * 2 + 70 * 3) / 6, (65 + 3 * 70) / 4, 70]
    assert table.expected_best_percent.tolist() == pytest.approx(expected)
    assert table.expected_epochs.tolist() == [1.5, 3, 4.5, 6]


def test_a_repeat_spends_epochs_and_does_not_raise_the_best():
    sweep = Sweep().search("at", "A", 0.6, 0.8).repeat("at", "A", 0, 0.9).search("at", "B", 0.7)
    table = curve(sweep.events).iloc[:3]
    assert table.trials.tolist() == table.epochs.tolist() == [1, 2, 3]
    assert table.best_percent.tolist() == pytest.approx([60, 80, 80])
    # Two settings, of 75 (the mean of 60 and 90) and 80.
    assert table.expected_best_percent.tolist() == pytest.approx([77.5, 80, np.nan], nan_ok=True)
    assert table.expected_epochs.tolist() == pytest.approx([1, 2, np.nan], nan_ok=True)


def test_cells_have_curves_of_their_own():
    table = curve(EVENTS)
    assert table[["method", "model", "trials"]].values.tolist() == [
        ["at", "A", 1],
        ["kd", "A", 1],
        ["kd", "A", 2],
        ["kd", "A", 3],
        ["at", "B", 1],
    ]
    assert table.epochs.tolist() == [4, 1, 2, 4, 0]
    assert table.best_percent.tolist() == pytest.approx([75, 25, 25, 50, np.nan], nan_ok=True)


@pytest.mark.parametrize("events", [[], EVENTS[:2], EVENTS[:4]])
def test_without_an_ended_trial_there_is_no_row(events):
    table = curve(events)
    assert table.empty and table.columns.tolist() == SEARCH_CURVE.names


values = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(values)
def test_of_one_trial_the_mean_is_expected_and_of_all_the_best(found):
    expected = expected_best(np.array(found))
    assert expected[0] == pytest.approx(np.mean(found), abs=1e-9)
    assert expected[-1] == pytest.approx(max(found), abs=1e-9)
    assert (np.diff(expected) > -1e-9).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_what_is_expected_is_the_mean_over_all_choices(found):
    counted = [np.mean([max(c) for c in combinations(found, n + 1)]) for n in range(len(found))]
    assert expected_best(np.array(found)) == pytest.approx(counted, abs=1e-9)


def test_many_trials_are_no_trouble():
    found = np.random.default_rng(0).random(1000)
    expected = expected_best(found)
    assert expected[0] == pytest.approx(found.mean()) and expected[-1] == pytest.approx(
        found.max()
    )
