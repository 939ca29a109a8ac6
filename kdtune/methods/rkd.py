"""RKD (Park et al. 2019): distances and angles between the embeddings of images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.embedding_based import EmbeddingMethod

MIN_RELATIVE_DISTANCE = 1e-4
"""Smallest norm by which a direction is divided, as a share of the mean distance."""


def distances_and_angles(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Compute distances of pairs and angles of triplets of images from embeddings [B, C].

    ψ_D(i, j) = ‖e_i − e_j‖ / μ, where μ is the mean of the distances above 0, is [B, B].
    ψ_A(i, j, k) = cos ∠(e_i, e_j, e_k), with the vertex first, is [B, B, B]. Both are 0 for equal
    embeddings. They take the memory of B²·C and of B³ numbers.
    """
    differences = embeddings.unsqueeze(0) - embeddings.unsqueeze(1)
    distances = torch.linalg.vector_norm(differences, dim=2)
    mean_distance = distances.sum() / (distances > 0).sum().clamp(min=1)
    mean_distance = torch.where(mean_distance > 0, mean_distance, 1.0)
    distances = distances / mean_distance
    # The direction between nearly equal embeddings is noise, and its gradient would explode.
    norms = distances.clamp(min=MIN_RELATIVE_DISTANCE).unsqueeze(2)
    directions = differences / mean_distance / norms
    return distances, directions @ directions.transpose(1, 2)


def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute l(ψ_D) + 2·l(ψ_A), where l is the Huber loss of student and teacher with δ = 1.

    l is a mean over all B² pairs or B³ triplets. RepDistiller and mdistiller weight distances with
    25 and angles with 50; so angles have twice the weight here, and beta is 25. The loss is
    invariant to moving, rotating or scaling all embeddings.

    Args:
        student: embeddings [B, C_student].
        teacher: embeddings [B, C_teacher].
    """
    student_distances, student_angles = distances_and_angles(student)
    teacher_distances, teacher_angles = distances_and_angles(teacher)
    angle_loss = F.smooth_l1_loss(student_angles, teacher_angles)
    return F.smooth_l1_loss(student_distances, teacher_distances) + 2 * angle_loss


class RelationalKnowledgeDistillation(EmbeddingMethod):
    """classification + alpha·KD + beta·`rkd_loss`."""

    term_name = "rkd"
    embedding_loss = staticmethod(rkd_loss)
