"""FitNets (Romero et al. 2015): the student's features, through a regressor, match a hint."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdtune.config import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.kd import kd_loss
from kdtune.methods.method import Maps, Method, Parts, Shapes, match_shape, pool_to, weighted_sum


def feature_loss(student: Tensor, hint: Tensor) -> Tensor:
    """Mean squared difference over all elements (Romero et al. 2015, equation 3, without 1/2).

    Args:
        student: the regressor's output, of any shape.
        hint: the teacher's features, of the same shape.

    Returns:
        Scalar, at least 0; its scale is that of the teacher's activations, squared.

    Raises:
        ValueError: the shapes differ.
    """
    match_shape("Features", student, hint)
    return F.mse_loss(student.float(), hint.float())


def positions(features: Tensor) -> Tensor:
    """Maps [B, C, H, W] as a row of channels for each position, [B, H·W, C]."""
    return features.flatten(2).transpose(1, 2)


class Regressor(nn.Module):
    """A 1×1 convolution with batch norm, computed as what it is: a product of matrices.

    On a CPU that takes a third of the time of the convolution, for a map of 2×2 to 4×4 positions
    and 2,048 channels.

    Args:
        channels_in: C of the student.
        channels_out: C of the teacher.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.linear = nn.Linear(channels_in, channels_out, bias=False)
        self.norm = nn.BatchNorm1d(channels_out)

    def forward(self, rows: Tensor) -> Tensor:
        """Map [B, H·W, channels_in] to [B, H·W, channels_out]."""
        return self.norm(self.linear(rows.flatten(0, 1))).unflatten(0, rows.shape[:2])


class FitNets(Method):
    """classification + alpha·KD + beta·`feature_loss`.

    The stage `hint_layer` of student and teacher are compared. Where channel counts differ, a
    learned 1×1 convolution with batch norm (the regressor) maps the student's to the teacher's;
    of two sizes the larger is average-pooled to the smaller. In the first `hint_epochs` epochs
    the loss is the feature loss alone, with weight 1, so only the student up to the hint and the
    regressor are trained, as in the paper's first stage; 0 is the joint form.

    Raises:
        UserError: a network has no stage `hint_layer`, or the hint stage has no teacher.
    """

    def __init__(self, config: TrainConfig, student: Shapes, teacher: Shapes | None):
        super().__init__(config, student, teacher)
        self.regressor: nn.Module = nn.Identity()
        self.size, self.hint = (0, 0), ""
        if teacher is None:
            if config.hint_epochs:
                raise UserError(
                    "hint_epochs needs a teacher: set teacher_model, or hint_epochs 0."
                )
            return
        stages = min(len(student), len(teacher))
        if not -stages <= config.hint_layer < stages:
            raise UserError(
                f"hint_layer {config.hint_layer} does not exist: it must lie between {-stages} "
                f"and {stages - 1} for these networks."
            )
        (cs, hs, ws), (ct, ht, wt) = student[config.hint_layer], teacher[config.hint_layer]
        self.size = (min(hs, ht), min(ws, wt))
        back = config.hint_layer - len(teacher) if config.hint_layer >= 0 else config.hint_layer
        self.hint = f"hint_{back}_{self.size[0]}x{self.size[1]}"
        self.rounded = frozenset({self.hint})  # as far from the student's as it is large
        if cs != ct:
            self.regressor = Regressor(cs, ct)

    def targets(self, logits: Tensor, features: Maps) -> Parts:
        """``logits`` [B, K], and ``hint_<stage>_<H>x<W>`` [B, H·W, C_teacher].

        The stage is counted from the teacher's end.
        """
        hint = positions(pool_to(features[self.config.hint_layer], self.size))
        return {"logits": logits.float(), self.hint: hint}

    def forward(
        self, logits: Tensor, features: Maps, targets: Parts | None, labels: Tensor
    ) -> Parts:
        """See `Method.forward`; parts: ``classification``, ``kd``, ``feature``."""
        classification = F.cross_entropy(logits.float(), labels)
        if targets is None:
            return weighted_sum(classification)
        kd = kd_loss(logits, targets["logits"], self.config.temperature)
        own = self.regressor(positions(pool_to(features[self.config.hint_layer], self.size)))
        feature = feature_loss(own, targets[self.hint])
        parts = weighted_sum(
            classification, kd=(self.config.alpha, kd), feature=(self.config.beta, feature)
        )
        if self.epoch <= self.config.hint_epochs:
            parts["loss"] = feature
        return parts
