"""Checks of a checkpoint from which a run resumes."""

from typing import Any

from kdtune.config.same_settings import changed_settings
from kdtune.config.train import OUTPUT_FIELDS, TrainConfig
from kdtune.errors import UserError

CHANGEABLE_ON_RESUME = OUTPUT_FIELDS | {
    "epochs", "data_dir", "data_root", "image_column", "label_column", "teacher_model",
    "num_workers", "device",
}  # fmt: skip
"""Settings that may change when a run is resumed."""


def validate_resume(
    checkpoint: dict[str, Any],
    path: str | None,
    config: TrainConfig,
    classes: tuple[str, ...],
    has_validation: bool,
) -> None:
    """Raise a `UserError` if a checkpoint is that of another run, or of one that ended.

    Args:
        checkpoint: its content.
        path: its file, for messages.
        config: settings of the run that resumes.
        classes: class names of its data.
        has_validation: True if it has validation images.
    """
    if "training" not in checkpoint:
        raise UserError(f"{path} cannot be resumed: it holds a network, but no run.")
    saved, changeable = checkpoint["config"], CHANGEABLE_ON_RESUME
    if config.lr_scheduler in ("cosine", "one_cycle"):  # their course depends on the last epoch
        changeable = changeable - {"epochs"}
    for key, was in changed_settings(saved, config).items():
        if key not in changeable:
            raise UserError(
                f"{path} was trained with {key} {was!r}, not {getattr(config, key)!r}; "
                "give the same settings to resume it."
            )
    teacher = "a teacher", saved["teacher_model"] is not None, config.teacher_model is not None
    images = "validation images", checkpoint["validation_accuracy"] is not None, has_validation
    for label, was_used, is_used in (teacher, images):
        if was_used != is_used:
            then, now = ("with", "without") if was_used else ("without", "with")
            raise UserError(f"{path} was trained {then} {label}, and cannot be resumed {now}.")
    if checkpoint["classes"] != list(classes):
        raise UserError(
            f"{path} was trained for {len(checkpoint['classes'])} classes, which are not the "
            f"{len(classes)} of these data; give the same data to resume it."
        )
    epoch = checkpoint["training"]["epoch"]
    if epoch >= config.epochs:
        raise UserError(
            f"{path} is at epoch {epoch} of {config.epochs}: nothing is left to train; raise "
            "epochs to train further."
        )
