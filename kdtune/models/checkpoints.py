"""The only file that writes and reads `.pth` and `.safetensors`. Loading never runs code.

A `.safetensors` file has all but the weights as JSON in its metadata, so it holds a network and
not a run that goes on. What others saved is read too, if it is a `state_dict` of one of
torchvision's ResNets.
"""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdtune.errors import UserError, first_line
from kdtune.models import build_model
from kdtune.models.resnet import resnet_from_weights
from kdtune.plugins import PLUGINS
from kdtune.storage.files import atomic_write

CHECKPOINT_FORMAT = "kdtune-1"

METADATA_KEY = "kdtune"
"""Key of what other formats than `.pth` say of a network, as JSON."""


def save_model(
    path: Path,
    model: nn.Module,
    *,
    config: dict[str, Any],
    classes: list[str],
    sync: bool = True,
    **extra_values: Any,
) -> None:
    """Save a network with all that is needed to rebuild and to judge it.

    Args:
        path: the file, replaced whole or not at all; ``.safetensors`` or, by any other name, a
            ``.pth``.
        model: the network, as `build_model` builds it.
        config: the run's complete settings.
        classes: class names, in the order of the logits.
        sync: see `replacing`.
        figures: plain values to keep beside it, such as ``validation_accuracy``; ``training``
            holds what a run needs to go on.

    Raises:
        DiskFullError: there is no room.
    """
    content = {"weights": model.state_dict(), "config": config, "classes": classes, **extra_values}
    if plugins := PLUGINS.records(MODELS=[config["model"]]):
        content["plugins"] = plugins
    write_checkpoint(path, content, sync)


