"""DKD (Zhao et al. 2022): the two halves of KD, each with its own weight."""

import math

import torch
from torch import Tensor

from kdtune.methods.kd import LogitMethod
from kdtune.methods.method import FeatureMaps, LossTerms, TensorsByName, check_same_shape


def dkd_losses(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compute T²·TCKD and T²·NCKD of each image, [B] each.

    Let p (teacher) and q (student) be softmax(logits / T), and y the label. Then TCKD is
    KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)), and NCKD is the KL divergence over the other classes,
    renormalised. KD is TCKD + (1 − p_y)·NCKD, so a confident teacher hides NCKD.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        labels: class indices, [B].
        temperature: T, above 0.
    """
    check_same_shape("Logits", student, teacher)
    label_column = labels.unsqueeze(1)
    label_mask = label_column == torch.arange(student.shape[1], device=labels.device)
    binary_log_probabilities, other_log_probabilities = [], []
    for logits in (student, teacher):
        scaled = logits.float() / temperature
        others = scaled.masked_fill(label_mask, -math.inf).logsumexp(1).unsqueeze(1)
        binary_logits = torch.cat([scaled.gather(1, label_column), others], 1)
        binary_log_probabilities.append(binary_logits.log_softmax(1))
        other_log_probabilities.append(scaled - others)  # of no use at the label
    (q, p), (q_others, p_others) = binary_log_probabilities, other_log_probabilities
    tckd = (p.exp() * (p - q)).sum(1)
    nckd = (p_others.masked_fill(label_mask, -math.inf).exp() * (p_others - q_others)).sum(1)
    return temperature**2 * tckd, temperature**2 * nckd


class DecoupledKnowledgeDistillation(LogitMethod):
    """classification + alpha·TCKD + beta·NCKD, means of `dkd_losses`.

    In the authors' configurations alpha is 1, and beta 0.5 to 8, larger for more confident
    teachers. Their code increases both from 0 over the first 20 of 240 epochs; this one does not.
    """

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        tckd, nckd = dkd_losses(logits, targets["logits"], labels, self.config.temperature)
        return {"tckd": (self.config.alpha, tckd.mean()), "nckd": (self.config.beta, nckd.mean())}
