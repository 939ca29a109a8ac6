"""Plain training: the student learns from the labels alone. Also how a teacher is trained."""

from torch import Tensor

from kdtune.methods.method import Maps, Method, Parts, Terms


class Student(Method):
    """Cross-entropy with the labels; no teacher, alpha and beta play no part."""

    uses_teacher = False

    def targets(self, logits: Tensor, features: Maps) -> Parts:
        """Nothing of a teacher is kept."""
        return {}

    def terms(self, logits: Tensor, features: Maps, targets: Parts, labels: Tensor) -> Terms:
        """Nothing is added."""
        return {}
