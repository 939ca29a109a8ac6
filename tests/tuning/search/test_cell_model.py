"""The model of a cell: its warp, its estimates, and what other cells give it."""

import numpy as np
import pytest
import torch
from cell_trials import LR, make_trial, make_trials, peak_at
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from kdtune.tuning.search.cell_model import MAX_TRIALS, CellModel, Warp

OTHER = {"temperature": FloatDistribution(0, 1)}


def test_the_warp_by_hand():
    warp = Warp([0.5, 0.8, 0.9])  # best 0.9, median 0.8: the top is 0.9 + 0.3 · 0.1
    raw = -np.log([0.43, 0.13, 0.03])
    assert warp.top == pytest.approx(0.93)
    assert warp.values == pytest.approx((raw - raw.mean()) / raw.std())
    assert warp.values.mean() == pytest.approx(0) and warp.values.std() == pytest.approx(1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_warp_keeps_the_order_and_can_be_inverted(accuracies):
    warp = Warp(accuracies)
    assert warp.invert(warp.values) == pytest.approx(np.array(accuracies), abs=1e-6)
    order = np.argsort(accuracies, kind="stable")
    assert (np.diff(warp.values[order]) >= -1e-9).all()


def test_the_slope_is_that_of_the_inverse():
    warp, values = Warp([0.5, 0.8, 0.9]), np.array([-1.0, 0.0, 1.5])
    numeric = (warp.invert(values + 1e-6) - warp.invert(values - 1e-6)) / 2e-6
    assert warp.slope(values) == pytest.approx(numeric, rel=1e-5)


def test_a_lucky_trial_is_not_the_best_if_its_repeats_are_worse():
    """Settings at 0.3 had one lucky run of 0.95 and three of 0.80; those at 0.7 have 0.90."""
    lucky = [make_trial(value, "at-A-000", lr=0.3) for value in (0.95, 0.80, 0.80, 0.80)]
    steady = [make_trial(value, "at-A-001", lr=0.7) for value in (0.90, 0.89, 0.91, 0.90)]
    bad = [make_trial(0.5 + x / 10, f"at-A-{2 + i:03d}", lr=x) for i, x in enumerate((0.0, 1.0))]
    estimates = CellModel([*lucky, *steady, *bad], LR).estimates()
    assert [e.trial_id for e in estimates[:2]] == ["at-A-001", "at-A-000"]
    assert estimates[0].mean == pytest.approx(0.90, abs=0.02)
    assert 0 < estimates[0].sd < 0.05


def test_trials_that_were_stopped_have_no_estimate_but_count_as_values():
    stopped = make_trial(0.85, "at-A-099", lr=0.5)
    stopped.set_user_attr("finished", False)
    trials = make_trials(peak_at(0.6))
    model = CellModel([*trials, stopped], LR)
    assert len(model.points) == 13
    assert {e.trial_id for e in model.estimates()} == {t.user_attrs["trial_id"] for t in trials}


def test_the_noise_is_that_of_repeats():
    rng, trials = np.random.default_rng(3), []
    for i, x in enumerate(np.linspace(0, 1, 8)):
        for _ in range(6):
            trials.append(make_trial(peak_at(0.5)(x) + rng.normal(0, 0.02), f"at-A-{i:03d}", lr=x))
    assert CellModel(trials, LR).noise_sd == pytest.approx(0.02, rel=0.6)


def prior_mean_at(model, *points):
    return model.prior_mean(torch.tensor([[p] for p in points], dtype=torch.float64))


def test_a_cell_without_trials_expects_what_others_found():
    model = CellModel([], LR, [CellModel(make_trials(peak_at(0.8)), LR)])
    low, high = prior_mean_at(model, 0.1, 0.8)
    assert high > low


def test_a_cell_that_disagrees_gives_nothing():
    """The other cell falls where this one rises."""
    other = CellModel(make_trials(lambda x: 0.9 - 0.4 * x), LR)
    own = make_trials(lambda x: 0.5 + 0.4 * x, seed=1)
    assert CellModel(own, LR, [other]).prior_mean is None
    assert CellModel(own, LR, [CellModel(own, LR)]).prior_mean is not None


def test_cells_that_share_no_setting_or_have_few_trials_give_nothing():
    few = CellModel(make_trials(peak_at(0.8), count=2), LR)
    unlike = CellModel([make_trial(x, temperature=x) for x in (0.2, 0.4, 0.6)], OTHER)
    assert CellModel([], LR, [few, unlike]).prior_mean is None


def best_point(model):
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    return float(grid[int(model.process.posterior(grid)[0].argmax())])


def test_a_prior_mean_moves_the_best_point_where_a_cell_has_few_trials():
    """The cell's three trials have seen one side of the peak at 0.8."""
    own = [make_trial(peak_at(0.8)(x), f"at-A-{i:03d}", lr=x) for i, x in enumerate((0, 0.1, 0.2))]
    source = CellModel(make_trials(peak_at(0.8)), LR)
    assert best_point(CellModel(own, LR)) < 0.5 < best_point(CellModel(own, LR, [source]))


def test_a_range_of_another_cell_may_be_wider():
    """The other cell has its best lr at 0.9 of a range that is half as wide."""
    trials = make_trials(peak_at(0.9))
    for trial in trials:
        trial.params = {"lr": trial.params["lr"] / 2}
        trial.distributions = {"lr": FloatDistribution(0, 0.5)}
    source = CellModel(trials, {"lr": FloatDistribution(0, 0.5)})
    own_unit = prior_mean_at(CellModel([], LR, [source]), 0.1, 0.45)
    its_unit = prior_mean_at(CellModel([], dict(source.space), [source]), 0.2, 0.9)
    assert torch.allclose(own_unit, its_unit) and own_unit[0] < own_unit[1]
    log = CellModel([], {"lr": FloatDistribution(0.1, 1, log=True)}, [source])
    assert log.prior_mean is None


def test_a_long_search_costs_no_more_than_its_best_trials_and_some_others():
    trials = make_trials(peak_at(0.5), count=MAX_TRIALS + 100)
    model = CellModel(trials, LR)
    values = sorted((t.value for t in trials), reverse=True)
    kept = {t.value for t in model.trials}
    assert len(model.trials) == MAX_TRIALS
    assert kept >= set(values[: MAX_TRIALS // 2]) and values[-1] in kept
