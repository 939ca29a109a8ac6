"""SP (Tung & Mori 2019): images that are alike to the teacher are to be alike to the student."""

from torch import Tensor
from torch.nn import functional as F

from kdtune.methods.hint_based import OfHint
from kdtune.methods.kd import with_kd
from kdtune.methods.method import Maps, Parts, Terms, match_shape


def similarities(rows: Tensor) -> Tensor:
    """How alike the images of a batch are: G = F·Fᵀ, each row divided by its norm.

    Args:
        rows: features of an image a row, [B, D].

    Returns:
        [B, B]; rotating or scaling all features together changes nothing.
    """
    return F.normalize(rows @ rows.T)


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
    match_shape("Similarities", student, teacher)
    return F.mse_loss(student, teacher)


class SimilarityPreserving(OfHint):
    """classification + alpha·KD + beta·`sp_loss`, at the stage `hint_layer`.

    Raises:
        UserError: a network has no stage `hint_layer`.
    """

    def terms(self, logits: Tensor, features: Maps, targets: Parts, labels: Tensor) -> Terms:
        """The terms ``kd`` and ``sp``."""
        own, hint = (x.float().flatten(1) for x in (self.rows(features), targets[self.hint]))
        sp = sp_loss(similarities(own), similarities(hint))
        return with_kd(self.config, logits, targets, sp=sp)
