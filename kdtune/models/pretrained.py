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

from kdtune.data.transforms import MEAN, STD
from kdtune.errors import UserError, last_line
from kdtune.models.checkpoints import read_file, state_dicts
from kdtune.models.resnet import load_whole
from kdtune.runtime.console import shown


def begin_with(model: nn.Module, name: str, weights: str, num_classes: int) -> str:
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
    own = model.state_dict()
    first = next(iter(own))
    found = [
        given for given in state_dicts(_content(name, weights), first) if given.keys() & own.keys()
    ]
    if not found:
        raise UserError(f"{weights} holds no weights of {name}: there is no {first}.")
    given = {_today(key): value for key, value in found[0].items()}
    given = {key: value for key, value in given.items() if not key.startswith(AUXILIARY)}
    head = _head(own, given, num_classes)
    try:
        load_whole(model, {**given, **{key: own[key] for key in head}})
    except ValueError as error:
        raise UserError(
            f"{weights} holds the weights of another network than {name}: {error}."
        ) from None
    if not head:
        return f"{name} begins with all the weights of {weights}"
    return (
        f"{name} begins with the weights of {weights}, but with a fresh head: "
        f"{len(given[head[0]])} classes there, {num_classes} here"
    )


AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Further logits of GoogLeNet and Inception, which kdtune's do not have."""


def _today(key: str) -> str:
    """Names as they are now: torchvision's files of DenseNets are older than its networks."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)


def _head(own: Mapping[str, Tensor], given: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """Weights of the last layer, if it is for another number of classes; else none."""
    others = [key for key in own if key in given and own[key].shape != given[key].shape]
    layers = {key.rpartition(".")[0] for key in others}
    for key in others:
        now, then = own[key].shape, given[key].shape
        if len(layers) > 1 or now[1:] != then[1:] or now[:1] != (num_classes,):
            return []
    return others


def _content(name: str, weights: str) -> Any:
    known = _weights_of(name)
    if weights in known:
        return _download(name, known[weights])
    if Path(weights).expanduser().is_file():
        return read_file(Path(weights).expanduser())
    raise UserError(
        f"There is no file {shown(weights)} with weights for {name}, and torchvision has "
        f"{', '.join(known) or 'none'} for it."
    )


def _weights_of(name: str) -> dict[str, Any]:
    """torchvision's weights for a network, by their names."""
    own = name.removeprefix("torchvision:").lower()
    if own not in torchvision.models.list_models(module=torchvision.models):
        return {}
    known = torchvision.models.get_model_weights(own).__members__
    return {"DEFAULT": known["DEFAULT"], **known} if known else {}


def _download(name: str, weights: Any) -> Any:
    wants = weights.transforms()
    if (tuple(wants.mean), tuple(wants.std)) != (MEAN, STD):
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
