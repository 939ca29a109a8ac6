"""What every method is: `targets`, `terms`, and the loss that follows from them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtune.config.methods import SettingValues
from kdtune.config.train import TrainConfig

StageShapes = list[tuple[int, int, int]]
"""(C, H, W) of each stage."""

FeatureMaps = list[Tensor]
"""Feature maps, one [B, C, H, W] a stage."""

TensorsByName = dict[str, Tensor]
"""Tensors by name."""

LossTerms = dict[str, tuple[float, Tensor]]
"""Terms of a loss by name: weight and raw value, a scalar."""


class Method(nn.Module, ABC):
    """The loss of a student, and what of its teacher the loss needs.

    Built for known feature shapes, so that maps which cannot be compared are refused before
    training. Layers that a method adds are its sub-modules and are trained with the student.

    Args:
        config: the run's settings; a method reads its own weights from it.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Attributes:
        SETTINGS: of a plug-in's method: defaults of settings where they differ from those of
            `TrainConfig`, and, under other names, further settings, which `config` has, too.
        uses_teacher: False if the method has no use for a teacher.
        rounded: targets that may be kept in float16, since the loss does not feel that they are
            rounded by up to 2⁻¹¹ of their values.
        epoch: the epoch under way, from 1; the loop sets it.
    """

    SETTINGS: ClassVar[SettingValues] = {}
    uses_teacher = True

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__()
        self.config = config
        self.epoch = 1
        self.float16_targets: frozenset[str] = frozenset()

    @abstractmethod
    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Keep of the teacher's outputs for a batch what the loss compares with.

        Args:
            logits: the teacher's, [B, K].
            features: the teacher's stages, [B, C, H, W] each.

        Returns:
            Float32 tensors by name, first dimension B, at the size at which they are compared. A
            name says all that makes a target, since methods that use the same name share it.
        """

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """What the loss has beside the classification, in float32 whatever the inputs are.

        A method whose loss is no weighted sum has a `forward` of its own instead.

        Args:
            logits: the student's, [B, K].
            features: the student's stages, [B, C, H, W] each.
            targets: what `targets` gave for the same images; none if no teacher is used.
            labels: class indices, [B].
        """
        raise NotImplementedError(f"{type(self).__name__} has neither terms nor its own forward")

    def forward(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName | None, labels: Tensor
    ) -> TensorsByName:
        """Compute the loss of a batch; without the teacher that a method uses it has no terms.

        Returns:
            See `weighted_sum`.
        """
        without_teacher = targets is None and self.uses_teacher
        terms = {} if without_teacher else self.terms(logits, features, targets or {}, labels)
        return combine_loss_terms(logits, labels, terms)


def combine_loss_terms(logits: Tensor, labels: Tensor, terms: LossTerms) -> TensorsByName:
    """Add weighted terms to the classification loss (cross-entropy) and name every part.

    A term of weight 0 is left out of the sum rather than multiplied by 0, so the limit is exact,
    also for a term that is infinite, and costs no backward pass; its raw value is still given.

    Returns:
        Scalars: ``loss``, which is minimised, ``classification``, and each term raw and as
        ``<term>_weighted``.
    """
    classification = nn.functional.cross_entropy(logits.float(), labels)
    parts = {"classification": classification.detach()}
    loss = classification
    for name, (weight, raw) in terms.items():
        parts[name] = raw.detach()
        parts[f"{name}_weighted"] = torch.zeros_like(parts[name])
        if weight:
            loss = loss + weight * raw
            parts[f"{name}_weighted"] = weight * parts[name]
    return {"loss": loss, **parts}


def require_same_shape(kind: str, student: Tensor, teacher: Tensor) -> None:
    """Refuse tensors that torch would silently broadcast against each other.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{kind} of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} "
            "differ in shape."
        )


def pool_to(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool maps [B, C, H, W] to `size`, in float32; maps of that size stay as they are."""
    features = features.float()
    if features.shape[2:] == torch.Size(size):
        return features
    return nn.functional.adaptive_avg_pool2d(features, size)
