"""SP (Tung & Mori 2019): similarities between the images of a batch."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.hint_based import HintMethod
from kdtune.methods.method import FeatureMaps, TensorsByName, check_same_shape


def similarity_matrix(features: Tensor) -> Tensor:
    """Compute G = F·Fᵀ, [B, B], from a row of features for each image, [B, D].

    Rows are divided by their norms, so rotating or scaling all features changes nothing.
    """
    return F.normalize(features @ features.T)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ‖G_s − G_t‖² / B², a mean over pairs of images, in [0, 4 / B].

    Rows of G have norm 1, so the loss decreases with the batch size.

    Args:
        student: `similarity_matrix`, [B, B].
        teacher: `similarity_matrix`, [B, B].
    """
    check_same_shape("Similarities", student, teacher)
    return F.mse_loss(student, teacher)


class SimilarityPreserving(HintMethod):
    """classification + alpha·KD + beta·`sp_loss`, at the stage `hint_layer`."""

    term_name = "sp"

    def _own_loss(self, features: FeatureMaps, targets: TensorsByName) -> Tensor:
        hints = (self.hint_features(features), targets[self.hint_name])
        student, teacher = (similarity_matrix(hint.float().flatten(1)) for hint in hints)
        return sp_loss(student, teacher)
