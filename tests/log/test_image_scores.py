"""Scores of images, against the metrics whose means they have."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from kdtune.log.image_scores import score_images


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_the_scores_is_the_metric(seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.choice(5, 60, p=[0.6, 0.2, 0.1, 0.1, 0]), rng.integers(0, 5, 60)
    exact = score_images(predicted, labels, "accuracy")
    assert exact.dtype == bool and exact.mean() == accuracy_score(labels, predicted)
    balanced = score_images(predicted, labels, "balanced_accuracy")
    present = [label for label in range(5) if (labels == label).any()]
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert balanced.mean() == pytest.approx(recalls.mean())
    assert score_images(labels, labels, "balanced_accuracy").mean() == pytest.approx(1)
    # Weights are 2/3 and 2; recalls 2/3 and 1, with four more images 4/7 and 3/5.
    few = score_images(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), "balanced_accuracy")
    deviations = np.array([2 / 3 * 3 / 7, 2 / 3 * 3 / 7, -2 / 3 * 4 / 7, 2 * 2 / 5])
    assert few == pytest.approx(5 / 6 + deviations - deviations.mean())


def test_scores_vary_as_much_as_balanced_accuracies():
    """The standard error of one network is that of many test sets with the same classes."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], [900, 100])
    recalls = np.array([0.95, 0.7])[labels]
    draws = [
        score_images(np.where(rng.random(1000) < recalls, labels, 9), labels, "balanced_accuracy")
        for _ in range(2000)
    ]
    expected = np.sqrt(0.95 * 0.05 / 900 + 0.7 * 0.3 / 100) / 2
    assert np.std([points.mean() for points in draws]) == pytest.approx(expected, rel=0.05)
    errors = [points.std(ddof=1) / 1000**0.5 for points in draws]
    assert np.mean(errors) == pytest.approx(expected, rel=0.05)
