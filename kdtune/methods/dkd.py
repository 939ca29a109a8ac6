"""DKD (Zhao et al. 2022): the two halves of KD, each with a weight of its own."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.kd import LogitMethod
from kdtune.methods.method import FeatureMaps, LossTerms, TensorsByName, require_same_shape


def dkd_losses(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T²·TCKD and T²·NCKD, of each image.

    With p of the teacher and q of the student, both softmax(logits / T), and y the label:
    TCKD = KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)), and NCKD is the KL divergence over the other
    classes alone, each divided by the sum of these. KD is TCKD + (1 − p_y)·NCKD, so where a
    teacher is sure it hides what it knows of the other classes.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        labels: class indices, [B].
        temperature: T, above 0.

    Returns:
        Two of [B], each at least 0; NCKD is 0 where there are two classes.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Logits", student, teacher)
    label_mask = F.one_hot(labels, student.shape[1]).bool()
    binary_log_probabilities, other_log_probabilities = [], []
    for logits in (student, teacher):
        scaled = logits.float() / temperature
        others_logsumexp = scaled.masked_fill(label_mask, -math.inf).logsumexp(1)
        binary_logits = torch.cat(
            [scaled.gather(1, labels.unsqueeze(1)), others_logsumexp.unsqueeze(1)], 1
        )
        binary_log_probabilities.append(binary_logits.log_softmax(1))
        other_log_probabilities.append(
            scaled - others_logsumexp.unsqueeze(1)
        )  # logarithms, but for the label's class
    (q, p), (q_others, p_others) = binary_log_probabilities, other_log_probabilities
    tckd = (p.exp() * (p - q)).sum(1)
    nckd = (p_others.masked_fill(label_mask, -math.inf).exp() * (p_others - q_others)).sum(1)
    return temperature**2 * tckd, temperature**2 * nckd


class DecoupledKnowledgeDistillation(LogitMethod):
    """classification + alpha·TCKD + beta·NCKD, means of `dkd_losses`.

    alpha is 1 in the authors' configurations, and beta 0.5 to 8, the more the surer the teacher
    is. Their code raises both from 0 in the first 20 of 240 epochs; this one does not.
    """

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """The terms ``tckd`` and ``nckd``."""
        tckd, nckd = dkd_losses(logits, targets["logits"], labels, self.config.temperature)
        return {"tckd": (self.config.alpha, tckd.mean()), "nckd": (self.config.beta, nckd.mean())}
