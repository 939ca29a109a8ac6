"""Load a teacher: safely, and only one that fits the data.

It reads kdtune's own checkpoints. Training a teacher is an ordinary run with the method `student`.
"""

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from kdtune.checkpoints import load_model
from kdtune.errors import UserError


def load_teacher(
    path: str | Path, classes: tuple[str, ...] | None, image_size: int | None
) -> nn.Module:
    """Load a teacher in eval mode, without gradients.

    Args:
        path: a checkpoint.
        classes: the data's class names; None if it has no names.
        image_size: the run's image size in pixels; None accepts the teacher's.

    Returns:
        The network, on the CPU.

    Raises:
        UserError: the file is no checkpoint, or the teacher was trained for other classes or for
            another image size.
    """
    loaded = load_model(path)
    if classes is None:
        classes = tuple(loaded["classes"])
    if len(loaded["classes"]) != len(classes):
        raise UserError(
            f"The teacher {path} knows {len(loaded['classes'])} classes, but the data have "
            f"{len(classes)}; train a teacher on these data."
        )
    if lacking := sorted(set(classes) - set(loaded["classes"])):
        raise UserError(
            f"The teacher {path} does not know the class '{lacking[0]}' of the data; "
            "train a teacher on these data."
        )
    if loaded["classes"] != list(classes):
        raise UserError(f"The teacher {path} has the data's classes in another order.")
    trained_at = loaded["config"]["image_size"]
    if image_size is not None and image_size != trained_at:
        raise UserError(
            f"The teacher {path} was trained at {trained_at} px, but image_size is {image_size}; "
            f"use image_size {trained_at}, or train a teacher at {image_size} px."
        )
    return loaded["model"].requires_grad_(False)


def teacher_summary(path: str | Path) -> dict[str, Any]:
    """Describe a teacher in plain values, for the log: file, content hash, architecture, accuracy.

    ``sha256`` is that of the file; accuracies are shares of 1, None where they were not measured.
    """
    loaded = load_model(path)
    return {
        "path": str(path),
        "sha256": hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest(),
        "model": loaded["config"]["model"],
        "image_size": loaded["config"]["image_size"],
        "validation_accuracy": loaded.get("validation_accuracy"),
        "test_accuracy": loaded.get("test_accuracy"),
    }
