"""FitNets in a notebook.

`train_fitnets` does all; the other functions are its pieces, to look at and to build with.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.loaders import Loader
from kdtune.data.transforms import normalise
from kdtune.methods.method import TensorsByName
from kdtune.models import compute_logits_and_features
from kdtune.notebook.steps import (
    compute_loss,
    create_method_config,
    load_teacher_model,
    method_parameters,
    train_epoch,
    validate,
)
from kdtune.training.maps import compute_stage_features, draw_maps, mean_feature_map, pick_stage
from kdtune.training.run import run_training

__all__ = [
    "DEFAULT_CONFIG",
    "compute_fitnets_loss",
    "create_fitnets_config",
    "draw_feature_maps",
    "extract_student_features",
    "extract_teacher_features",
    "load_teacher_model",
    "regressor_parameters",
    "train_epoch",
    "train_fitnets",
    "validate",
    "visualize_feature_maps",
]


def create_fitnets_config(**kwargs: Any) -> dict[str, Any]:
    """Complete settings of a FitNets run.

    Args:
        kwargs: settings that differ from the defaults, see `TrainConfig`.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    return create_method_config("fitnets", kwargs)


DEFAULT_CONFIG = create_fitnets_config()
"""What `train_fitnets` uses where a config says nothing."""


def train_fitnets(
    config: Mapping[str, Any] | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
) -> dict[str, Any]:
    """Train a student with FitNets.

    ``hint_layer`` is the stage whose features are compared, ``hint_epochs`` the length of the
    paper's first stage, in which nothing but these is learned.

    Args:
        config: settings that differ from `DEFAULT_CONFIG`. Without ``teacher_model`` the student
            learns from the labels alone.
        train_loader: see `kdtune.at.train_at`, here and below.
        val_loader: the images on which the best epoch is chosen.
        test_loader: read once, at the end.

    Returns:
        As `kdtune.at.train_at`.

    Raises:
        UserError: the settings, the data or the teacher are no good.
        DivergedError: the training loss is no longer finite.
    """
    settings = TrainConfig.for_method("fitnets", config or {})
    return run_training(settings, train_loader, val_loader, test_loader)


def compute_fitnets_loss(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    x: Tensor,
    y: Tensor,
    config: Mapping[str, Any],
) -> TensorsByName:
    """Compute the loss of one batch: classification + alpha·KD + beta·feature.

    Where student and teacher have different numbers of channels, features are compared through a
    learned regressor; `regressor_parameters` are its parameters. In the first `hint_epochs` epochs
    (as `train_epoch` counts them) the loss is the feature loss alone.

    Args:
        student_model: returns logits and features; its mode stays as it is.
        teacher_model: put into eval mode; None gives the classification alone.
        x: images [B, 3, H, W], uint8 or normalised, of `config["image_size"]`.
        y: class indices [B].
        config: settings of the method, see `create_fitnets_config`.

    Returns:
        Scalars: ``loss``, to call `backward` on, and its parts, raw and weighted:
        ``classification``, ``kd``, ``kd_weighted``, ``feature``, ``feature_weighted``.

    Raises:
        UserError: the settings are no good, or the networks cannot be compared.
    """
    settings = TrainConfig.for_method("fitnets", config)
    return compute_loss(student_model, teacher_model, x, y, settings)


def regressor_parameters(
    student_model: nn.Module, teacher_model: nn.Module, config: Mapping[str, Any]
) -> list[nn.Parameter]:
    """Parameters of the regressor between a student and its teacher, for an optimizer of yours.

    The regressor belongs to the student and lives as long as it; `train_epoch` adds these
    parameters to an optimizer that lacks them, a loop around `compute_fitnets_loss` must.

    Args:
        student_model: returns logits and features.
        teacher_model: likewise.
        config: settings of the method, see `create_fitnets_config`.

    Returns:
        The weights of a 1×1 convolution and its batch norm; none where channel counts agree.

    Raises:
        UserError: the settings are no good, or the networks cannot be compared.
    """
    settings = TrainConfig.for_method("fitnets", config)
    return method_parameters(student_model, teacher_model, settings)


def extract_teacher_features(
    teacher_model: nn.Module, x: Tensor, config: Mapping[str, Any]
) -> Tensor:
    """The hint: the teacher's features at the stage ``config["hint_layer"]``, the last by default.

    Args:
        teacher_model: returns logits and features; in eval mode meanwhile, without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: settings of the method, see `create_fitnets_config`.

    Returns:
        [B, C, H, W], as the network gives them: neither pooled nor cast.

    Raises:
        UserError: there is no such stage.
    """
    settings = TrainConfig.for_method("fitnets", config)
    return pick_stage(compute_stage_features(teacher_model, x), settings.hint_layer)


def extract_student_features(
    student_model: nn.Module, x: Tensor, config: Mapping[str, Any]
) -> Tensor:
    """The student's features at the stage ``config["hint_layer"]``, with gradients.

    Args:
        student_model: returns logits and features; its mode stays as it is.
        x: images [B, 3, H, W], uint8 or normalised.
        config: settings of the method, see `create_fitnets_config`.

    Returns:
        [B, C, H, W], before pooling and regressor.

    Raises:
        UserError: there is no such stage.
    """
    settings = TrainConfig.for_method("fitnets", config)
    _, features = compute_logits_and_features(student_model, normalise(x))
    return pick_stage(features, settings.hint_layer)


def visualize_feature_maps(
    model: nn.Module, x: Tensor, config: Mapping[str, Any] | None = None, layer_idx: int = 0
) -> Tensor:
    """The feature map of one stage; `draw_feature_maps` draws it.

    Args:
        model: returns logits and features; in eval mode meanwhile, without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: not needed: maps follow from the network alone.
        layer_idx: the stage, from 0; negative ones count from the last.

    Returns:
        [B, C, H, W] of the stage.

    Raises:
        UserError: there is no such stage.
    """
    return pick_stage(compute_stage_features(model, x), layer_idx)


def draw_feature_maps(
    models: nn.Module | Mapping[str, nn.Module], x: Tensor, layers: Sequence[int] | None = None
) -> Figure:
    """Draw images and the mean over the channels of networks' features; see `draw_maps`.

    Args:
        models: a network, or several by name, e.g. ``{"student": student, "teacher": teacher}``,
            or one student at several epochs.
        x: images [B, 3, H, W], uint8 or normalised; the first four are drawn.
        layers: stages, from 0 or, negative, from the last; all if not given.
    """
    return draw_maps(models, x, mean_feature_map, layers)
