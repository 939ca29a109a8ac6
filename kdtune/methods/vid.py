"""VID (Ahn et al. 2019): how much the student's features tell of the teacher's."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.methods.hint_based import OfHint
from kdtune.methods.kd import with_kd
from kdtune.methods.method import Maps, Parts, Shapes, Terms, match_shape

START, LEAST = 5.0, 1e-5
"""Variance at the start, and the least that it can become, as in the authors' code."""


def vid_loss(mean: Tensor, variance: Tensor, hint: Tensor) -> Tensor:
    """−log q(t | s) = ½·((t − μ(s))² / σ² + log σ²), mean over all elements.

    A bound of the mutual information with the sign turned, without the constant ½·log 2π; q is a
    Gauss distribution with a σ² for each of the teacher's channels.

    Args:
        mean: what the student expects of the teacher's features, μ(s), [B, H·W, C].
        variance: σ², [C], above 0.
        hint: the teacher's features, t, [B, H·W, C].

    Returns:
        Scalar; it can be below 0.

    Raises:
        ValueError: the shapes differ.
    """
    match_shape("Features", mean, hint)
    return ((hint.float() - mean.float()) ** 2 / variance + variance.log()).mean() / 2


class VariationalInformation(OfHint):
    """classification + alpha·KD + beta·`vid_loss`.

    μ is three 1×1 convolutions with ReLU between, σ² a softplus of a learned number; both are
    trained along with the student. One stage is compared, `hint_layer`; RepDistiller takes all,
    whose kept maps would be fifteen times as large (ResNet18 at 32 px).

    Raises:
        UserError: a network has no stage `hint_layer`.
    """

    def __init__(self, config: TrainConfig, student: Shapes, teacher: Shapes | None):
        super().__init__(config, student, teacher)
        if teacher is None:
            return
        own, hint = self.channels
        self.regressor = nn.Sequential(
            nn.Linear(own, hint, bias=False),
            nn.ReLU(),
            nn.Linear(hint, hint, bias=False),
            nn.ReLU(),
            nn.Linear(hint, hint, bias=False),
        )
        self.spread = nn.Parameter(torch.full((hint,), math.log(math.expm1(START - LEAST))))

    def terms(self, logits: Tensor, features: Maps, targets: Parts, labels: Tensor) -> Terms:
        """The terms ``kd`` and ``vid``."""
        variance = F.softplus(self.spread) + LEAST
        vid = vid_loss(self.regressor(self.rows(features)), variance, targets[self.hint])
        return with_kd(self.config, logits, targets, vid=vid)
