"""PKT (Passalis & Tefas 2018): probabilities that images are neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.embedding_based import EmbeddingMethod

PROBABILITY_EPSILON = 1e-7
"""Added to probabilities, as in the authors' code."""


def neighbour_probabilities(embeddings: Tensor) -> Tensor:
    """Compute p(j | i) = K(e_i, e_j) / Σ_k K(e_i, e_k) from embeddings [B, C], as [B, B].

    K(a, b) is (cos(a, b) + 1) / 2. An image is one of its own neighbours, as in the authors' code.
    """
    directions = F.normalize(embeddings)
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute p_t·log(p_t / p_s), mean over all B² pairs of images.

    It is invariant to rotating or scaling all embeddings. The paper has the sum; the authors' code
    has the mean, with beta about 30,000.

    Args:
        student: embeddings [B, C_student].
        teacher: embeddings [B, C_teacher].
    """
    p_student, p_teacher = neighbour_probabilities(student), neighbour_probabilities(teacher)
    ratio = (p_teacher + PROBABILITY_EPSILON) / (p_student + PROBABILITY_EPSILON)
    return (p_teacher * torch.log(ratio)).mean()


class ProbabilisticKnowledgeTransfer(EmbeddingMethod):
    """classification + alpha·KD + beta·`pkt_loss`."""

    term_name = "pkt"
    embedding_loss = staticmethod(pkt_loss)
