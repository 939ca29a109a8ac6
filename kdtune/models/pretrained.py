"""Weights to begin with: torchvision's own by name, or a `state_dict` in a file.

They are read as tensors, never as code. kdtune normalises all images with ImageNet's statistics,
so torchvision's weights that want another normalisation are refused; what a file's weights want,
nobody can see.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from kdtune.errors import UserError, last_line
from kdtune.models.checkpoints import find_state_dicts, read_tensor_file
from kdtune.models.resnet import load_weights_strictly
from kdtune.runtime.console import printable_path


def load_pretrained(model: nn.Module, name: str, weights: str, num_classes: int) -> str:
    """Put weights into a network; a head for another number of classes stays as it is.

    Args:
        model: the network; its other weights are replaced.
        name: its name, see `kdtune.models.build_model`.
        weights: ``DEFAULT``, or another name of torchvision's weights for it; or a file with a
            `state_dict`, of the network's own names, alone, in a dict or with a prefix.
        num_classes: K.

    Returns:
        A sentence on what was done.

    Raises:
        UserError: the weights cannot be had, are of another network, or want images that are
            normalised otherwise.
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
    loaded_weights = {_current_name(key): value for key, value in candidates[0].items()}
    loaded_weights = {
        key: value
        for key, value in loaded_weights.items()
        if not key.startswith(AUXILIARY_PREFIXES)
    }
    head_keys = _find_head_keys(model_weights, loaded_weights, num_classes)
    try:
        load_weights_strictly(
            model, {**loaded_weights, **{key: model_weights[key] for key in head_keys}}
        )
    except ValueError as error:
        raise UserError(
            f"{weights} holds the weights of another network than {name}: {error}."
        ) from None
    if not head_keys:
        return f"{name} begins with all the weights of {weights}"
    return (
        f"{name} begins with the weights of {weights}, but with a fresh head: "
        f"{len(loaded_weights[head_keys[0]])} classes there, {num_classes} here"
    )


AUXILIARY_PREFIXES = ("aux1.", "aux2.", "AuxLogits.")
"""Further logits of GoogLeNet and Inception, which kdtune's do not have."""


def _current_name(key: str) -> str:
    """Names as they are now: torchvision's files of DenseNets are older than its networks."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)


def _find_head_keys(
    model_weights: Mapping[str, Tensor], loaded_weights: Mapping[str, Tensor], num_classes: int
) -> list[str]:
    """Weights of the last layer, if it is for another number of classes; else none."""
    mismatched = [
        key
        for key in model_weights
        if key in loaded_weights and model_weights[key].shape != loaded_weights[key].shape
    ]
    layers = {key.rpartition(".")[0] for key in mismatched}
    for key in mismatched:
        expected_shape, loaded_shape = model_weights[key].shape, loaded_weights[key].shape
        if (
            len(layers) > 1
            or expected_shape[1:] != loaded_shape[1:]
            or expected_shape[:1] != (num_classes,)
        ):
            return []
    return mismatched


def _read_weights(name: str, weights: str) -> Any:
    known = _known_weights(name)
    if weights in known:
        return _download_weights(name, known[weights])
    if Path(weights).expanduser().is_file():
        return read_tensor_file(Path(weights).expanduser())
    raise UserError(
        f"There is no file {printable_path(weights)} with weights for {name}, and torchvision has "
        f"{', '.join(known) or 'none'} for it."
    )


def _known_weights(name: str) -> dict[str, Any]:
    """torchvision's weights for a network, by their names."""
    torchvision_name = name.removeprefix("torchvision:").lower()
    if torchvision_name not in torchvision.models.list_models(module=torchvision.models):
        return {}
    known = torchvision.models.get_model_weights(torchvision_name).__members__
    return {"DEFAULT": known["DEFAULT"], **known} if known else {}


def _download_weights(name: str, weights: Any) -> Any:
    transforms = weights.transforms()
    if (tuple(transforms.mean), tuple(transforms.std)) != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(
            f"The weights {weights.name} of {name} want images that are normalised otherwise than "
            "kdtune's, which are with ImageNet's mean and deviation; take other weights."
        )
    try:
        return torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # no network, no room, a broken file: each in its own way
        reason = last_line(error).strip("<>.")
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise UserError(
            f"The weights {weights.name} of {name} cannot be downloaded ({reason}): put the file "
            f"{file.name} of torchvision's into {file.parent}, or give its path with --weights."
        ) from None
