"""Plain training: the student learns from the labels alone. Also how a teacher is trained."""

from torch import Tensor

from kdtune.methods.method import Maps, Method, Parts, weighted_sum


class Student(Method):
    """Cross-entropy with the labels; no teacher, alpha and beta play no part."""

    uses_teacher = False

    def targets(self, logits: Tensor, features: Maps) -> Parts:
        """Nothing of a teacher is kept."""
        return {}

    def forward(
        self, logits: Tensor, features: Maps, targets: Parts | None, labels: Tensor
    ) -> Parts:
        """See `Method.forward`; parts: ``classification``."""
        return weighted_sum(logits, labels)
