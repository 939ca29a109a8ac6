"""Attention transfer in a notebook: `train_at` trains a student, the rest are its parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.loaders import Loader
from kdtune.methods.at import attention_map
from kdtune.methods.method import TensorsByName
from kdtune.notebook.steps import (
    compute_loss,
    create_method_config,
    load_teacher_model,
    train_epoch,
    validate,
)
from kdtune.training.maps import (
    compute_stage_features,
    draw_maps,
    pick_stage,
    spatial_attention_map,
)
from kdtune.training.run import run_training

__all__ = [
    "DEFAULT_CONFIG",
    "compute_at_loss",
    "create_at_config",
    "draw_attention_maps",
    "extract_attention_maps",
    "load_teacher_model",
    "train_at",
    "train_epoch",
    "validate",
    "visualize_attention_maps",
]


def create_at_config(**kwargs: Any) -> dict[str, Any]:
    """Return complete settings of an attention-transfer run, see `TrainConfig`.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    return create_method_config("at", kwargs)


DEFAULT_CONFIG = create_at_config()
"""Settings of `train_at` that a config does not override."""


def train_at(
    config: Mapping[str, Any] | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
) -> dict[str, Any]:
    """Train a student with attention transfer; see `kdtune.training.run.run_training`.

    Args:
        config: settings that differ from `DEFAULT_CONFIG`; there is no teacher without
            ``teacher_model``.
        train_loader: iterable of (images [B, 3, H, W], labels [B]); without it,
            ``config["data_dir"]`` provides all images.
        val_loader: chooses the best epoch; without it, the last epoch counts as the best.
        test_loader: read once, at the end.

    Returns:
        ``model`` (weights of the best epoch), ``teacher_model`` or None, ``best_accuracy``,
        ``training_history``, ``test_results``, complete ``config`` and ``experiment_name``.

    Raises:
        UserError: the settings, the data or the teacher are not valid.
        DivergedError: the training loss is no longer finite.
    """
    settings = TrainConfig.for_method("at", config or {})
    return run_training(settings, train_loader, val_loader, test_loader)


def compute_at_loss(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    x: Tensor,
    y: Tensor,
    config: Mapping[str, Any],
) -> TensorsByName:
    """Compute the loss of one batch: classification + alpha·KD + beta·AT.

    Args:
        student_model: returns logits and features; its mode stays as it is.
        teacher_model: put into eval mode; None gives the classification alone.
        x: images [B, 3, H, W], uint8 or normalised, of ``config["image_size"]``.
        y: class indices [B].
        config: settings, see `create_at_config`.

    Returns:
        Scalars: ``loss`` (for `backward`), ``classification``, ``kd``, ``kd_weighted``, ``at`` and
        ``at_weighted``.

    Raises:
        UserError: the settings are not valid, or the networks cannot be compared.
    """
    return compute_loss(student_model, teacher_model, x, y, TrainConfig.for_method("at", config))


def extract_attention_maps(
    model: nn.Module, x: Tensor, config: Mapping[str, Any] | None = None
) -> list[Tensor]:
    """Return the attention maps of all stages, [B, H·W] each; rows have L2 norm 1.

    Args:
        model: returns logits and features; runs in eval mode without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: ignored.
    """
    return [attention_map(features) for features in compute_stage_features(model, x)]


def visualize_attention_maps(
    model: nn.Module, x: Tensor, config: Mapping[str, Any] | None = None, layer_idx: int = 0
) -> Tensor:
    """Return the attention maps [B, H, W] of one stage; `draw_attention_maps` draws them.

    Args:
        model: returns logits and features; runs in eval mode without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: ignored.
        layer_idx: a stage that exists, from 0, or negative from the last.
    """
    return spatial_attention_map(pick_stage(compute_stage_features(model, x), layer_idx))


def draw_attention_maps(
    models: nn.Module | Mapping[str, nn.Module], x: Tensor, layers: Sequence[int] | None = None
) -> Figure:
    """Draw images and their attention maps in one or several networks; see `draw_maps`.

    Args:
        models: a network, or networks by name, e.g. ``{"student": student, "teacher": teacher}``.
        x: images [B, 3, H, W], uint8 or normalised; the first four are drawn.
        layers: stages, from 0, or negative from the last; all if not given.
    """
    return draw_maps(models, x, spatial_attention_map, layers)
