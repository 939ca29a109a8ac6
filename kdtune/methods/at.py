"""Attention transfer (Zagoruyko & Komodakis 2017): `at`, the authors' code, and `at_paper`."""

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import (
    FeatureMaps,
    LossTerms,
    Method,
    StageShapes,
    TensorsByName,
    pool_to,
    require_same_shape,
)


def attention_map(features: Tensor) -> Tensor:
    """Collapse a stage's channels into one unit-length map per image.

    Q = vec(mean_c F_c²) / ‖vec(mean_c F_c²)‖₂ (Zagoruyko & Komodakis 2017, the form of the
    authors' code).

    Args:
        features: activations of one stage, [B, C, H, W].

    Returns:
        [B, H·W], float32; each row has L2 norm 1, or is 0 where the stage was all zeros.

    >>> import torch
    >>> attention_map(torch.ones(1, 3, 2, 2)).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """
    return F.normalize(_mean_of_squares(features).flatten(1), eps=1e-12)


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
        (features,) = ctx.saved_tensors
        scale = gradients[0].unsqueeze(1) * (2 / features.shape[1])
        gradient: Tensor = (features * scale).to(features.dtype)
        return gradient


def _mean_of_squares(features: Tensor) -> Tensor:
    return cast(Tensor, _MeanOfSquares.apply(features))


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of attention maps, over batch *and* positions.

    This is the form of the authors' code; a stage therefore has the weight beta / (H·W), and beta
    is about 1000.

    Args:
        student: maps [B, H·W] of `attention_map`.
        teacher: maps [B, H·W].

    Returns:
        Scalar in [0, 2 / (H·W)].

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Attention maps", student, teacher)
    loss: Tensor = (student - teacher).pow(2).mean()
    return loss


def at_paper_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute half the distance of attention maps, ½·‖Q_s − Q_t‖₂, mean over the batch.

    Equation 2 of the paper (p = 2), with beta about 0.1. The norm is not squared, so its gradient
    does not vanish as the maps agree, and stages of all sizes have the same weight. The ratio to
    `at_loss` is not constant, so beta does not carry over.

    Args:
        student: maps [B, H·W] of `attention_map`.
        teacher: maps [B, H·W].

    Returns:
        Scalar in [0, 1 / √2].

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape("Attention maps", student, teacher)
    loss: Tensor = torch.linalg.vector_norm(student - teacher, dim=1).mean() / 2
    return loss


class AttentionMethod(Method):
    """classification + alpha·KD + beta·Σ of the attention loss over pairs of stages.

    Stages are paired from the last one backwards. The larger features are average-pooled to the
    size of the smaller before the map is computed. A 1×1 map is constant after normalisation, so
    pairs of that size are left out.

    Args:
        config: the run's settings.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Raises:
        UserError: every pair would be 1×1.
    """

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__(config, student, teacher)
        self.stage_pairs: list[tuple[int, tuple[int, int]]] = []
        """(stage counted from the end, size of the compared maps), first stage first."""
        if teacher is None:
            return
        for index_from_end in range(min(len(student), len(teacher)), 0, -1):
            (_, hs, ws), (_, ht, wt) = student[-index_from_end], teacher[-index_from_end]
            size = (min(hs, ht), min(ws, wt))
            if size != (1, 1):
                self.stage_pairs.append((-index_from_end, size))
        if not self.stage_pairs:
            raise UserError(
                "Attention transfer has nothing to compare: every stage is 1×1; "
                "use a larger image_size."
            )

    @abstractmethod
    def attention_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the maps of a stage.

        Args:
            student: maps [B, H·W].
            teacher: maps [B, H·W].

        Returns:
            A scalar.
        """

    def _attention_maps(self, features: FeatureMaps) -> list[Tensor]:
        return [attention_map(pool_to(features[stage], size)) for stage, size in self.stage_pairs]

    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Return ``logits`` [B, K], and ``attention_<stage>_<H>x<W>`` [B, H·W] of each pair.

        They stay in float32: float16 would round away the small differences between the maps of
        student and teacher.
        """
        maps = dict(zip(self._target_names(), self._attention_maps(features), strict=True))
        return {"logits": logits.float(), **maps}

    def _target_names(self) -> list[str]:
        return [f"attention_{stage}_{h}x{w}" for stage, (h, w) in self.stage_pairs]

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Return the terms ``kd`` and ``at``."""
        student_maps = zip(self._target_names(), self._attention_maps(features), strict=True)
        losses = [self.attention_loss(maps, targets[name]) for name, maps in student_maps]
        at = sum(losses[1:], start=losses[0])
        return add_kd_term(self.config, logits, targets, at=at)


class AttentionTransfer(AttentionMethod):
    """`AttentionMethod` with `at_loss`."""

    def attention_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return `at_loss`."""
        return at_loss(student, teacher)


class PaperAttentionTransfer(AttentionMethod):
    """`AttentionMethod` with `at_paper_loss`; it shares its targets with `AttentionTransfer`."""

    def attention_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return `at_paper_loss`."""
        return at_paper_loss(student, teacher)
