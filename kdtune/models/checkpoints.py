"""Checkpoint files: writing and reading `.pth` and `.safetensors` without running code.

A `.safetensors` file has all but the weights as JSON, and holds no run that could be resumed.
"""

import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import nn

from kdtune.errors import UserError, first_line
from kdtune.models import build_model
from kdtune.models.feature_maps import with_feature_maps
from kdtune.models.named_weights import DEFAULT_IMAGE_SIZE, Fit, build_weights, fit_network
from kdtune.models.resnet import resnet_from_weights
from kdtune.models.state_dicts import (
    FoundWeights,
    describe_other_names,
    find_state_dicts,
    load_weights_strictly,
    pick_teacher,
)
from kdtune.plugins import PLUGINS
from kdtune.storage.files import atomic_write

CHECKPOINT_FORMAT = "kdtune-1"

METADATA_KEY = "kdtune"
"""Key under which formats other than `.pth` describe a network, as JSON."""


def save_model(
    path: Path,
    model: nn.Module,
    *,
    config: dict[str, Any],
    classes: list[str],
    sync: bool = True,
    **extra_values: Any,
) -> None:
    """Save a network with all that is needed to rebuild and evaluate it.

    Args:
        path: the file, replaced atomically; a `.pth` unless its name ends in ``.safetensors``.
        model: the network, as `build_model` builds it.
        config: the run's complete settings.
        classes: class names, in the order of the logits.
        sync: see `atomic_write`.
        extra_values: further plain values; ``training`` is the state to resume a run with.
    """
    content = {"weights": model.state_dict(), "config": config, "classes": classes, **extra_values}
    if plugins := PLUGINS.records(MODELS=[config["model"]]):
        content["plugins"] = plugins
    write_checkpoint(path, content, sync)


def write_checkpoint(path: Path, content: dict[str, Any], sync: bool = True) -> None:
    """Write a checkpoint.

    Args:
        path: see `save_model`.
        content: ``weights`` and plain values, as `read_checkpoint` returns them.
        sync: see `atomic_write`.
    """
    content = {"format": CHECKPOINT_FORMAT, **content}
    with atomic_write(path, sync) as temporary:
        if path.suffix == ".safetensors":
            weights = {key: value.contiguous() for key, value in content.pop("weights").items()}
            metadata = {METADATA_KEY: json.dumps(content)}
            temporary.write_bytes(safetensors.torch.save(weights, metadata))
            return
        with open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                raise error.__context__ or error from None  # torch hides the file's own error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that `save_model` wrote, tensors on the CPU."""
    content = read_tensor_file(Path(path).expanduser())
    if not _is_kdtune_checkpoint(content):
        raise UserError(f"{path} was not written by kdtune; give a checkpoint of one of its runs.")
    return content


def _is_kdtune_checkpoint(content: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT


def read_tensor_file(path: Path) -> Any:
    """Read a file of tensors and plain values, whoever wrote it; refuse one that holds code."""
    try:
        with open(path, "rb") as file:
            header = file.read(9)
        if header[8:] == b"{":  # a length in eight bytes, then JSON: safetensors
            return _read_safetensors(path)
        with warnings.catch_warnings(action="ignore"):  # TorchScript is refused below
            # weights_only is passed since an environment variable can change its default.
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except pickle.UnpicklingError as error:
        _, refused, names = str(error).partition("GLOBAL ")
        reason = "it is damaged or holds more than tensors and plain values"
        if refused:
            reason += f" ({names.split()[0]}); save the network's state_dict, and give NAME=FILE"
        raise UserError(f"{path} is not loaded: {reason}.") from None
    except Exception as error:  # damage raises anything: struct.error, AssertionError, ...
        if "weights_only" in str(error):  # torch advises to switch the protection off
            reason = "it holds a program (TorchScript), not a state_dict"
        else:
            reason = "it is empty" if not header else "it is broken, or no checkpoint at all"
        raise UserError(f"{path} is not a readable checkpoint: {reason}.") from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}
        metadata = (file.metadata() or {}).get(METADATA_KEY)
    return {**json.loads(metadata), "weights": weights} if metadata is not None else weights


