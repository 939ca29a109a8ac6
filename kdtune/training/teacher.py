"""Loading of a teacher, which must fit the data; training one is an ordinary run."""

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
    """Load a teacher in eval mode, without gradients, on the CPU.

    Args:
        path: a checkpoint; of a file that is not kdtune's, only K is compared.
        classes: the data's class names; None if it has no names.
        image_size: the run's image size in pixels; None accepts the teacher's.
        num_classes: K, if there are no names; None accepts the teacher's.
    """
    loaded = load_model(path)
    num_classes = len(classes) if classes is not None else num_classes
    if num_classes not in (None, loaded["num_classes"]):
        raise UserError(
            f"The teacher {path} knows {loaded['num_classes']} classes, but the data have "
            f"{num_classes}; train a teacher on these data."
        )
    if classes is not None and loaded["classes"] is not None:
        if missing := sorted(set(classes) - set(loaded["classes"])):
            raise UserError(
                f"The teacher {path} does not know the class '{missing[0]}' of the data; "
                "train a teacher on these data."
            )
        if loaded["classes"] != list(classes):
            raise UserError(f"The teacher {path} has the data's classes in another order.")
    trained_size = (loaded["config"] or {}).get("image_size")
    if None not in (image_size, trained_size) and image_size != trained_size:
        raise UserError(
            f"The teacher {path} was trained at {trained_size} px, but image_size is "
            f"{image_size}; use image_size {trained_size}, or train a teacher at {image_size} px."
        )
    model: nn.Module = loaded["model"]
    return model.requires_grad_(False)


def describe_teacher(path: str | Path) -> dict[str, Any]:
    """Describe a teacher in plain values; accuracies are shares of 1, None if not in the file."""
    loaded = load_model(path)
    return {
        "path": str(path),
        "sha256": hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest(),
        "model": loaded["architecture"],
        "image_size": (loaded["config"] or {}).get("image_size"),
        "metric": (loaded["config"] or {}).get("metric", "accuracy"),
        "validation_accuracy": loaded.get("validation_accuracy"),
        "test_accuracy": loaded.get("test_accuracy"),
    }
