"""DIST (Huang et al. 2022): correlation with the teacher's probabilities."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.kd import LogitMethod, add_kd_term
from kdtune.methods.method import FeatureMaps, LossTerms, TensorsByName, check_same_shape

CORRELATION_EPSILON = 1e-6
"""Smallest norm by which a centred row is divided; a constant row has no finite gradient."""


def correlation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute 1 − ρ(u, v), ρ Pearson's correlation of two rows, mean over the rows.

    It is in [0, 2], and invariant to adding a number to a row, and to scaling it; a constant row
    counts as 1, uncorrelated.

    Args:
        student: [rows, columns].
        teacher: [rows, columns].
    """
    check_same_shape("Probabilities", student, teacher)
    student_rows, teacher_rows = (
        F.normalize(x - x.mean(1, keepdim=True), eps=CORRELATION_EPSILON)
        for x in (student, teacher)
    )
    return 1 - (student_rows * teacher_rows).sum(1).mean()


def dist_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T²·(inter + intra), `correlation_distance` over classes and over images.

    Both are distances of softmax(logits / T). In the authors' configurations both have the weight
    2, with T = 4 on CIFAR-100 and T = 1 on ImageNet.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        temperature: T, above 0.
    """
    p_student, p_teacher = ((x.float() / temperature).softmax(1) for x in (student, teacher))
    inter = correlation_distance(p_student, p_teacher)
    intra = correlation_distance(p_student.T, p_teacher.T)
    return temperature**2 * (inter + intra)


class DIST(LogitMethod):
    """classification + alpha·KD + beta·`dist_loss`; the paper has no KD."""

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        dist = dist_loss(logits, targets["logits"], self.config.temperature)
        return add_kd_term(self.config, logits, targets, dist=dist)
