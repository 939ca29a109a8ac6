"""Base class of all distillation methods, and helpers of their losses."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtune.config.methods import SettingValues
from kdtune.config.train import TrainConfig

StageShapes = list[tuple[int, int, int]]
"""(C, H, W) of each stage."""

FeatureMaps = list[Tensor]
"""Feature maps, [B, C, H, W] of each stage."""

TensorsByName = dict[str, Tensor]

LossTerms = dict[str, tuple[float, Tensor]]
"""Terms of a loss by name: weight and unweighted value, a scalar."""


class Method(nn.Module, ABC):
    """The loss of a student, and the teacher's targets that the loss needs.

    It is built for known feature shapes, so that maps which cannot be compared are refused before
    training. Layers that a method adds are its sub-modules and are trained with the student.

    Args:
        config: the run's settings; a method reads its own weights from it.
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages, or None without a teacher.

    Attributes:
        SETTINGS: for a plug-in's method: defaults that differ from those of `TrainConfig`, and
            defaults of settings that only this method has; `config` has both.
        has_hint_stage: True if the first `hint_epochs` epochs do not train the classifier.
        uses_teacher: False if the method ignores the teacher.
        float16_targets: names of targets that may be cached in float16: rounding them by up to
            2⁻¹¹ of their values does not change the loss noticeably.
        epoch: the current epoch, from 1; the loop sets it.
        class_weights: of the classification loss in training, [K]; the loop sets it, or None.
    """

    SETTINGS: ClassVar[SettingValues] = {}
    has_hint_stage = False
    uses_teacher = True

    def __init__(self, config: TrainConfig, student: StageShapes, teacher: StageShapes | None):
        super().__init__()
        self.config = config
        self.epoch = 1
        self.float16_targets: frozenset[str] = frozenset()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

    @abstractmethod
    def targets(self, logits: Tensor, features: FeatureMaps) -> TensorsByName:
        """Compute from the teacher's outputs for a batch what the loss compares with.

        Methods share targets of the same name, so a name must define the target completely.

        Args:
            logits: the teacher's, [B, K].
            features: the teacher's stages, [B, C, H, W] each.

        Returns:
            Float32 tensors by name, first dimension B, at the size at which they are compared.
        """

    def terms(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName, labels: Tensor
    ) -> LossTerms:
        """Compute the terms of the loss besides classification, in float32.

        A method whose loss is not a weighted sum overrides `forward` instead.

        Args:
            logits: the student's, [B, K].
            features: the student's stages, [B, C, H, W] each.
            targets: the result of `targets` for the same images; empty without a teacher.
            labels: class indices, [B]; of mixed images those of the larger part.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither terms nor its own forward")

    def forward(
        self, logits: Tensor, features: FeatureMaps, targets: TensorsByName | None, labels: Tensor
    ) -> TensorsByName:
        """Compute the loss of a batch from the arguments of `terms`; it has none without targets.

        Labels of mixed images are shares of the classes, [B, K].

        Returns:
            Scalars: ``loss``, which is minimised, ``classification``, and each term unweighted and
            as ``<term>_weighted``.
        """
        without_teacher = targets is None and self.uses_teacher
        terms: LossTerms = {}
        if not without_teacher:
            terms = self.terms(logits, features, targets or {}, class_indices(labels))
        return self._combine_terms(logits, labels, terms)

    def _combine_terms(self, logits: Tensor, labels: Tensor, terms: LossTerms) -> TensorsByName:
        smoothing, weights = self.config.label_smoothing, self.class_weights
        if not self.training:  # plain cross-entropy, whatever the recipe
            smoothing, weights = 0.0, None
        classification = nn.functional.cross_entropy(
            logits.float(), labels, weights, label_smoothing=smoothing
        )
        loss, parts = classification, {"classification": classification.detach()}
        for name, (weight, raw) in terms.items():
            parts[name] = raw.detach()
            parts[f"{name}_weighted"] = torch.zeros_like(parts[name])
            if weight:  # else an infinite term would spoil the sum, and cost a backward pass
                loss = loss + weight * raw
                parts[f"{name}_weighted"] = weight * parts[name]
        return {"loss": loss, **parts}


def describe_pooling(student: StageShapes, teacher: StageShapes) -> str:
    """Say at which sizes stages are compared; empty if student and teacher have equal ones.

    Args:
        student: (C, H, W) of the student's stages.
        teacher: (C, H, W) of the teacher's stages.

    >>> describe_pooling([(8, 16, 16), (9, 8, 8)], [(5, 4, 4), (5, 4, 4), (5, 4, 4)])
    'maps of 16, 8 px, the teacher of 4, 4, 4 px: compared at 4, 4 px, from the last stage back'
    """
    sides = [[height for _, height, _ in shapes] for shapes in (student, teacher)]
    if sides[0] == sides[1]:
        return ""
    pairs = zip(*(reversed(side) for side in sides), strict=False)
    compared = [min(pair) for pair in pairs][::-1]
    own, others, common = (", ".join(map(str, side)) for side in (*sides, compared))
    return (
        f"maps of {own} px, the teacher of {others} px: compared at {common} px, from the last "
        "stage back"
    )


def class_indices(labels: Tensor) -> Tensor:
    """Return class indices [B] of labels that are such, or shares of the classes [B, K]."""
    return labels if labels.ndim == 1 else labels.argmax(1)


def check_same_shape(kind: str, student: Tensor, teacher: Tensor) -> None:
    """Raise a `ValueError` for tensors that torch would silently broadcast.

    Args:
        kind: name of the tensors in the error.
        student: any tensor.
        teacher: any tensor.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{kind} of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} "
            "differ in shape."
        )


def pool_to(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool maps to a size, in float32.

    Args:
        features: maps [B, C, H, W].
        size: (H, W) of the result; maps of this size are not changed.
    """
    features = features.float()
    if features.shape[2:] == torch.Size(size):
        return features
    return nn.functional.adaptive_avg_pool2d(features, size)
