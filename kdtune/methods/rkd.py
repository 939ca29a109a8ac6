"""RKD (Park et al. 2019): distances and angles between images, as the teacher has them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.embedding_based import EmbeddingMethod

MIN_RELATIVE_DISTANCE = 1e-4
"""Distance, in mean distances, below which a direction is taken for shorter than 1."""


def distances_and_angles(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of pairs, and angles of triplets of images.

    ψ_D(i, j) = ‖e_i − e_j‖ / μ, where μ is the mean distance of images that differ;
    ψ_A(i, j, k) = cos ∠(e_i, e_j, e_k). They take the memory of B²·C and of B³ numbers.

    Args:
        embeddings: [B, C].

    Returns:
        [B, B], and [B, B, B] with the corner first. Where images coincide both are 0.
    """
    differences = embeddings.unsqueeze(0) - embeddings.unsqueeze(1)
    distances = torch.linalg.vector_norm(differences, dim=2)
    mean_distance = distances.sum() / (distances > 0).sum().clamp(min=1)
    mean_distance = torch.where(mean_distance > 0, mean_distance, 1.0)
    distances = distances / mean_distance
    # Where images nearly coincide a direction is noise, and its gradient would be endless.
    directions = (
        differences / mean_distance / distances.clamp(min=MIN_RELATIVE_DISTANCE).unsqueeze(2)
    )
    return distances, directions @ directions.transpose(1, 2)


def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """l(ψ_D) + 2·l(ψ_A), where l is the Huber loss of student and teacher with δ = 1.

    Means over all B² pairs and B³ triplets. RepDistiller and mdistiller give distances the weight
    25 and angles 50; so angles count twice here, and beta is 25.

    Args:
        student: embeddings [B, C_student].
        teacher: embeddings [B, C_teacher].

    Returns:
        Scalar, at least 0; the same however embeddings are moved, rotated or scaled together.
    """
    (student_distances, student_angles), (teacher_distances, teacher_angles) = (
        distances_and_angles(student),
        distances_and_angles(teacher),
    )
    return F.smooth_l1_loss(student_distances, teacher_distances) + 2 * F.smooth_l1_loss(
        student_angles, teacher_angles
    )


class RelationalKnowledgeDistillation(EmbeddingMethod):
    """classification + alpha·KD + beta·`rkd_loss`."""

    term_name = "rkd"

    def embedding_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See `rkd_loss`."""
        return rkd_loss(student, teacher)
