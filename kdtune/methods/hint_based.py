"""What FitNets, VID and SP have in common: one stage of the teacher, which they share."""

from torch import Tensor

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.method import Maps, Method, Parts, Shapes, pool_to


def positions(features: Tensor) -> Tensor:
    """Maps [B, C, H, W] as a row of channels for each position, [B, H·W, C]."""
    return features.flatten(2).transpose(1, 2)


class OfHint(Method):
    """A method that compares the stage `hint_layer` of student and teacher.

    Of two sizes the larger is average-pooled to the smaller; channel counts may differ.

    Attributes:
        channels: C of the student and of the teacher.
        hint: name of the target.

    Raises:
        UserError: a network has no stage `hint_layer`.
    """

    def __init__(self, config: TrainConfig, student: Shapes, teacher: Shapes | None):
        super().__init__(config, student, teacher)
        self.channels, self.size, self.hint = (0, 0), (0, 0), ""
        if teacher is None:
            return
        stages = min(len(student), len(teacher))
        if not -stages <= config.hint_layer < stages:
            raise UserError(
                f"hint_layer {config.hint_layer} does not exist: it must lie between {-stages} "
                f"and {stages - 1} for these networks."
            )
        (cs, hs, ws), (ct, ht, wt) = student[config.hint_layer], teacher[config.hint_layer]
        self.channels, self.size = (cs, ct), (min(hs, ht), min(ws, wt))
        back = config.hint_layer - len(teacher) if config.hint_layer >= 0 else config.hint_layer
        self.hint = f"hint_{back}_{self.size[0]}x{self.size[1]}"
        self.rounded = frozenset({self.hint})  # as far from the student's as it is large

    def rows(self, features: Maps) -> Tensor:
        """The stage that is compared, as [B, H·W, C], in float32."""
        return positions(pool_to(features[self.config.hint_layer], self.size))

    def targets(self, logits: Tensor, features: Maps) -> Parts:
        """``logits`` [B, K], and ``hint_<stage>_<H>x<W>`` [B, H·W, C_teacher].

        The stage is counted from the teacher's end.
        """
        return {"logits": logits.float(), self.hint: self.rows(features)}