def write_checkpoint(path: Path, content: dict[str, Any], sync: bool = True) -> None:
    """Write what `read_checkpoint` reads; as `save_model`, which takes a network."""
    if path.suffix == ".safetensors":
        metadata = {"format": CHECKPOINT_FORMAT, **content}
        weights = {key: value.contiguous() for key, value in metadata.pop("weights").items()}
        with atomic_write(path, sync) as temporary:
            temporary.write_bytes(
                safetensors.torch.save(weights, {METADATA_KEY: json.dumps(metadata)})
            )
        return
    with atomic_write(path, sync) as temporary, open(temporary, "wb") as file:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, **content}, file)
        except RuntimeError as error:
            raise error.__context__ or error from None  # torch hides what the file said


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_model` wrote, tensors on the CPU.

    Raises:
        UserError: the file is missing, broken, holds code, or is not one of ours.
    """
    content = read_tensor_file(Path(path).expanduser())
    if not _is_kdtune_checkpoint(content):
        raise UserError(f"{path} was not written by kdtune; give a checkpoint of one of its runs.")
    return content


def _is_kdtune_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT


def read_tensor_file(path: Path) -> Any:
    """Read a file of tensors and plain values, of any make.

    Raises:
        UserError: it is missing or broken, or holds code.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(9)
        if header[8:] == b"{":  # a length in eight bytes, then JSON: safetensors
            return _read_safetensors(path)
        with warnings.catch_warnings(action="ignore"):  # TorchScript is refused below
            # It is passed although it is the default: an environment variable can undo that.
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not loaded: it is broken or holds more than tensors and plain values"
            f"{_describe_refused_class(error)}."
        ) from None
    except Exception as error:  # damage shows in many ways: struct.error, AssertionError, ...
        if "weights_only" in str(error):  # torch's advice to switch protection off
            reason = "it holds a program (TorchScript), not a state_dict"
        else:
            reason = "it is empty" if not header else "it is broken, or no checkpoint at all"
        raise UserError(f"{path} is not a readable checkpoint: {reason}.") from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}
        metadata = (file.metadata() or {}).get(METADATA_KEY)
    return {**json.loads(metadata), "weights": weights} if metadata is not None else weights


def _describe_refused_class(error: pickle.UnpicklingError) -> str:
    """Name the class that torch refused, without torch's advice to switch protection off."""
    words = str(error).split("GLOBAL ")
    if len(words) == 1:
        return ""
    return f" ({words[1].split()[0]}); save the network's state_dict instead"


def load_model(path: str | Path) -> dict[str, Any]:
    """Load a network: one that kdtune saved, or a `state_dict` of a ResNet of torchvision's.

    A `state_dict` may lie in dicts, under any keys (``state_dict``, ``model_state_dict`` and
    ``model`` are looked at first), and its names may have a prefix such as ``module.`` or
    ``_orig_mod.``. Architecture, number of classes and stem are then read from the shapes.

    Args:
        path: a `.pth` or `.safetensors` file, by any name.

    Returns:
        ``model`` (the network in eval mode, on the CPU), ``architecture`` (its name),
        ``num_classes``, and all that was saved beside it: ``config``, ``classes``, ``epoch``,
        ``validation_accuracy`` and so on. Of a file that kdtune did not write, ``config`` and
        ``classes`` are None.

    Raises:
        UserError: the file is missing, broken, holds code, or holds another network; or its
            network is a plug-in's that was not given.
    """
    content = read_tensor_file(Path(path).expanduser())
    if not _is_kdtune_checkpoint(content):
        return _load_torchvision_resnet(path, content)
    PLUGINS.require(str(path), content.get("plugins", ()))
    try:
        config, num_classes = content["config"], len(content["classes"])
        model = build_model(config["model"], num_classes, config["image_size"])
        model.load_state_dict(content.pop("weights"))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"{path} does not hold a whole network: {reason}.") from None
    summary = {"architecture": config["model"], "num_classes": num_classes}
    return {"model": model.eval(), **summary, **content}


def _load_torchvision_resnet(path: str | Path, content: Any) -> dict[str, Any]:
    expected = "a checkpoint of kdtune's, or a state_dict of one of torchvision's ResNets"
    candidates = find_state_dicts(content, FIRST_RESNET_KEY)
    if not candidates:
        raise UserError(
            f"{path} holds no state_dict, but {_describe_content(content)}; give {expected}."
        )
    resnets = [weights for weights in candidates if "layer1.0.conv2.weight" in weights]
    if not resnets:
        name, tensor = next(iter(candidates[0].items()))
        raise UserError(
            f"{path} holds {len(candidates[0])} tensors, the first '{name}' {list(tensor.shape)}, but "
            f"no ResNet; give {expected}."
        )
    try:
        architecture, model = resnet_from_weights(resnets[0])
    except ValueError as error:
        raise UserError(
            f"{path} holds a ResNet that is none of torchvision's: {error}; give {expected}."
        ) from None
    return {
        "model": model.eval(),
        "architecture": architecture,
        "num_classes": model.fc.out_features,
        "config": None,
        "classes": None,
    }


def find_state_dicts(content: Any, known_key: str) -> list[dict[str, Tensor]]:
    """All that may be weights in a file: unwrapped, without prefixes, the likeliest first.

    Only what shares the prefix of the network's own is taken, no loss or counter beside it.

    Args:
        content: of the file.
        weight: the name of one that the network has.
    """
    if not isinstance(content, dict):
        return []
    candidates = []
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        shortest_key = min(
            (key for key in tensors if key.endswith(known_key)), key=len, default=known_key
        )
        prefix = shortest_key.removesuffix(known_key)
        candidates.append(
            {
                key.removeprefix(prefix): tensor
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
        )
    for key in sorted(content, key=lambda key: key not in WRAPPER_KEYS):
        candidates += find_state_dicts(content[key], known_key)
    return candidates


FIRST_RESNET_KEY = "conv1.weight"
"""First weight of a ResNet; blocks have one, too, under longer names."""

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Where trainers put weights; other places are searched after these."""


def _describe_content(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = sorted(map(str, content))
    return f"a dict of {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
