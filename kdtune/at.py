"""Attention transfer in a notebook: `train_at` trains a student, the rest are its parts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import Module

from kdtune.data.loaders import Loader
from kdtune.methods.at import attention_map
from kdtune.methods.method import TensorsByName
from kdtune.notebook import steps
from kdtune.notebook.steps import load_teacher_model
from kdtune.training import maps
from kdtune.training.run import OnEpoch, RunWatch, run_training

__all__ = [
    "DEFAULT_CONFIG", "compute_at_loss", "create_at_config", "draw_attention_maps",
    "extract_attention_maps", "load_teacher_model", "train_at", "train_epoch", "validate",
    "visualize_attention_maps",
]  # fmt: skip

Config = Mapping[str, Any]
DEFAULT_CONFIG = steps.dump_settings(steps.parse_settings("at", {}, {}))
"""Settings that a config does not override; a value that you change counts from then on."""

_parse = partial(steps.parse_settings, "at", DEFAULT_CONFIG)
train_epoch = steps.with_defaults(steps.train_epoch, "at", DEFAULT_CONFIG)
validate = steps.with_defaults(steps.validate, "at", DEFAULT_CONFIG)


def create_at_config(**kwargs: Any) -> dict[str, Any]:
    """Return complete settings of an attention-transfer run, see `TrainConfig`."""
    return steps.dump_settings(_parse(kwargs))


def train_at(
    config: Config | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
    on_epoch: OnEpoch = lambda metrics: None,
) -> dict[str, Any]:
    """Train a student with attention transfer; see `kdtune.training.run.run_training`.

    Args:
        config: settings that differ from `DEFAULT_CONFIG`; there is no teacher without
            ``teacher_model``.
        train_loader: iterable of (images [B, 3, H, W], labels [B]); without it,
            ``config["data_dir"]`` provides all images.
        val_loader: chooses the best epoch; without it, the last epoch counts as the best.
        test_loader: read once, at the end.
        on_epoch: called with the entry of ``training_history`` after each epoch.

    Returns:
        ``model`` (weights of the best epoch), ``teacher_model`` or None, ``best_accuracy``,
        ``training_history``, ``test_results``, complete ``config`` and ``experiment_name``.
    """
    watch = RunWatch(on_epoch=on_epoch)
    return run_training(_parse(config or {}), train_loader, val_loader, test_loader, watch)


def compute_at_loss(
    student_model: Module, teacher_model: Module | None, x: Tensor, y: Tensor, config: Config
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
    """
    return steps.compute_loss(student_model, teacher_model, x, y, _parse(config))


def extract_attention_maps(model: Module, x: Tensor, config: Config | None = None) -> list[Tensor]:
    """Return the attention maps of all stages, [B, H·W] each; rows have L2 norm 1.

    Args:
        model: returns logits and features; runs in eval mode without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: ignored.
    """
    return [attention_map(features) for features in maps.compute_stage_features(model, x)]


def visualize_attention_maps(
    model: Module, x: Tensor, config: Config | None = None, layer_idx: int = 0
) -> Tensor:
    """Return the attention maps [B, H, W] of one stage; `draw_attention_maps` draws them.

    Args:
        model: returns logits and features; runs in eval mode without gradients.
        x: images [B, 3, H, W], uint8 or normalised.
        config: ignored.
        layer_idx: a stage that exists, from 0, or negative from the last.
    """
    features = maps.compute_stage_features(model, x)
    return maps.spatial_attention_map(maps.pick_stage(features, layer_idx))


def draw_attention_maps(
    models: Module | Mapping[str, Module], x: Tensor, layers: Sequence[int] | None = None
) -> Figure:
    """Draw images and their attention maps in one or several networks; see `draw_maps`.

    Args:
        models: a network, or networks by name, e.g. ``{"student": student, "teacher": teacher}``.
        x: images [B, 3, H, W], uint8 or normalised; the first four are drawn.
        layers: stages, from 0, or negative from the last; all if not given.
    """
    return maps.draw_maps(models, x, maps.spatial_attention_map, layers)
