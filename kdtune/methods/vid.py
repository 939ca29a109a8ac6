"""VID (Ahn et al. 2019): mutual information between features of student and teacher."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.methods.hint_based import HintMethod
from kdtune.methods.method import FeatureMaps, StageShapes, TensorsByName, check_same_shape

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
    """
    check_same_shape("Features", mean, hint)
    return ((hint.float() - mean.float()) ** 2 / variance + variance.log()).mean() / 2


class VariationalInformationDistillation(HintMethod):
    """classification + alpha·KD + beta·`vid_loss`.

    μ is three 1×1 convolutions with ReLU between them, σ² a softplus of a learned number; both are
    trained with the student. Only the stage `hint_layer` is compared; RepDistiller compares all,
    whose cached maps would be fifteen times as large (ResNet18 at 32 px).
    """

    term_name = "vid"

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        if teacher is None:
            return
        cs, ct = self.channels
        self.regressor = nn.Sequential(
            nn.Linear(cs, ct, bias=False),
            nn.ReLU(),
            nn.Linear(ct, ct, bias=False),
            nn.ReLU(),
            nn.Linear(ct, ct, bias=False),
        )
        raw_variance = math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE))
        self.raw_variance = nn.Parameter(torch.full((ct,), raw_variance))

    def _own_loss(self, features: FeatureMaps, targets: TensorsByName) -> Tensor:
        variance = F.softplus(self.raw_variance) + MIN_VARIANCE
        mean = self.regressor(self.hint_features(features))
        return vid_loss(mean, variance, targets[self.hint_name])
