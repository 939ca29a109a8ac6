"""Networks that return logits and feature maps: ``logits, features = model(images)``.

Images are float ``[B, 3, H, W]``, logits ``[B, K]``, features one map ``[B, C, H, W]`` per stage.
`kdtune.config.names.MODEL_NAMES` lists kdtune's networks; plug-ins add others, and those of
`LIBRARIES` are named as ``torchvision:resnet34``.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from kdtune.config.names import MODEL_NAMES
from kdtune.errors import UserError
from kdtune.models.feature_maps import keeping_modes, with_feature_maps
from kdtune.models.library import LIBRARIES
from kdtune.plugins import Registry

_Constructor = Callable[[int, int], nn.Module]


def _import_model(path: str) -> _Constructor:
    module, name = path.split(":")
    constructor: _Constructor = getattr(import_module(f"kdtune.models.{module}"), name)
    return constructor


MODELS: Registry[_Constructor] = Registry(
    "model", "MODELS", {name: _import_model(path) for name, path in MODEL_NAMES.items() if path}
)
"""Constructors of networks by name, called with (number of classes, image size)."""


def require_model(name: str) -> None:
    """Raise a `UserError` that names a similar model if there is none of this name."""
    library, _, name_in_library = name.partition(":")
    if name_in_library and library in LIBRARIES:
        LIBRARIES[library].require(name_in_library)
    else:
        MODELS.require(name, [f"{library}:NAME" for library in LIBRARIES])


def build_model(
    name: str,
    num_classes: int,
    image_size: int,
    layers: Sequence[str] = (),
    rates: Mapping[str, float] | None = None,
) -> nn.Module:
    """Build a network with fresh weights from the global random state.

    Args:
        name: a key of `MODELS`, or ``LIBRARY:NAME``.
        num_classes: K, length of the logits.
        image_size: height and width in pixels; small images get a stem that keeps their size.
        layers: modules that return the feature maps, see `with_feature_maps`; without names, the
            network's own stages.
        rates: ``drop_rate`` (dropout) and ``drop_path_rate`` (stochastic depth) of a network of a
            library; those that are left out are its own.
    """
    require_model(name)
    if name in MODELS:
        for key in rates or {}:
            libraries = " or ".join(LIBRARIES)
            raise UserError(f"{name} has no {key}: it is a setting of networks of {libraries}.")
        with MODELS.blame_provider(name):
            model = MODELS[name](num_classes, image_size)
            return with_feature_maps(model, layers) if layers else model
    library, _, name_in_library = name.partition(":")
    return LIBRARIES[library].build(name_in_library, num_classes, image_size, layers, rates)


@torch.no_grad()
def probe(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return logits [B, K] and the maps [B, C, H, W] of all stages, in eval mode and float32.

    Args:
        model: returns logits and features; its modules stay in their modes.
        images: floats [B, 3, H, W], normalised.
    """
    with keeping_modes(model):
        return compute_logits_and_features(model.eval(), images)


def compute_logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run a network in its mode and on its device, and check what it returns.

    Args:
        model: returns logits and features.
        images: floats [B, 3, H, W], normalised, on any device.
    """
    logits, maps = split_outputs(model, model(images.to(next(model.parameters()).device)))
    for stage in maps:
        if stage.dim() != 4:
            raise UserError(
                f"A {type(model).__name__} returns {list(stage.shape)} as a stage, not a map "
                "[B, C, H, W]; name the layers that return its maps or tokens."
            )
    return logits, maps


def split_outputs(model: nn.Module, outputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Return logits and stages of ``(logits, [stages])`` or ``(logits, stage, ...)``.

    Args:
        model: the network, for a `UserError` if it returns something else.
        outputs: a tuple or list.
    """
    match outputs:
        case Tensor() as logits, [*stages] if _are_tensors(stages):
            return logits, stages
        case Tensor() as logits, *stages if _are_tensors(stages):
            return logits, stages
    raise UserError(
        f"A {type(model).__name__} does not return (logits, [a map per stage]), as kdtune's "
        "networks do: name the layers that return its maps, with --teacher-layers, "
        "load_teacher_model(..., layers=[...]) or kdtune.models.feature_maps.with_feature_maps."
    )


def _are_tensors(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(value, Tensor) for value in values)


def probe_stage_shapes(model: nn.Module, image_size: int) -> list[tuple[int, int, int]]:
    """Return (C, H, W) of each stage of a network, from one forward pass; see `probe`.

    Args:
        model: returns logits and features.
        image_size: height and width of the images, in pixels.
    """
    return stage_shapes(probe(model, torch.zeros(1, 3, image_size, image_size))[1])


def stage_shapes(features: list[Tensor]) -> list[tuple[int, int, int]]:
    """Return (C, H, W) of each stage, from maps [B, C, H, W]."""
    return [(f.shape[1], f.shape[2], f.shape[3]) for f in features]


def count_classes(model: nn.Module, image_size: int) -> int:
    """Return K, the length of a network's logits.

    Args:
        model: returns logits and features.
        image_size: height and width of the images, in pixels.
    """
    return probe(model, torch.zeros(1, 3, image_size, image_size))[0].shape[1]
