"""Training without a teacher, from the labels alone; also how a teacher is trained."""

from torch import Tensor

from kdtune.methods.method import FeatureMaps, LossTerms, Method, TensorsByName


class StudentOnly(Method):
    """Cross-entropy with the labels; alpha and beta are ignored."""

    uses_teacher = False

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        return {}

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        return {}
