"""FitNets in a notebook: `train_fitnets` trains a student, the rest are its parts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import Module, Parameter

from kdtune.data.loaders import Loader
from kdtune.data.transforms import normalise
from kdtune.methods.method import TensorsByName
from kdtune.models import compute_logits_and_features
from kdtune.notebook import steps
from kdtune.notebook.steps import load_teacher_model
from kdtune.training import maps
from kdtune.training.run import OnEpoch, RunWatch, run_training

__all__ = [
    "DEFAULT_CONFIG", "compute_fitnets_loss", "create_fitnets_config", "draw_feature_maps",
    "extract_student_features", "extract_teacher_features", "load_teacher_model",
    "regressor_parameters", "train_epoch", "train_fitnets", "validate", "visualize_feature_maps",
]  # fmt: skip

Config = Mapping[str, Any]
DEFAULT_CONFIG = steps.dump_settings(steps.parse_settings("fitnets", {}, {}))
"""Settings that a config does not override; a value that you change counts from then on."""

_parse = partial(steps.parse_settings, "fitnets", DEFAULT_CONFIG)
train_epoch = steps.with_defaults(steps.train_epoch, "fitnets", DEFAULT_CONFIG)
validate = steps.with_defaults(steps.validate, "fitnets", DEFAULT_CONFIG)


def create_fitnets_config(**kwargs: Any) -> dict[str, Any]:
    """Return complete settings of a FitNets run, see `TrainConfig`."""
    return steps.dump_settings(_parse(kwargs))


def train_fitnets(
    config: Config | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
    on_epoch: OnEpoch = lambda metrics: None,
) -> dict[str, Any]:
    """Train a student with FitNets; returns and raises what `kdtune.at.train_at` does.

    Args:
        config: settings that differ from `DEFAULT_CONFIG`: ``hint_layer`` is the compared stage,
            ``hint_epochs`` the length of the first phase, which trains on the hint loss alone.
        train_loader: see `kdtune.at.train_at`, as for the other loaders.
        val_loader: chooses the best epoch.
        test_loader: read once, at the end.
        on_epoch: see `kdtune.at.train_at`.
    """
    watch = RunWatch(on_epoch=on_epoch)
    return run_training(_parse(config or {}), train_loader, val_loader, test_loader, watch)


def compute_fitnets_loss(
    student_model: Module, teacher_model: Module | None, x: Tensor, y: Tensor, config: Config
) -> TensorsByName:
    """Compute the loss of one batch: classification + alpha·KD + beta·feature.

    If channel counts differ, features are compared through a learned regressor, see
    `regressor_parameters`. In the first ``hint_epochs`` epochs, as `train_epoch` counts them, the
    loss is the feature loss alone.

    Args:
        student_model: returns logits and features; its mode stays as it is.
        teacher_model: put into eval mode; None gives the classification alone.
        x: images [B, 3, H, W], uint8 or normalised, of ``config["image_size"]``.
        y: class indices [B].
        config: settings, see `create_fitnets_config`.

    Returns:
        Scalars: ``loss`` (for `backward`), ``classification``, ``kd``, ``kd_weighted``,
        ``feature`` and ``feature_weighted``.
    """
    return steps.compute_loss(student_model, teacher_model, x, y, _parse(config))


def regressor_parameters(
    student_model: Module, teacher_model: Module, config: Config
) -> list[Parameter]:
    """Return the parameters of the regressor between a student and its teacher.

    `train_epoch` adds them to an optimizer that lacks them; a loop around `compute_fitnets_loss`
    must do so itself. There are none if channel counts agree.

    Args:
        student_model: returns logits and features; it owns the regressor.
        teacher_model: returns logits and features.
        config: settings, see `create_fitnets_config`.
    """
    return steps.method_parameters(student_model, teacher_model, _parse(config))


def extract_teacher_features(teacher_model: Module, x: Tensor, config: Config) -> Tensor:
    """Return the hint: the teacher's features [B, C, H, W] at ``config["hint_layer"]``.

    Args:
        teacher_model: returns logits and features; runs in eval mode without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: settings, see `create_fitnets_config`.
    """
    hint_layer = _parse(config).hint_layer
    return maps.pick_stage(maps.compute_stage_features(teacher_model, x), hint_layer)


def extract_student_features(student_model: Module, x: Tensor, config: Config) -> Tensor:
    """Return the student's features [B, C, H, W] at ``config["hint_layer"]``, with gradients.

    Args:
        student_model: returns logits and features; its mode stays as it is.
        x: images [B, 3, H, W], uint8 or normalised.
        config: settings, see `create_fitnets_config`.
    """
    hint_layer = _parse(config).hint_layer
    _, features = compute_logits_and_features(student_model, normalise(x))
    return maps.pick_stage(features, hint_layer)


def visualize_feature_maps(
    model: Module, x: Tensor, config: Config | None = None, layer_idx: int = 0
) -> Tensor:
    """Return the feature maps [B, C, H, W] of one stage; `draw_feature_maps` draws them.

    Args:
        model: returns logits and features; runs in eval mode without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: ignored.
        layer_idx: a stage that exists, from 0, or negative from the last.
    """
    return maps.pick_stage(maps.compute_stage_features(model, x), layer_idx)


def draw_feature_maps(
    models: Module | Mapping[str, Module], x: Tensor, layers: Sequence[int] | None = None
) -> Figure:
    """Draw images and the channel means of their features in one or several networks.

    Args:
        models: a network, or networks by name, e.g. ``{"student": student, "teacher": teacher}``.
        x: images [B, 3, H, W], uint8 or normalised; the first four are drawn.
        layers: stages, from 0, or negative from the last; all if not given.
    """
    return maps.draw_maps(models, x, maps.mean_feature_map, layers)
