"""Plain training: the student learns from the labels alone. Also how a teacher is trained."""

from torch import Tensor

from kdtune.methods.method import FeatureMaps, LossTerms, Method, TensorsByName


class StudentOnly(Method):
    """Cross-entropy with the labels; no teacher, alpha and beta play no part."""

    uses_teacher = False

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Nothing of a teacher is kept."""
        return {}

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Nothing is added."""
        return {}
