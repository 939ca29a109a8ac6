"""FitNets (Romero et al. 2015): the student's features, through a regressor, match a hint."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.hint_based import HintMethod
from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import (
    FeatureMaps,
    LossTerms,
    StageShapes,
    TensorsByName,
    combine_loss_terms,
    require_same_shape,
)


def feature_loss(student: Tensor, hint: Tensor) -> Tensor:
    """Compute the mean squared difference (Romero et al. 2015, equation 3, without 1/2).

    Args:
        student: the regressor's output, of any shape.
        hint: the teacher's features, of the same shape.

    Returns:
        Scalar, at least 0; its scale is that of the teacher's activations, squared.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Features", student, hint)
    return F.mse_loss(student.float(), hint.float())


class Regressor(nn.Module):
    """A 1×1 convolution with batch norm, computed as a matrix product.

    On a CPU this takes a third of the time of the convolution, for maps of 2×2 to 4×4 positions
    and 2,048 channels.

    Args:
        channels_in: C of the student.
        channels_out: C of the teacher.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.linear = nn.Linear(channels_in, channels_out, bias=False)
        self.norm = nn.BatchNorm1d(channels_out)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, H·W, channels_in] to [B, H·W, channels_out]."""
        regressed: Tensor = self.norm(self.linear(features.flatten(0, 1)))
        return regressed.reshape(*features.shape[:2], -1)


class FitNets(HintMethod):
    """classification + alpha·KD + beta·`feature_loss`.

    If channel counts differ, a learned 1×1 convolution with batch norm (the regressor) maps the
    student's features to the teacher's. In the first `hint_epochs` epochs the loss is the feature
    loss alone, with weight 1, so only the student up to the hint and the regressor are trained, as
    in the paper's first stage; 0 is the joint form.

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Raises:
        UserError: a network has no stage `hint_layer`, or the hint stage has no teacher.
    """

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        if teacher is None and config.hint_epochs:
            raise UserError("hint_epochs needs a teacher: set teacher_model, or hint_epochs 0.")
        student_channels, teacher_channels = self.channels
        self.regressor = (
            Regressor(student_channels, teacher_channels)
            if student_channels != teacher_channels
            else nn.Identity()
        )

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Return the terms ``kd`` and ``feature``."""
        feature = feature_loss(
            self.regressor(self.hint_features(features)), targets[self.hint_name]
        )
        return add_kd_term(self.config, logits, targets, feature=feature)

    def forward(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName | None, labels: Tensor
    ) -> TensorsByName:
        """Compute the loss of a batch; in the first `hint_epochs` it is ``feature``."""
        if targets is None or self.epoch > self.config.hint_epochs:
            return super().forward(logits, features, targets, labels)
        terms = self.terms(logits, features, targets, labels)
        return {**combine_loss_terms(logits, labels, terms), "loss": terms["feature"][1]}
