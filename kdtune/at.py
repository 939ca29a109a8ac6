"""Attention transfer in a notebook.

`train_at` does all; the other functions are its pieces, to look at and to build with.
"""

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
    """Complete settings of an attention-transfer run.

    Args:
        kwargs: settings that differ from the defaults, see `TrainConfig`.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    return create_method_config("at", kwargs)


DEFAULT_CONFIG = create_at_config()
"""What `train_at` uses where a config says nothing."""


def train_at(
    config: Mapping[str, Any] | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
) -> dict[str, Any]:
    """Train a student with attention transfer.

    Args:
        config: settings that differ from `DEFAULT_CONFIG`. Without ``teacher_model`` the student
            learns from the labels alone.
        train_loader: any iterable of (images [B, 3, H, W], labels [B]) that can be gone through
            again and again; if not given, ``config["data_dir"]`` gives all three.
        val_loader: the images on which the best epoch is chosen. With a `train_loader` alone the
            last epoch counts as the best, and there is no validation accuracy.
        test_loader: read once, at the end.

    Returns:
        ``model`` (weights of the best validation epoch), ``teacher_model`` or None,
        ``best_accuracy``, ``training_history``, ``test_results``, ``config`` (all that is needed
        to run again, but for loaders that were given) and ``experiment_name``; see
        `kdtune.training.run.run_training`, also for the files that a run writes and for how
        it goes on
        after an interruption.

    Raises:
        UserError: the settings, the data or the teacher are no good.
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
        x: images [B, 3, H, W], uint8 or normalised, of `config["image_size"]`.
        y: class indices [B].
        config: settings of the method, see `create_at_config`.

    Returns:
        Scalars: ``loss``, to call `backward` on, and its parts, raw and weighted:
        ``classification``, ``kd``, ``kd_weighted``, ``at``, ``at_weighted``.

    Raises:
        UserError: the settings are no good, or the networks cannot be compared.
    """
    settings = TrainConfig.for_method("at", config)
    return compute_loss(student_model, teacher_model, x, y, settings)


def extract_attention_maps(
    model: nn.Module, x: Tensor, config: Mapping[str, Any] | None = None
) -> list[Tensor]:
    """Attention maps of all stages.

    The loss compares these, or, of two of different size, the smaller and a map of the larger
    one's features after pooling.

    Args:
        model: returns logits and features; in eval mode meanwhile, without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: not needed: maps follow from the network alone.

    Returns:
        One [B, H·W] a stage; each row has L2 norm 1.
    """
    return [attention_map(features) for features in compute_stage_features(model, x)]


def visualize_attention_maps(
    model: nn.Module, x: Tensor, config: Mapping[str, Any] | None = None, layer_idx: int = 0
) -> Tensor:
    """The attention map of one stage, in its place; `draw_attention_maps` draws it.

    Args:
        model: see `extract_attention_maps`.
        x: images [B, 3, H, W], uint8 or normalised.
        config: not needed: maps follow from the network alone.
        layer_idx: the stage, from 0; negative ones count from the last.

    Returns:
        [B, H, W] of the stage.

    Raises:
        UserError: there is no such stage.
    """
    return spatial_attention_map(pick_stage(compute_stage_features(model, x), layer_idx))


def draw_attention_maps(
    models: nn.Module | Mapping[str, nn.Module], x: Tensor, layers: Sequence[int] | None = None
) -> Figure:
    """Draw images and the attention maps that networks have of them; see `draw_maps`.

    Args:
        models: a network, or several by name, e.g. ``{"student": student, "teacher": teacher}``,
            or one student at several epochs.
        x: images [B, 3, H, W], uint8 or normalised; the first four are drawn.
        layers: stages, from 0 or, negative, from the last; all if not given.
    """
    return draw_maps(models, x, spatial_attention_map, layers)
