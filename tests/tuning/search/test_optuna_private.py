"""Each private name of Optuna's does what kdtune needs of it."""

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution

from kdtune.tuning.search.optuna_private import (
    NormalizedSpace,
    ProcessSampler,
    ShiftedProcess,
    fit_process,
)

SPACE = {"lr": FloatDistribution(1e-3, 1e-1, log=True), "size": CategoricalDistribution([8, 16])}


def fit(points, values):
    return fit_process(np.array(points), np.array(values), np.array([False] * len(points[0])))


def test_settings_become_points_of_the_unit_cube_and_back():
    space = NormalizedSpace(SPACE)
    drawn = space.sample_normalized_params(16, np.random.RandomState(0))
    assert drawn.shape == (16, 2) and set(drawn[:, 1]) == {0.0, 1.0}
    assert space.get_unnormalized_param(np.array([0.5, 1.0])) == {
        "lr": pytest.approx(1e-2),
        "size": 16,
    }
    assert list(space.is_categorical) == [False, True]
    assert list(space.continuous_indices) == [0]


def test_a_process_smooths_repeated_values_and_is_sure_where_there_are_many():
    points = [[0.1]] * 6 + [[0.9]]
    process = fit(points, [1.0, 0.6, 1.2, 0.8, 1.1, 0.7, -2.0])
    mean, variance = process.posterior(torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64))
    assert 0.4 < mean[0] < 1.0  # near the mean of 0.9, drawn to the prior's 0
    assert variance[0] < variance[2] < variance[1]
    assert process.noise_var > 1e-3


def test_values_that_cannot_be_fitted_give_a_flat_process_and_no_message(capsys):
    process = fit([[0.5]] * 12, [1e8, -1e8] * 6)
    mean, variance = process.posterior(torch.tensor([[0.1], [0.9]], dtype=torch.float64))
    assert torch.isfinite(mean).all() and torch.isfinite(variance).all()
    assert capsys.readouterr() == ("", "")


def test_a_shifted_process_adds_its_prior_mean_to_every_posterior():
    process = fit([[0.0], [1.0], [0.5]], [0.0, 0.1, -0.1])
    shifted = ShiftedProcess(process, lambda points: 3 * points[..., 0])
    points = torch.tensor([[0.2], [0.8]], dtype=torch.float64)
    for joint in (False, True):
        (plain, variance), (shifted_mean, shifted_variance) = (
            p.posterior(points, joint=joint) for p in (process, shifted)
        )
        assert torch.allclose(shifted_mean - plain, 3 * points[:, 0])
        assert torch.equal(variance, shifted_variance)


@pytest.mark.parametrize("running", [[], [[0.5]]])
def test_the_best_point_is_where_the_posterior_promises_most(running):
    """Values rise to 0.7 and fall after it."""
    points = np.linspace(0, 0.95, 6)[:, None]
    process = fit(points, -4 * (points[:, 0] - 0.7) ** 2)
    space = NormalizedSpace({"x": FloatDistribution(0, 1)})
    running = np.array(running).reshape(-1, 1)
    point = ProcessSampler(seed=1).best_point(process, space, points, points[4], running)
    assert 0.57 < point[0] < 0.76


@pytest.mark.parametrize("running", [[], [[0.95, 0.95]]])
def test_what_was_tried_is_not_proposed_again_but_as_a_repeat(running):
    """Values rise to a corner, which was tried six times."""
    corner = np.array([[1.0, 1.0]])
    points = np.concatenate([corner] * 6 + [np.random.default_rng(0).random((8, 2))])
    process = fit(points, points.sum(axis=1))
    space = NormalizedSpace({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    known = np.array([*points, *running])
    running = np.array(running).reshape(-1, 2)
    point = ProcessSampler(seed=1).best_point(process, space, points, corner[0], running)
    distances = np.linalg.norm((point - known) / process.length_scales, axis=1)
    assert distances.min() >= 0.2


def test_where_everything_was_tried_the_best_point_comes_again():
    space = NormalizedSpace({"size": CategoricalDistribution([8, 16])})
    points = np.array([[0.0], [1.0]] * 3)
    process = fit_process(points, points[:, 0], np.array([True]))
    best = ProcessSampler(seed=1).best_point(process, space, points, points[1], points[:0])
    assert best.tolist() == [1.0]


def test_the_joint_posterior_has_the_mean_and_variance_of_each_point():
    rng = np.random.default_rng(0)
    process = fit_process(rng.random((8, 2)), rng.standard_normal(8), np.zeros(2, dtype=bool))
    points = torch.from_numpy(rng.random((5, 2)))
    mean, covariance = process.posterior(points, joint=True)
    expected = process.posterior(points)
    assert torch.allclose(mean, expected[0]) and torch.allclose(covariance.diagonal(), expected[1])
    assert (
        torch.allclose(covariance, covariance.T)
        and torch.linalg.eigvalsh(covariance).min() > -1e-9
    )
