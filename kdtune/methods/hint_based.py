"""Base class of FitNets, VID and SP, which compare one stage (the hint)."""

from torch import Tensor

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.method import FeatureMaps, Method, StageShapes, TensorsByName, pool_to


def flatten_positions(features: Tensor) -> Tensor:
    """Reshape maps [B, C, H, W] to one row of channels per position, [B, H·W, C]."""
    return features.flatten(2).transpose(1, 2)


class HintMethod(Method):
    """A method that compares the stage `hint_layer` of student and teacher.

    The larger map is average-pooled to the size of the smaller; channel counts may differ.

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Attributes:
        channels: C of the student and of the teacher.
        map_size: (H, W) of the compared maps.
        hint_name: name of the target.

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
                f"hint_layer {config.hint_layer} does not exist: it must lie between "
                f"{-stage_count} and {stage_count - 1} for these networks."
            )
        (cs, hs, ws), (ct, ht, wt) = student[config.hint_layer], teacher[config.hint_layer]
        self.channels, self.map_size = (cs, ct), (min(hs, ht), min(ws, wt))
        index_from_end = (
            config.hint_layer - len(teacher) if config.hint_layer >= 0 else config.hint_layer
        )
        self.hint_name = f"hint_{index_from_end}_{self.map_size[0]}x{self.map_size[1]}"
        self.float16_targets = frozenset({self.hint_name})  # far from the student's features

    def hint_features(self, features: FeatureMaps) -> Tensor:
        """Return the compared stage as [B, H·W, C] in float32."""
        return flatten_positions(pool_to(features[self.config.hint_layer], self.map_size))

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K] and ``hint_<stage>_<H>x<W>`` [B, H·W, C_teacher].

        The stage is counted from the teacher's last one.
        """
        return {"logits": logits.float(), self.hint_name: self.hint_features(features)}
