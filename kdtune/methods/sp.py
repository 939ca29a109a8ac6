"""SP (Tung & Mori 2019): images that are alike to the teacher are to be alike to the student."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.hint_based import HintMethod
from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import FeatureMaps, LossTerms, TensorsByName, require_same_shape


def similarity_matrix(features: Tensor) -> Tensor:
    """How alike the images of a batch are: G = F·Fᵀ, each row divided by its norm.

    Args:
        rows: features of an image a row, [B, D].

    Returns:
        [B, B]; rotating or scaling all features together changes nothing.
    """
    return F.normalize(features @ features.T)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s − G_t‖² / B², a mean over pairs of images.

    A row of G has the norm 1, so the loss gets smaller with larger batches.

    Args:
        student: `similarities`, [B, B].
        teacher: likewise.

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
        """The terms ``kd`` and ``sp``."""
        student_features, teacher_features = (
            x.float().flatten(1) for x in (self.hint_features(features), targets[self.hint_name])
        )
        sp = sp_loss(similarity_matrix(student_features), similarity_matrix(teacher_features))
        return add_kd_term(self.config, logits, targets, sp=sp)
