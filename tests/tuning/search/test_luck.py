"""Luck, and what is left to gain: their bounds, and the same by hand in one dimension."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_trials import LR, make_trials, peak_at
from optuna.distributions import CategoricalDistribution
from sweep_harness import sweep_config

from kdtune.log.distributions import parse_distributions
from kdtune.log.events import EVENTS, TrialProposed
from kdtune.reports.tables.statistics import Estimate, decide_verdict
from kdtune.tuning.search import luck
from kdtune.tuning.search.cell_model import CellModel
from kdtune.tuning.search.luck import draw_left_to_gain, search_luck
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.search.studies import CellStudies


def test_the_seed_decides_all_and_nothing_is_below_zero():
    model = CellModel(make_trials(peak_at(0.6)), LR)
    gains = draw_left_to_gain(model, 3)
    assert (gains >= 0).all() and gains.max() > 0
    assert (gains == draw_left_to_gain(model, 3)).all()
    assert (gains != draw_left_to_gain(model, 4)).any()


def test_the_warp_bounds_what_is_left_to_gain():
    model = CellModel(make_trials(peak_at(0.6), count=4), LR)
    worst = min(trial.value for trial in model.trials)
    assert draw_left_to_gain(model, 0).max() < model.warp.top - worst + 0.05


def test_a_search_that_saw_one_side_of_the_peak_has_more_left_to_gain():
    one_side = make_trials(peak_at(0.9), count=40)
    one_side = [trial for trial in one_side if trial.params["lr"] < 0.5]
    both = make_trials(peak_at(0.9), count=len(one_side))
    gains = [draw_left_to_gain(CellModel(trials, LR), 0).mean() for trials in (one_side, both)]
    assert gains[0] > 3 * gains[1]


def test_what_is_left_to_gain_is_the_best_of_a_grid_minus_the_models_choice(monkeypatch):
    """In one dimension, draws on a fine grid show the same."""
    monkeypatch.setattr(luck, "OVERCONFIDENCE", 1.0)
    model = CellModel(make_trials(peak_at(0.6), count=8), LR)
    mean, _ = model.posterior()
    best = model.points[[int(mean.argmax())]]
    points = torch.from_numpy(np.vstack([best, np.linspace(0, 1, 200)[:, None]]))
    center, covariance = model.process.posterior(points, joint=True)
    rng = np.random.default_rng(0)
    moments = center.numpy(), covariance.numpy()
    accuracies = model.warp.invert(rng.multivariate_normal(*moments, 4_000, check_valid="ignore"))
    expected = (accuracies.max(axis=1) - accuracies[:, 0]).mean()
    gains = [draw_left_to_gain(model, seed).mean() for seed in range(4)]
    assert np.mean(gains) == pytest.approx(expected, rel=0.1)


def test_choices_stay_choices():
    space, trials = {**LR, "size": CategoricalDistribution(["small", "large"])}, []
    for number, trial in enumerate(make_trials(peak_at(0.5), count=16)):
        size = ("small", "large")[number % 2]
        trial.params, trial.distributions = {**trial.params, "size": size}, space
        trial.value -= 0.1 * (size == "large")
        trials.append(trial)
    assert 0 <= draw_left_to_gain(CellModel(trials, space), 0).mean() < 0.05


def test_luck_adds_what_redrawn_settings_and_what_is_left_to_gain_vary():
    """Two settings: the best of two draws is the worse one with a chance of a quarter."""
    trials = make_trials(peak_at(0.6), count=2)
    model = CellModel([*trials, trials[0]], LR)  # a repeat is no new setting
    mean, _ = model.posterior()
    expected = np.ptp(model.warp.invert(mean[:2]))
    redrawn = expected * (1 / 4 * 3 / 4) ** 0.5
    assert search_luck(model, np.zeros(9)) == pytest.approx(redrawn)
    assert search_luck(model, np.array([0.0, 0.2])) == pytest.approx((redrawn**2 + 0.01) ** 0.5)


def test_a_short_search_with_wide_scores_has_much_luck_though_its_model_is_sure():
    """The best of five random trials differs by more than the noise of runs."""
    best, lucks = [], []
    for seed in range(12):
        trials = make_trials(lambda x: 0.4 - 0.3 * abs(x - 0.6), count=5, seed=seed)
        model = CellModel(trials, LR)
        best.append(model.estimates()[0].mean)
        lucks.append(search_luck(model, draw_left_to_gain(model, 0)))
    true = float(np.std(best))
    assert 0.5 * true < np.sqrt(np.mean(np.square(lucks))) < 2 * true


RECORDED = Path(__file__).with_name("at_against_itself.jsonl")
"""Two searches of AT, the second one under the name at2, for MultiBranchNet on CIFAR-10.

12 trials of 6 epochs each, JPEGs at 10 px. What they chose was trained with 5 fresh seeds and
tested on 10,000 images: 44.66 and 44.04 %, where the seeds have a standard error of 0.19 points
and the images of 0.09.
"""

RECORDED_DIFFERENCE = Estimate(0.62, 5, 10_000, 5, 0, 0.191**2, 0.092**2, 0.0, 0.0)


def test_luck_keeps_a_method_from_beating_itself():
    events = [EVENTS.validate_json(line) for line in RECORDED.read_text().splitlines()]
    methods = ("at", "at2")
    proposal = next(event for event in events if isinstance(event, TrialProposed))
    distributions = parse_distributions(proposal.distributions)
    space = replace(load_spaces()["at"], distributions=distributions, start_points=[])
    config = sweep_config(methods=methods, models="MultiBranchNet", sampler="gp", trials=12)
    studies = CellStudies(config, dict.fromkeys(methods, space))
    for event in events:
        studies.fold(event)
    models = [studies.model_cell((method, "MultiBranchNet")) for method in methods]
    variance = sum((100 * model.search_luck) ** 2 for model in models)
    with_luck = replace(RECORDED_DIFFERENCE, variance_search=variance)
    verdicts = [
        decide_verdict(difference, difference.p_value)
        for difference in (RECORDED_DIFFERENCE, with_luck)
    ]
    assert verdicts == ["better_a", "unclear"]
