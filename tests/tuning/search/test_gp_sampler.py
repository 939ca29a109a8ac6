"""The sampler gp: noise, failures, and what other cells know."""

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from kdtune.tuning.search.cell_model import CellModel
from kdtune.tuning.search.gp_sampler import STARTUP_TRIALS, GaussianProcessSampler

SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


def accuracy(params, peak=0.7):
    return 0.9 - (params["x"] - peak) ** 2 - (params["y"] - peak) ** 2 / 4


def run_study(trials, value=accuracy, seed=0, **arguments):
    """Return a study; each trial has a sampler of its own, as in a sweep."""
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        study.sampler = GaussianProcessSampler(seed=100 * seed + number, **arguments)
        trial = study.ask(SPACE)
        study.tell(trial, value(trial.params))
    return study


def distances(study, peak=0.7):
    return [np.hypot(t.params["x"] - peak, t.params["y"] - peak) for t in study.trials]


def test_it_comes_to_the_peak():
    nearest = [min(distances(run_study(STARTUP_TRIALS + 10, seed=seed))) for seed in range(2)]
    assert max(nearest) < 0.15


def test_it_keeps_away_from_settings_that_failed():
    """Trials with x above 0.6 diverge, and count as the worst so far."""
    study = run_study(STARTUP_TRIALS + 12, lambda p: 0.1 if p["x"] > 0.6 else 0.5 + p["x"] / 2)
    late = study.trials[-6:]
    assert sum(t.params["x"] > 0.6 for t in late) <= 3
    assert max(t.value for t in study.trials) > 0.75


def test_points_that_are_tried_now_are_not_proposed_again():
    study = run_study(STARTUP_TRIALS + 2)
    study.sampler = GaussianProcessSampler(seed=7)
    running = [study.ask(SPACE).params for _ in range(3)]
    points = [tuple(params.values()) for params in running]
    gaps = [np.hypot(*np.subtract(a, b)) for i, a in enumerate(points) for b in points[:i]]
    assert min(gaps) > 0.01


@pytest.mark.parametrize("space", [None, SPACE])
def test_without_other_cells_the_first_trials_are_random(space):
    study = run_study(STARTUP_TRIALS, space=space)
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert study.trials[0].params == random.ask(SPACE).params


def test_other_cells_show_where_to_begin():
    """Every other one of the first trials is near the peak of another cell."""
    teacher = run_study(20, seed=5)
    source = CellModel(teacher.get_trials(), SPACE)
    taught = [run_study(4, seed=seed, space=SPACE, sources=[source]) for seed in range(3)]
    chosen = np.array([distances(study)[1::2] for study in taught])
    drawn = np.array([distances(study)[::2] for study in taught])
    assert chosen.mean() < 0.3 < drawn.mean()


def test_a_cell_with_another_peak_is_outvoted():
    teacher = run_study(20, lambda p: accuracy(p, 0.1), seed=5)
    sources = [CellModel(teacher.get_trials(), SPACE)]
    study = run_study(STARTUP_TRIALS + 14, space=SPACE, sources=sources)
    assert min(distances(study)) < 0.2
