"""Pretrained weights: torchvision's own by name, or a `state_dict` in a file.

kdtune normalises all images with ImageNet's statistics, so torchvision's weights that expect
another normalisation are refused; a file does not say which one it expects.
"""

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import interpolate_embeddings

from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from kdtune.errors import UserError, last_line
from kdtune.models.checkpoints import read_tensor_file
from kdtune.models.feature_maps import find_patch_size
from kdtune.models.library import LIBRARIES
from kdtune.models.named_weights import DEFAULT_IMAGE_SIZE, fit_network
from kdtune.models.state_dicts import (
    describe_other_names,
    find_state_dicts,
    load_weights_strictly,
    pick_teacher,
)
from kdtune.runtime.console import printable_path

_POSITIONS = re.compile(r"pos_embed|relative_position_bias_table|attention_bias")


def load_pretrained(model: nn.Module, name: str, weights: str, num_classes: int) -> str:
    """Load weights, but no head for other classes, and return a sentence about them.

    Args:
        model: the network.
        name: its name, see `kdtune.models.build_model`.
        weights: ``DEFAULT``, another name of torchvision's weights, or a file of a `state_dict`.
        num_classes: K.
    """
    model_weights = model.state_dict()
    first_key = next(iter(model_weights))
    found = find_state_dicts(_read_weights(name, weights), first_key)
    candidates = [f for f in found if f.weights.keys() & model_weights.keys()]
    if not candidates:
        raise UserError(f"{weights} holds no weights of {name}: there is no {first_key}.")
    complete = [f for f in candidates if not describe_other_names(model_weights, f.weights)]
    chosen, note = pick_teacher(weights, complete) if complete else (candidates[0], "")
    loaded_weights = {
        # Files of DenseNets have older names; those of GoogLeNet and Inception auxiliary heads.
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): value
        for key, value in chosen.weights.items()
        if not key.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    loaded_weights = _resample_positions(model, name, loaded_weights)
    head_keys = _find_head_keys(model_weights, loaded_weights, num_classes)
    fresh_head = {key: model_weights[key] for key in head_keys}
    try:
        load_weights_strictly(model, {**loaded_weights, **fresh_head})
    except ValueError as error:
        text = f"{weights} holds the weights of another network than {name}: {error}"
        with suppress(ValueError):
            size = fit_network(name, loaded_weights, None).image_size or DEFAULT_IMAGE_SIZE
            text += f"; they fit with --image-size {size}"
        raise UserError(f"{text}.") from None
    note = f"; {note}" if note else ""
    if not head_keys:
        return f"{name} begins with all the weights of {weights}{note}"
    classes = f"{len(loaded_weights[head_keys[0]])} classes there, {num_classes} here"
    return f"{name} begins with the weights of {weights}, but with a fresh head: {classes}{note}"


def _resample_positions(
    model: nn.Module, name: str, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights whose embeddings of positions fit the network's image size.

    The libraries' own functions interpolate them, as for any fine-tuning at another size.
    """
    expected = model.state_dict()
    positions = [key for key in weights.keys() & expected.keys() if _POSITIONS.search(key)]
    if all(weights[key].shape == expected[key].shape for key in positions):
        return weights
    if name.startswith("torchvision:vit_"):
        patch_size = find_patch_size(model)
        side = math.isqrt(expected["encoder.pos_embedding"].shape[1] - 1)
        return dict(interpolate_embeddings(side * patch_size, patch_size, OrderedDict(weights)))
    if name.startswith("timm:"):
        timm_module = sys.modules[type(model).__mro__[1].__module__]
        if resample := getattr(timm_module, "checkpoint_filter_fn", None):
            return dict(resample(dict(weights), model))
    return weights


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
    fits = [own[1:] == loaded[1:] and own[:1] == (num_classes,) for own, loaded in shapes.values()]
    return list(shapes) if is_one_layer and all(fits) else []


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
            f"The weights {weights.name} of {name} expect images that are not normalised "
            "with ImageNet's mean and deviation, as kdtune does; use other weights."
        )
    try:
        load = torch.hub.load_state_dict_from_url
        return load(weights.url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a broken file: each raises its own
        reason = last_line(error).strip("<>.")
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise UserError(
            f"The weights {weights.name} of {name} cannot be downloaded ({reason}): put the file "
            f"{file.name} of torchvision's into {file.parent}, or give its path with --weights."
        ) from None
