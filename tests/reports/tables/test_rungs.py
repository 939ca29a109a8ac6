"""Correlations between rungs, by hand and on simulated trials."""

import numpy as np
import pandas as pd
import pytest
from report_sweeps import ended, epoch, proposed, repeated, sweep_started

from kdtune.reports.tables.columns import MIN_PROMOTED_TRIALS, RUNGS
from kdtune.reports.tables.rungs import advise_grace_period, compared_epochs, rungs_table


def events_of(curves, states=None, config=None):
    """Return the log of one cell from the best accuracies of each trial."""
    defaults = {"epochs": 8, "grace_period": 2, "reduction_factor": 2}
    events = [sweep_started(defaults | (config or {}))]
    for number, curve in enumerate(curves):
        trial = f"at-A-{number:03d}"
        events.append(proposed(trial, number))
        events += [epoch(trial, step, best) for step, best in enumerate(curve, start=1)]
        state = states[number] if states else "finished" if len(curve) == 8 else "stopped"
        events.append(ended(trial, state))
    return events


def table_of(curves, **kwargs):
    return rungs_table(events_of(curves, **kwargs)).set_index("rung_epoch")


@pytest.mark.parametrize(
    ("epochs", "grace", "factor", "measured"),
    [
        (8, 2, 2, [1, 2, 4, 8]),
        (50, 13, 2, [1, 3, 6, 13, 26, 50]),
        (9, 9, 3, [1, 3, 9]),
        (16, 1, 4, [1, 4, 16]),
        (3, 1, 2, [1, 2, 3]),
        (1, 1, 2, [1]),
    ],
)
def test_measured_are_the_rungs_and_what_earlier_ones_would_be(epochs, grace, factor, measured):
    assert compared_epochs(epochs, grace, factor) == measured


def test_trials_are_counted_and_the_winner_is_placed():
    rising = [[0.1 * n + 0.001 * e for e in range(8)] for n in range(3)]
    rising[0][7] = 0.9  # the last at first, the best in the end
    table = table_of([*rising, [0.5], [0.6, 0.6]])
    assert table.columns.tolist() == RUNGS.names[:2] + RUNGS.names[3:]
    assert table.trials_reached.tolist() == [5, 4, 3]
    assert table.trials_promoted.tolist() == [4, 3, 3]
    assert table.winner_rank_at_rung.tolist() == [5, 4, 3]
    assert table.correlation_all.isna().all()  # too few


def test_repeats_fill_no_rung():
    events = events_of([[0.5] * 8, [0.6] * 8, [0.4, 0.4]])
    repeat = [repeated("at-A-003", 3, "at-A-000")]
    repeat += [epoch("at-A-003", step, 0.9) for step in range(1, 9)]
    repeat.append(ended("at-A-003", "finished"))
    pd.testing.assert_frame_equal(rungs_table([*events, *repeat]), rungs_table(events))


def test_the_correlation_by_hand():
    """All trials are promoted: u is 1, and the correction changes nothing."""
    before, after = [*range(10)], [1, 0, *range(2, 10)]  # two neighbours change places
    curves = [[b / 10] * 4 + [a / 10 + 0.5] * 4 for b, a in zip(before, after, strict=True)]
    row = table_of(curves, config={"grace_period": 4}).loc[4]
    scores = [-1.644854, -1.036433, -0.674490, -0.385320, -0.125661]
    total = 2 * sum(s**2 for s in scores)
    expected = 1 - (scores[0] - scores[1]) ** 2 / total
    assert row.correlation_promoted == pytest.approx(expected, abs=1e-5)
    assert row.correlation_all == pytest.approx(expected, abs=1e-5)


def test_trials_that_failed_are_left_out():
    curves = [[0.1 * n] * 8 for n in range(4)]
    states = ["finished", "diverged", "crashed", "finished"]
    assert table_of(curves, states=states).trials_reached.tolist() == [2, 2, 2]


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_the_correction_undoes_that_only_the_best_are_promoted(rho):
    corrected, promoted = [], []
    for seed in range(4):
        random = np.random.default_rng(seed)
        before = random.normal(size=2000)
        after = rho * before + np.sqrt(1 - rho**2) * random.normal(size=2000)
        is_promoted = before >= np.quantile(before, 0.75)
        curves = [
            [b, a] if on else [b] for b, a, on in zip(before, after, is_promoted, strict=True)
        ]
        states = ["finished" if on else "stopped" for on in is_promoted]
        config = {"epochs": 2, "grace_period": 1}
        row = table_of(curves, states=states, config=config).loc[1]
        corrected.append(row.correlation_all)
        promoted.append(row.correlation_promoted)
    assert np.mean(corrected) == pytest.approx(rho, abs=0.06)
    assert np.mean(promoted) < rho - 0.06


def rungs(*rows):
    table = pd.DataFrame(rows, columns=["rung_epoch", "next_epoch", "correlation_all"])
    return table.assign(method="at", model="A", trials_reached=20, trials_promoted=12)


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        (
            [(1, 2, 0.1), (2, 4, 0.2), (4, 8, 0.6)],
            "The grace period of 4 epochs holds: at every rung the order of trials tells that at "
            "the next (rank correlation 0.60 or more).",
        ),
        (
            [(2, 4, 0.9), (4, 8, 0.3), (8, 16, 0.7)],
            "The grace period is too short: the order of trials after epoch 4 says little of that "
            "after epoch 8 (rank correlation 0.30); --grace-period 8 waits.",
        ),
        (
            [(1, 2, 0.7), (2, 4, 0.85), (4, 8, 0.95)],
            "The grace period could be shorter: from epoch 2 on, trials keep their order (rank "
            "correlation 0.85 or more); --grace-period 2 saves epochs.",
        ),
        (
            [(1, 2, 0.5), (2, 4, 0.9), (4, 8, np.nan)],
            "The grace period could be shorter: from epoch 2 on, trials keep their order (rank "
            "correlation 0.90 or more); --grace-period 2 saves epochs.",
        ),
        (
            [(1, 2, 0.5), (2, 4, 0.5), (4, 8, np.nan)],
            f"The grace period cannot be judged: that takes a cell with {MIN_PROMOTED_TRIALS} "
            "trials that were promoted at a rung, and at most 12 were.",
        ),
    ],
)
def test_the_advice_follows_from_the_table(rows, advice):
    assert advise_grace_period(rungs(*rows), 4) == advice


def test_cells_are_averaged():
    two = pd.concat([rungs((4, 8, 0.3)), rungs((4, 8, 0.9)).assign(model="B")])
    assert "holds" in advise_grace_period(two, 4)


@pytest.mark.parametrize("events", [[], events_of([]), events_of([[]])])
def test_a_sweep_that_has_barely_started_has_its_table_too(events):
    table = rungs_table(events)
    assert table.columns.tolist() == RUNGS.names
    assert "cannot be judged" in advise_grace_period(table, 2)
