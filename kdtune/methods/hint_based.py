"""Base class of FitNets, VID and SP, which compare one stage (the hint)."""

from torch import Tensor

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.kd import FeatureMethod
from kdtune.methods.method import FeatureMaps, StageShapes, TensorsByName, pool_to


class HintMethod(FeatureMethod):
    """A method that compares the stage `hint_layer` of student and teacher.

    The larger map is average-pooled to the size of the smaller; channel counts may differ. It is a
    `UserError` if a network has no such stage.

    Attributes:
        channels: C of the student and of the teacher.
        map_size: (H, W) of the compared maps.
    """

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        self.channels, self.map_size, self.hint_name = (0, 0), (0, 0), ""
        if teacher is None:
            return
        layer, stage_count = config.hint_layer, min(len(student), len(teacher))
        if not -stage_count <= layer < stage_count:
            raise UserError(
                f"hint_layer {layer} does not exist: it must lie between "
                f"{-stage_count} and {stage_count - 1} for these networks."
            )
        (cs, hs, ws), (ct, ht, wt) = student[layer], teacher[layer]
        self.channels, self.map_size = (cs, ct), (min(hs, ht), min(ws, wt))
        index_from_end = layer - len(teacher) if layer >= 0 else layer
        self.hint_name = f"hint_{index_from_end}_{self.map_size[0]}x{self.map_size[1]}"
        self.float16_targets = frozenset({self.hint_name})  # far from the student's features

    def hint_features(self, features: FeatureMaps) -> Tensor:
        """Return the compared stage as [B, H·W, C] in float32."""
        return pool_to(features[self.config.hint_layer], self.map_size).flatten(2).transpose(1, 2)

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K] and ``hint_<stage>_<H>x<W>`` [B, H·W, C_teacher].

        The stage is counted from the teacher's last one.
        """
        return {"logits": logits.float(), self.hint_name: self.hint_features(features)}
