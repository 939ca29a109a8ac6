"""Attention transfer (Zagoruyko & Komodakis 2017): `at`, the authors' code, and `at_paper`."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.kd import FeatureMethod
from kdtune.methods.method import (
    FeatureMaps,
    StageShapes,
    TensorsByName,
    check_same_shape,
    pool_to,
)


def attention_map(features: Tensor) -> Tensor:
    """Collapse a stage's channels into one unit-length map per image, in float32.

    Q = vec(mean_c F_c²) / ‖vec(mean_c F_c²)‖₂ maps [B, C, H, W] to [B, H·W], as in the authors'
    code; a row is 0 where the stage was all zeros.
    """
    mean_of_squares = cast(Tensor, _MeanOfSquares.apply(features))
    return F.normalize(mean_of_squares.flatten(1), eps=1e-12)


class _MeanOfSquares(torch.autograd.Function):
    """mean_c F_c², with a gradient in the memory format of the features.

    Autograd's own gradient is channels first. Added to a channels-last gradient, it slows a step
    of MultiBranchNet at 64 px by about a tenth.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        mean: Tensor = features.float().pow(2).mean(1)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        features: Tensor = ctx.saved_tensors[0]
        scale = gradients[0].unsqueeze(1) * (2 / features.shape[1])
        return (features * scale).to(features.dtype)


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of attention maps, in [0, 2 / (H·W)].

    As in the authors' code, the mean is over batch *and* positions; a stage therefore has the
    weight beta / (H·W), and beta is about 1000.

    Args:
        student: maps [B, H·W] of `attention_map`.
        teacher: maps [B, H·W].
    """
    check_same_shape("Attention maps", student, teacher)
    loss: Tensor = (student - teacher).pow(2).mean()
    return loss


def at_paper_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ½·‖Q_s − Q_t‖₂ of attention maps, mean over the batch, in [0, 1 / √2].

    Equation 2 of the paper (p = 2), with beta about 0.1. The norm is not squared, so its gradient
    does not vanish as the maps agree, and stages of all sizes have the same weight. The ratio to
    `at_loss` is not constant, so beta does not carry over.

    Args:
        student: maps [B, H·W] of `attention_map`.
        teacher: maps [B, H·W].
    """
    check_same_shape("Attention maps", student, teacher)
    loss: Tensor = torch.linalg.vector_norm(student - teacher, dim=1).mean() / 2
    return loss


class AttentionTransfer(FeatureMethod):
    """classification + alpha·KD + beta·Σ `at_loss` over pairs of stages.

    Stages are paired from the last one backwards. The larger features are average-pooled to the
    size of the smaller before the map is computed. A 1×1 map is constant after normalisation, so
    pairs of that size are left out; it is a `UserError` if none is left.
    """

    term_name = "at"
    attention_loss = staticmethod(at_loss)

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        self.stage_pairs: list[tuple[int, tuple[int, int]]] = []
        """(stage counted from the end, size of the compared maps), first stage first."""
        if teacher is None:
            return
        for stage in range(-min(len(student), len(teacher)), 0):
            (_, hs, ws), (_, ht, wt) = student[stage], teacher[stage]
            if (size := (min(hs, ht), min(ws, wt))) != (1, 1):
                self.stage_pairs.append((stage, size))
        if not self.stage_pairs:
            raise UserError(
                "Attention transfer has nothing to compare: every pair of stages is 1×1; "
                "use a larger image_size."
            )

    def _attention_maps(self, features: FeatureMaps) -> TensorsByName:
        return {
            f"attention_{stage}_{h}x{w}": attention_map(pool_to(features[stage], (h, w)))
            for stage, (h, w) in self.stage_pairs
        }

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K], and ``attention_<stage>_<H>x<W>`` [B, H·W] of each pair.

        They stay in float32: float16 would round away the small differences between the maps of
        student and teacher.
        """
        return {"logits": logits.float(), **self._attention_maps(features)}

    def _own_loss(self, features: FeatureMaps, targets: TensorsByName) -> Tensor:
        maps = self._attention_maps(features)
        losses = [self.attention_loss(maps[name], targets[name]) for name in maps]
        return sum(losses[1:], start=losses[0])


class PaperAttentionTransfer(AttentionTransfer):
    """`AttentionTransfer` with `at_paper_loss`, from the same targets."""

    attention_loss = staticmethod(at_paper_loss)
