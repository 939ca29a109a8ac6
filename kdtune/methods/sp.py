"""SP (Tung & Mori 2019): similarities between the images of a batch."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.hint_based import HintMethod
from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import FeatureMaps, LossTerms, TensorsByName, require_same_shape


def similarity_matrix(features: Tensor) -> Tensor:
    """Compute the similarities of images: G = F·Fᵀ, each row divided by its norm.

    Args:
        features: features of one image per row, [B, D].

    Returns:
        [B, B]; invariant to rotating or scaling all features.
    """
    return F.normalize(features @ features.T)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ‖G_s − G_t‖² / B², a mean over pairs of images.

    Rows of G have norm 1, so the loss decreases with the batch size.

    Args:
        student: `similarity_matrix`, [B, B].
        teacher: `similarity_matrix`, [B, B].

    Returns:
        Scalar in [0, 4 / B].

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Similarities", student, teacher)
    return F.mse_loss(student, teacher)


class SimilarityPreserving(HintMethod):
    """classification + alpha·KD + beta·`sp_loss`, at the stage `hint_layer`.

    Raises:
        UserError: a network has no stage `hint_layer`.
    """

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Return the terms ``kd`` and ``sp``."""
        student_features, teacher_features = (
            x.float().flatten(1) for x in (self.hint_features(features), targets[self.hint_name])
        )
        sp = sp_loss(similarity_matrix(student_features), similarity_matrix(teacher_features))
        return add_kd_term(self.config, logits, targets, sp=sp)
