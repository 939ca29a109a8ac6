"""Load a teacher: safely, and only one that fits the data.

Training a teacher is an ordinary run with the method `student`.
"""

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from kdtune.errors import UserError
from kdtune.models.checkpoints import load_model


def load_teacher(
    path: str | Path,
    classes: tuple[str, ...] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """Load a teacher in eval mode, without gradients.

    A file that kdtune did not write names neither its classes nor its image size: there the
    number of classes is compared, and any image size accepted.

    Args:
        path: a checkpoint, see `load_model`.
        classes: the data's class names; None if it has no names.
        image_size: the run's image size in pixels; None accepts the teacher's.
        num_classes: K, where there are no names; None accepts the teacher's.

    Returns:
        The network, on the CPU.

    Raises:
        UserError: the file is no checkpoint, or the teacher was trained for other classes or for
            another image size.
    """
    loaded = load_model(path)
    teacher_classes = loaded["num_classes"]
    data_classes = len(classes) if classes is not None else num_classes
    if data_classes is not None and teacher_classes != data_classes:
        raise UserError(
            f"The teacher {path} knows {teacher_classes} classes, but the data have {data_classes}; "
            "train a teacher on these data."
        )
    if classes is not None and loaded["classes"] is not None:
        if missing := sorted(set(classes) - set(loaded["classes"])):
            raise UserError(
                f"The teacher {path} does not know the class '{missing[0]}' of the data; "
                "train a teacher on these data."
            )
        if loaded["classes"] != list(classes):
            raise UserError(f"The teacher {path} has the data's classes in another order.")
    trained_image_size = _trained_image_size(loaded)
    if None not in (image_size, trained_image_size) and image_size != trained_image_size:
        raise UserError(
            f"The teacher {path} was trained at {trained_image_size} px, but image_size is {image_size}; "
            f"use image_size {trained_image_size}, or train a teacher at {image_size} px."
        )
    return loaded["model"].requires_grad_(False)


def _trained_image_size(loaded: dict[str, Any]) -> int | None:
    return loaded["config"]["image_size"] if loaded["config"] is not None else None


def describe_teacher(path: str | Path) -> dict[str, Any]:
    """Describe a teacher in plain values, for the log: file, content hash, architecture, accuracy.

    ``sha256`` is that of the file; accuracies are shares of 1. What the file does not say is None:
    accuracies that were not measured, and ``image_size`` where kdtune did not write it.
    """
    loaded = load_model(path)
    return {
        "path": str(path),
        "sha256": hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest(),
        "model": loaded["architecture"],
        "image_size": _trained_image_size(loaded),
        "validation_accuracy": loaded.get("validation_accuracy"),
        "test_accuracy": loaded.get("test_accuracy"),
    }
