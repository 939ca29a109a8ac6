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
    known = loaded["num_classes"]
    wanted = len(classes) if classes is not None else num_classes
    if wanted is not None and known != wanted:
        raise UserError(
            f"The teacher {path} knows {known} classes, but the data have {wanted}; "
            "train a teacher on these data."
        )
    if classes is not None and loaded["classes"] is not None:
        if lacking := sorted(set(classes) - set(loaded["classes"])):
            raise UserError(
                f"The teacher {path} does not know the class '{lacking[0]}' of the data; "
                "train a teacher on these data."
            )
        if loaded["classes"] != list(classes):
            raise UserError(f"The teacher {path} has the data's classes in another order.")
    trained_at = _trained_at(loaded)
    if None not in (image_size, trained_at) and image_size != trained_at:
        raise UserError(
            f"The teacher {path} was trained at {trained_at} px, but image_size is {image_size}; "
            f"use image_size {trained_at}, or train a teacher at {image_size} px."
        )
    return loaded["model"].requires_grad_(False)


def _trained_at(loaded: dict[str, Any]) -> int | None:
    return loaded["config"]["image_size"] if loaded["config"] is not None else None


def teacher_summary(path: str | Path) -> dict[str, Any]:
    """Describe a teacher in plain values, for the log: file, content hash, architecture, accuracy.

    ``sha256`` is that of the file; accuracies are shares of 1. What the file does not say is None:
    accuracies that were not measured, and ``image_size`` where kdtune did not write it.
    """
    loaded = load_model(path)
    return {
        "path": str(path),
        "sha256": hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest(),
        "model": loaded["architecture"],
        "image_size": _trained_at(loaded),
        "validation_accuracy": loaded.get("validation_accuracy"),
        "test_accuracy": loaded.get("test_accuracy"),
    }