def load_model(
    path: str | Path,
    *,
    name: str | None = None,
    image_size: int | None = None,
    layers: Sequence[str] = (),
) -> dict[str, Any]:
    """Load a network that kdtune saved, or a `state_dict` of another one.

    A `state_dict` may be nested in dicts under any keys, and its names may have a prefix such as
    ``module.``. Without a name it is of a torchvision ResNet; number of classes and stem follow
    from the shapes.

    Args:
        path: the file.
        name: of the network, see `kdtune.models.build_model`.
        image_size: in pixels, of the images that a network with a name gets; None takes one that
            fits its weights.
        layers: modules that return the feature maps; without names, the network's own stages.

    Returns:
        ``model`` (in eval mode, on the CPU), ``architecture`` (its name), ``num_classes``,
        ``image_size`` (None if the file does not determine it), ``note`` (a sentence about other
        networks in the file, or empty) and all that was saved beside it, such as ``config``,
        ``classes`` and ``epoch``. If kdtune did not write the file, ``config`` and ``classes``
        are None.
    """
    content = read_tensor_file(Path(path).expanduser())
    if not _is_kdtune_checkpoint(content):
        others = {"config": None, "classes": None}
        if name is not None:
            return _load_named_network(path, content, name, image_size, layers) | others
        return _load_torchvision_resnet(path, content, layers) | others
    PLUGINS.require(str(path), content.get("plugins", ()))
    try:
        config, num_classes = content["config"], len(content["classes"])
        if name not in (None, config["model"]):
            raise UserError(f"{path} holds the network {config['model']}, not {name}.")
        model = build_model(config["model"], num_classes, config["image_size"], layers)
        model.load_state_dict(content.pop("weights"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not hold a whole network: {first_line(error)}.") from None
    summary = {"architecture": config["model"], "num_classes": num_classes, "note": ""}
    return {"model": model.eval(), **summary, "image_size": config["image_size"], **content}


_NAMED_FORM = "NAME=FILE, such as torchvision:mobilenet_v3_small=FILE or MultiBranchNet=FILE"


def _load_torchvision_resnet(
    path: str | Path, content: Any, layers: Sequence[str]
) -> dict[str, Any]:
    expected = (
        "give a checkpoint of kdtune's, a state_dict of one of torchvision's ResNets, or that of "
        f"another network as {_NAMED_FORM}"
    )
    known_key = "layer1.0.conv2.weight"
    candidates = find_state_dicts(content, known_key)
    _require_state_dict(path, content, candidates, expected)
    resnets = [found for found in candidates if known_key in found.weights]
    if not resnets:
        name, tensor = next(iter(candidates[0].weights.items()))
        raise UserError(
            f"{path} holds {len(candidates[0].weights)} tensors, the first '{name}' "
            f"{list(tensor.shape)}, but no ResNet; {expected}."
        )
    found, note = pick_teacher(path, resnets)
    try:
        architecture, model = resnet_from_weights(found.weights)
    except ValueError as error:
        problem = f"{path} holds a ResNet that is none of torchvision's: {error}"
        raise UserError(f"{problem}; {expected}.") from None
    summary = {"architecture": architecture, "num_classes": model.fc.out_features}
    network = with_feature_maps(model, layers) if layers else model
    return {"model": network.eval(), **summary, "image_size": None, "note": note}


def _require_state_dict(
    path: str | Path, content: Any, candidates: Sequence[FoundWeights], expected: str
) -> None:
    if candidates:
        return
    description = f"a {type(content).__name__}"
    if isinstance(content, dict):
        keys = sorted(map(str, content))
        description += f" of {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
    raise UserError(f"{path} holds no state_dict, but {description}; {expected}.")


def _load_named_network(
    path: str | Path, content: Any, name: str, image_size: int | None, layers: Sequence[str]
) -> dict[str, Any]:
    expected = build_weights(name, image_size)
    candidates = find_state_dicts(content, next(iter(expected)))
    _require_state_dict(path, content, candidates, f"give a state_dict of {name}")
    complete = [f for f in candidates if not describe_other_names(expected, f.weights)]
    fits: list[tuple[FoundWeights, Fit]] = []
    problems = [describe_other_names(expected, candidates[0].weights)] if not complete else []
    for found in complete:
        try:
            fits.append((found, fit_network(name, found.weights, image_size)))
        except ValueError as error:
            problems.append(str(error))
    if not fits:
        raise UserError(f"{path} does not fit {name}: {problems[0]}.")
    found, note = pick_teacher(path, [found for found, _ in fits])
    fit = next(fit for other, fit in fits if other is found)
    size = fit.image_size or image_size or DEFAULT_IMAGE_SIZE
    model = build_model(name, fit.num_classes, size, layers)
    load_weights_strictly(model, found.weights)
    summary = {"architecture": name, "num_classes": fit.num_classes, "note": note}
    return {"model": model.eval(), **summary, "image_size": fit.image_size}
