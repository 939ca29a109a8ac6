"""DIST (Huang et al. 2022): probabilities need only be in proportion to the teacher's."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.kd import OfLogits, with_kd
from kdtune.methods.method import Maps, Parts, Terms, match_shape

ALIKE = 1e-6
"""Deviation of a row's probabilities (a norm) below which it is taken for rounding.

A correlation's gradient grows without bound as a row becomes constant.
"""


def correlation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − ρ(u, v), ρ Pearson's correlation of two rows; mean over the rows.

    Adding to a row, or scaling it, changes nothing.

    Args:
        student: [rows, numbers].
        teacher: the same shape.

    Returns:
        Scalar in [0, 2]; a constant row counts as uncorrelated, 1.
    """
    match_shape("Probabilities", student, teacher)
    own, others = (F.normalize(x - x.mean(1, keepdim=True), eps=ALIKE) for x in (student, teacher))
    return 1 - (own * others).sum(1).mean()


def dist_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·(inter + intra): `correlation_distance` of images over classes, of classes over images.

    Both of softmax(logits / T). The authors' configurations give both the weight 2, with T = 4 on
    CIFAR-100 and T = 1 on ImageNet.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        temperature: T, above 0.

    Returns:
        Scalar in [0, 4·T²].

    Raises:
        ValueError: the shapes differ.
    """
    own, others = ((x.float() / temperature).softmax(1) for x in (student, teacher))
    inter, intra = correlation_distance(own, others), correlation_distance(own.T, others.T)
    return temperature**2 * (inter + intra)


class StrongerTeacher(OfLogits):
    """classification + alpha·KD + beta·`dist_loss`; the paper has no KD."""

    def terms(self, logits: Tensor, features: Maps, targets: Parts, labels: Tensor) -> Terms:
        """The terms ``kd`` and ``dist``."""
        dist = dist_loss(logits, targets["logits"], self.config.temperature)
        return with_kd(self.config, logits, targets, dist=dist)
