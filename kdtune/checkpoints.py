"""The only file that writes and reads `.pth`. Loading never runs code from a file.

What others saved is read too, if it is a `state_dict` of one of torchvision's ResNets.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdtune.errors import UserError
from kdtune.files import replacing
from kdtune.models import build_model
from kdtune.models.resnet import resnet_of_weights

FORMAT = "kdtune-1"


def save_model(
    path: Path, model: nn.Module, *, config: dict[str, Any], classes: list[str], **figures: Any
) -> None:
    """Save a network with all that is needed to rebuild and to judge it.

    Args:
        path: the file, replaced whole or not at all.
        model: the network, an architecture of `MODELS`.
        config: the run's complete settings.
        classes: class names, in the order of the logits.
        figures: plain values to keep beside it, such as ``validation_accuracy``; ``training``
            holds what a run needs to go on.
    """
    content = {
        "format": FORMAT,
        "weights": model.state_dict(),
        "config": config,
        "classes": classes,
        **figures,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_model` wrote, tensors on the CPU.

    Raises:
        UserError: the file is missing, broken, holds code, or is not one of ours.
    """
    content = _read(Path(path).expanduser())
    if not _is_ours(content):
        raise UserError(f"{path} was not written by kdtune.")
    return content


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def _read(path: Path) -> Any:
    """Read a file of tensors and plain values, of any make."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
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
            f"{_offender(error)}; save the network's state_dict instead."
        ) from None
    except Exception as error:  # damage shows in many ways: struct.error, AssertionError, ...
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        if "weights_only" in reason:  # torch's advice to switch protection off
            reason = "it holds a program (TorchScript), not a state_dict"
        raise UserError(f"{path} is not a readable checkpoint: {reason}.") from None


def _offender(error: pickle.UnpicklingError) -> str:
    """Name the class that torch refused, without torch's advice to switch protection off."""
    words = str(error).split("GLOBAL ")
    return f" ({words[1].split()[0]})" if len(words) > 1 else ""


def load_model(path: str | Path) -> dict[str, Any]:
    """Load a network: one that kdtune saved, or a `state_dict` of a ResNet of torchvision's.

    A `state_dict` may lie under the key ``state_dict``, ``model_state_dict`` or ``model``, and
    its names may share prefixes such as ``module.`` or ``_orig_mod.``. Architecture, number of
    classes and stem are then read from the shapes.

    Args:
        path: a `.pth` (by any name) or `.safetensors` file.

    Returns:
        ``model`` (the network in eval mode, on the CPU), ``architecture`` (its name),
        ``num_classes``, and all that was saved beside it: ``config``, ``classes``, ``epoch``,
        ``validation_accuracy`` and so on. Of a file that kdtune did not write, ``config`` and
        ``classes`` are None.

    Raises:
        UserError: the file is missing, broken, holds code, or holds another network.
    """
    content = _read(Path(path).expanduser())
    if not _is_ours(content):
        return _load_foreign(path, content)
    try:
        config, num_classes = content["config"], len(content["classes"])
        model = build_model(config["model"], num_classes, config["image_size"])
        model.load_state_dict(content.pop("weights"))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not hold a whole network: {reason}.") from None
    named = {"architecture": config["model"], "num_classes": num_classes}
    return {"model": model.eval(), **named, **content}


def _load_foreign(path: str | Path, content: Any) -> dict[str, Any]:
    expected = (
        "expected is a checkpoint of kdtune's, or the state_dict of a ResNet of torchvision's"
    )
    weights = _find_weights(content)
    if not weights:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} holds no state_dict, but {found}; {expected}.")
    try:
        architecture, model = resnet_of_weights(weights)
    except LookupError:
        name, tensor = next(iter(weights.items()))
        raise UserError(
            f"{path} holds {len(weights)} tensors, the first '{name}' {list(tensor.shape)}; "
            f"{expected}."
        ) from None
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        # torch lists the differences on the lines after the first
        reason = " ".join(str(error).splitlines()[:2][-1].split())
        raise UserError(
            f"{path} looks like a ResNet, but is none of torchvision's: {reason}"
        ) from None
    return {
        "model": model.eval(),
        "architecture": architecture,
        "num_classes": model.fc.out_features,
        "config": None,
        "classes": None,
    }


def _find_weights(content: Any) -> dict[str, Tensor]:
    """The tensors of a `state_dict`, unwrapped and without prefixes; empty if there is none."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        return {}
    weights = {str(key): value for key, value in content.items()}
    # A first word that all names share was put there by a wrapper: module., _orig_mod., model.
    while len({key.partition(".")[0] for key in weights}) == 1 and all("." in k for k in weights):
        weights = {key.partition(".")[2]: value for key, value in weights.items()}
    return weights
