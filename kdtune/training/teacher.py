"""Loading of a teacher, which must fit the data; training one is an ordinary run."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdtune.config.field_types import layer_names
from kdtune.config.names import split_teacher
from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.models.checkpoints import load_model


def load_teacher(
    teacher: str | Path,
    classes: tuple[str, ...] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    layers: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> nn.Module:
    """Load a teacher in eval mode, without gradients, on the CPU.

    Args:
        teacher: a checkpoint, or ``NAME=FILE``: a network and its `state_dict`, of which only K
            is compared.
        classes: the data's class names; None if it has no names.
        image_size: the run's image size in pixels; None accepts the teacher's.
        num_classes: K, if there are no names; None accepts the teacher's.
        layers: modules that return the feature maps; without names, the network's own stages.
        say: takes a line about other networks in the file.
    """
    loaded = _load(teacher, image_size, layers)
    num_classes = len(classes) if classes is not None else num_classes
    if num_classes not in (None, loaded["num_classes"]):
        raise UserError(
            f"The teacher {teacher} knows {loaded['num_classes']} classes, but the data have "
            f"{num_classes}; train a teacher on these data."
        )
    if classes is not None and loaded["classes"] is not None:
        if missing := sorted(set(classes) - set(loaded["classes"])):
            raise UserError(
                f"The teacher {teacher} was not trained on the class '{missing[0]}' of the data; "
                "train a teacher on these data."
            )
        if loaded["classes"] != list(classes):
            raise UserError(f"The teacher {teacher} has the classes of the data in another order.")
    trained_size = (loaded["config"] or {}).get("image_size")
    if None not in (image_size, trained_size) and image_size != trained_size:
        raise UserError(
            f"The teacher {teacher} was trained at {trained_size} px, but image_size is "
            f"{image_size}; use image_size {trained_size}, or train a teacher at {image_size} px."
        )
    if loaded["note"]:
        say(loaded["note"])
    model: nn.Module = loaded["model"]
    return model.requires_grad_(False)


def load_run_teacher(
    config: TrainConfig,
    classes: tuple[str, ...] | None,
    say: Callable[[str], None] = lambda line: None,
) -> nn.Module | None:
    """Load the teacher of a run with `load_teacher`; return None if it has none.

    Args:
        config: the run's settings.
        classes: the data's class names; None if it has no names.
        say: takes a line about other networks in the file.
    """
    if config.teacher_model is None:
        return None
    layers, size = layer_names(config.teacher_layers), config.image_size
    return load_teacher(config.teacher_model, classes, size, layers=layers, say=say)


def _load(
    teacher: str | Path, image_size: int | None, layers: Sequence[str] = ()
) -> dict[str, Any]:
    name, path = split_teacher(str(teacher))
    return load_model(path, name=name, image_size=image_size, layers=layers)


def describe_teacher(teacher: str | Path, image_size: int | None = None) -> dict[str, Any]:
    """Describe a teacher in plain values; accuracies are shares of 1, None if not in the file.

    Args:
        teacher: see `load_teacher`.
        image_size: the run's image size in pixels, if the user gives one.
    """
    loaded = _load(teacher, image_size)
    return {
        "path": str(teacher),
        "sha256": teacher_sha256(teacher),
        "model": loaded["architecture"],
        "image_size": loaded["image_size"],
        "metric": (loaded["config"] or {}).get("metric", "accuracy"),
        "validation_accuracy": loaded.get("validation_accuracy"),
        "test_accuracy": loaded.get("test_accuracy"),
    }


def teacher_sha256(teacher: str | Path) -> str:
    """Return the SHA-256 of a teacher's file; see `load_teacher`."""
    _, path = split_teacher(str(teacher))
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
