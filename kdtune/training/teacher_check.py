"""Check of a teacher before any trial: its values must be finite, and its accuracy is shown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch
from kdtune.errors import UserError
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.training.teacher_targets import TEACHER_BATCH_SIZE

_CHUNK_IMAGES = 4096  # that are looked at together, to save memory


class TeacherCheck(NamedTuple):
    """Accuracies of a teacher, shares of 1.

    On training images it is None without cached targets of these images as they are.
    """

    train_accuracy: float | None
    validation_accuracy: float

    def describe(self) -> str:
        """Return the accuracies as text."""
        parts = [f"{100 * self.validation_accuracy:.2f} % on validation images"]
        if self.train_accuracy is not None:
            parts.insert(0, f"{100 * self.train_accuracy:.2f} % on training images")
        return f"accuracy {' and '.join(parts)}"


def check_teacher(
    teacher: nn.Module,
    config: TrainConfig,
    validation: Iterable[Batch],
    train_labels: Sequence[int],
    targets: Mapping[str, np.ndarray],
) -> TeacherCheck:
    """Return a teacher's accuracies; a `UserError` if it gives values that are not finite.

    Args:
        teacher: in eval mode.
        config: gives path of the teacher, device and precision.
        validation: batches of the validation images.
        train_labels: of the training images.
        targets: cached targets of the training images as they are, by name; empty without any.
    """
    require_finite(config, targets)
    logits, labels = _compute_logits(teacher, config, validation)
    require_finite(config, {"logits": logits.numpy()})
    train_accuracy = None
    if "logits" in targets:
        predicted = np.argmax(targets["logits"], axis=1)
        train_accuracy = float(np.mean(predicted == np.asarray(train_labels)))
    return TeacherCheck(train_accuracy, float((logits.argmax(1) == labels).float().mean()))


@torch.no_grad()
def _compute_logits(
    teacher: nn.Module, config: TrainConfig, batches: Iterable[Batch]
) -> tuple[Tensor, Tensor]:
    settings = config.model_copy(update={"compile": False})
    model = DeviceModel(teacher, pick_device(config.device), settings)
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for images, batch_labels, _ in batches:
        # A teacher takes more memory than a student.
        for part in torch.split(images, TEACHER_BATCH_SIZE):
            logits.append(model(part.to(model.device))[0].float().cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(logits), torch.cat(labels)


def require_finite(config: TrainConfig, targets: Mapping[str, np.ndarray]) -> None:
    """Raise a `UserError` if a teacher gave values that are not finite.

    Args:
        config: gives the path of the teacher.
        targets: its outputs by name, one row per image.
    """
    num_images = max(map(len, targets.values()), default=0)
    is_finite = np.ones(num_images, dtype=bool)
    for array in targets.values():
        for start in range(0, num_images, _CHUNK_IMAGES):
            images = slice(start, start + _CHUNK_IMAGES)
            finite = np.isfinite(array[images])
            is_finite[images] &= finite.reshape(len(finite), -1).all(1)
    if count := num_images - int(is_finite.sum()):
        raise UserError(
            f"The teacher {config.teacher_model} gives values that are not finite (for {count:,} "
            f"of {num_images:,} images): train or save it again."
        )
