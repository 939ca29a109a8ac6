"""VID (Ahn et al. 2019): mutual information between features of student and teacher."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.methods.hint_based import HintMethod
from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import (
    FeatureMaps,
    LossTerms,
    StageShapes,
    TensorsByName,
    require_same_shape,
)

INITIAL_VARIANCE, MIN_VARIANCE = 5.0, 1e-5
"""Initial and smallest variance, as in the authors' code."""


def vid_loss(mean: Tensor, variance: Tensor, hint: Tensor) -> Tensor:
    """Compute −log q(t | s) = ½·((t − μ(s))² / σ² + log σ²), mean over all elements.

    It is the negative of a lower bound of the mutual information, without the constant ½·log 2π;
    q is a Gaussian with one σ² per channel of the teacher.

    Args:
        mean: the student's prediction of the teacher's features, μ(s), [B, H·W, C].
        variance: σ², [C], above 0.
        hint: the teacher's features, t, [B, H·W, C].

    Returns:
        Scalar; it can be below 0.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Features", mean, hint)
    return ((hint.float() - mean.float()) ** 2 / variance + variance.log()).mean() / 2


class VariationalInformationDistillation(HintMethod):
    """classification + alpha·KD + beta·`vid_loss`.

    μ is three 1×1 convolutions with ReLU between them, σ² a softplus of a learned number; both are
    trained with the student. Only the stage `hint_layer` is compared; RepDistiller compares all,
    whose cached maps would be fifteen times as large (ResNet18 at 32 px).

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Raises:
        UserError: a network has no stage `hint_layer`.
    """

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        if teacher is None:
            return
        student_channels, teacher_channels = self.channels
        self.regressor = nn.Sequential(
            nn.Linear(student_channels, teacher_channels, bias=False),
            nn.ReLU(),
            nn.Linear(teacher_channels, teacher_channels, bias=False),
            nn.ReLU(),
            nn.Linear(teacher_channels, teacher_channels, bias=False),
        )
        self.raw_variance = nn.Parameter(
            torch.full((teacher_channels,), math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE)))
        )

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Return the terms ``kd`` and ``vid``."""
        variance = F.softplus(self.raw_variance) + MIN_VARIANCE
        vid = vid_loss(
            self.regressor(self.hint_features(features)), variance, targets[self.hint_name]
        )
        return add_kd_term(self.config, logits, targets, vid=vid)
