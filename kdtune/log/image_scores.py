"""Scores of images, whose mean over the images of a run is its accuracy; and that of chance."""

from collections.abc import Sequence

import numpy as np

from kdtune.config.field_types import Metric


def score_images(predicted: np.ndarray, labels: np.ndarray, metric: Metric) -> np.ndarray:
    """Return a score for each image; their mean is an accuracy, and their variance its error.

    In the balanced accuracy, the weight of an image is n / (number of classes that occur · images
    of its class). Weights of correct answers alone would also vary between the classes, which are
    fixed. So an image counts its weight times the difference to the recall of its class. Two more
    images right and two wrong in each class (Agresti and Coull 1998) let few images vary.

    Args:
        predicted: class indices [n].
        labels: true class indices [n].
        metric: the accuracy.
    """
    correct = predicted == labels
    if metric == "accuracy":
        return np.asarray(correct)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, correct)
    weights = len(labels) / (len(counts) * counts)
    deviations = weights[inverse] * (correct - ((hits + 2) / (counts + 4))[inverse])
    return np.asarray((hits / counts).mean() + deviations - deviations.mean())


def chance_accuracy(class_counts: Sequence[int], num_classes: int, metric: Metric) -> float:
    """Return the best accuracy, a share of 1, of a network that answers one class for all images.

    Args:
        class_counts: images by class; if there are none, all classes count alike.
        num_classes: K.
        metric: the accuracy.

    >>> [chance_accuracy([19, 1], 2, metric) for metric in ("accuracy", "balanced_accuracy")]
    [0.95, 0.5]
    """
    counts = [count for count in class_counts if count] or [1] * num_classes
    return max(counts) / sum(counts) if metric == "accuracy" else 1 / len(counts)
