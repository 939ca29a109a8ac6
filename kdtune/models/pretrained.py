"""Pretrained weights: torchvision's own by name, or a `state_dict` in a file.

kdtune normalises all images with ImageNet's statistics, so torchvision's weights that expect
another normalisation are refused; a file does not say which one it expects.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from kdtune.errors import UserError, last_line
from kdtune.models.checkpoints import find_state_dicts, read_tensor_file
from kdtune.models.library import LIBRARIES
from kdtune.models.resnet import load_weights_strictly
from kdtune.runtime.console import printable_path

AUXILIARY_PREFIXES = ("aux1.", "aux2.", "AuxLogits.")
"""Auxiliary heads of GoogLeNet and Inception, which kdtune's networks do not have."""


def load_pretrained(model: nn.Module, name: str, weights: str, num_classes: int) -> str:
    """Load weights into a network, and return a sentence about them.

    A head for another number of classes stays fresh.

    Args:
        model: the network.
        name: its name, see `kdtune.models.build_model`.
        weights: ``DEFAULT`` or another name of torchvision's weights for it, or a file with a
            `state_dict` of the network's own names.
        num_classes: K.
    """
    model_weights = model.state_dict()
    first_key = next(iter(model_weights))
    candidates = [
        candidate
        for candidate in find_state_dicts(_read_weights(name, weights), first_key)
        if candidate.keys() & model_weights.keys()
    ]
    if not candidates:
        raise UserError(f"{weights} holds no weights of {name}: there is no {first_key}.")
    loaded_weights = {
        # torchvision's files of DenseNets have older names of their weights
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): value
        for key, value in candidates[0].items()
        if not key.startswith(AUXILIARY_PREFIXES)
    }
    head_keys = _find_head_keys(model_weights, loaded_weights, num_classes)
    fresh_head = {key: model_weights[key] for key in head_keys}
    try:
        load_weights_strictly(model, {**loaded_weights, **fresh_head})
    except ValueError as error:
        text = f"{weights} holds the weights of another network than {name}: {error}."
        raise UserError(text) from None
    if not head_keys:
        return f"{name} begins with all the weights of {weights}"
    return (
        f"{name} begins with the weights of {weights}, but with a fresh head: "
        f"{len(loaded_weights[head_keys[0]])} classes there, {num_classes} here"
    )


def _find_head_keys(
    model_weights: Mapping[str, Tensor], loaded_weights: Mapping[str, Tensor], num_classes: int
) -> list[str]:
    """Return the weights that differ in shape if they are a head for other classes, else none."""
    shapes = {
        key: (value.shape, loaded_weights[key].shape)
        for key, value in model_weights.items()
        if key in loaded_weights and value.shape != loaded_weights[key].shape
    }
    is_one_layer = len({key.rpartition(".")[0] for key in shapes}) == 1
    is_head = is_one_layer and all(
        own[1:] == loaded[1:] and own[:1] == (num_classes,) for own, loaded in shapes.values()
    )
    return list(shapes) if is_head else []


def _read_weights(name: str, weights: str) -> Any:
    known: Mapping[str, Any] = {}
    torchvision_name = name.removeprefix("torchvision:").lower()
    if torchvision_name in LIBRARIES["torchvision"].list_names():
        known = get_model_weights(torchvision_name).__members__
    if weights in known:
        return _download_weights(name, known[weights])
    path = Path(weights).expanduser()
    if path.is_file():
        return read_tensor_file(path)
    raise UserError(
        f"There is no file {printable_path(weights)} with weights for {name}, and torchvision has "
        f"{', '.join(sorted(known)) or 'none'} for it."
    )


def _download_weights(name: str, weights: Any) -> Any:
    transforms = weights.transforms()
    if (tuple(transforms.mean), tuple(transforms.std)) != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(
            f"The weights {weights.name} of {name} expect images that are normalised otherwise "
            "than with ImageNet's mean and deviation, as kdtune does; take other weights."
        )
    try:
        return torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # no network, a full disk, a broken file: each raises its own
        reason = last_line(error).strip("<>.")
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise UserError(
            f"The weights {weights.name} of {name} cannot be downloaded ({reason}): put the file "
            f"{file.name} of torchvision's into {file.parent}, or give its path with --weights."
        ) from None
