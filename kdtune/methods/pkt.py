"""PKT (Passalis & Tefas 2018): probabilities that images are neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.embedding_based import EmbeddingMethod

PROBABILITY_EPSILON = 1e-7
"""Added to probabilities, as in the authors' code."""


def neighbour_probabilities(embeddings: Tensor) -> Tensor:
    """Compute p(j | i) = K(e_i, e_j) / Σ_k K(e_i, e_k), where K(a, b) = (cos(a, b) + 1) / 2.

    An image is one of its own neighbours, as in the authors' code.

    Args:
        embeddings: [B, C].

    Returns:
        [B, B]; each row sums to 1.
    """
    directions = F.normalize(embeddings)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute p_t·log(p_t / p_s), mean over all B² pairs of images.

    The paper has the sum; the authors' code has the mean, with beta about 30,000.

    Args:
        student: embeddings [B, C_student].
        teacher: embeddings [B, C_teacher].

    Returns:
        Scalar, at least 0; invariant to rotating or scaling all embeddings.
    """
    student_probabilities, teacher_probabilities = (
        neighbour_probabilities(student),
        neighbour_probabilities(teacher),
    )
    return (
        teacher_probabilities
        * torch.log(
            (teacher_probabilities + PROBABILITY_EPSILON)
            / (student_probabilities + PROBABILITY_EPSILON)
        )
    ).mean()


class ProbabilisticKnowledgeTransfer(EmbeddingMethod):
    """classification + alpha·KD + beta·`pkt_loss`."""

    term_name = "pkt"

    def embedding_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return `pkt_loss`."""
        return pkt_loss(student, teacher)
