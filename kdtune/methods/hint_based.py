"""What FitNets, VID and SP have in common: one stage of the teacher, which they share."""

from torch import Tensor

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.method import FeatureMaps, Method, StageShapes, TensorsByName, pool_to


def flatten_positions(features: Tensor) -> Tensor:
    """Maps [B, C, H, W] as a row of channels for each position, [B, H·W, C]."""
    return features.flatten(2).transpose(1, 2)


class HintMethod(Method):
    """A method that compares the stage `hint_layer` of student and teacher.

    Of two sizes the larger is average-pooled to the smaller; channel counts may differ.

    Attributes:
        channels: C of the student and of the teacher.
        hint: name of the target.

    Raises:
        UserError: a network has no stage `hint_layer`.
    """

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        self.channels, self.map_size, self.hint_name = (0, 0), (0, 0), ""
        if teacher is None:
            return
        stage_count = min(len(student), len(teacher))
        if not -stage_count <= config.hint_layer < stage_count:
            raise UserError(
                f"hint_layer {config.hint_layer} does not exist: it must lie between {-stage_count} "
                f"and {stage_count - 1} for these networks."
            )
        (cs, hs, ws), (ct, ht, wt) = student[config.hint_layer], teacher[config.hint_layer]
        self.channels, self.map_size = (cs, ct), (min(hs, ht), min(ws, wt))
        index_from_end = (
            config.hint_layer - len(teacher) if config.hint_layer >= 0 else config.hint_layer
        )
        self.hint_name = f"hint_{index_from_end}_{self.map_size[0]}x{self.map_size[1]}"
        self.float16_targets = frozenset(
            {self.hint_name}
        )  # as far from the student's as it is large

    def hint_features(self, features: FeatureMaps) -> Tensor:
        """The stage that is compared, as [B, H·W, C], in float32."""
        return flatten_positions(pool_to(features[self.config.hint_layer], self.map_size))

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """``logits`` [B, K], and ``hint_<stage>_<H>x<W>`` [B, H·W, C_teacher].

        The stage is counted from the teacher's end.
        """
        return {"logits": logits.float(), self.hint_name: self.hint_features(features)}
