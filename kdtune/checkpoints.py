"""The only file that writes and reads `.pth`. Loading never runs code from a file."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtune.errors import UserError
from kdtune.files import replacing
from kdtune.models import build_model

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
    path = Path(path).expanduser()
    try:
        # weights_only is passed although it is the default: an environment variable can undo that.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not loaded: it is broken or holds more than tensors and plain values"
            f"{_offender(error)}."
        ) from None
    except Exception as error:  # damage shows in many ways: struct.error, AssertionError, ...
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise UserError(f"{path} is not a readable checkpoint: {reason}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} was not written by kdtune; make a teacher with 'kdtune teacher'.")
    return content


def _offender(error: pickle.UnpicklingError) -> str:
    """Name the class that torch refused, without torch's advice to switch protection off."""
    words = str(error).split("GLOBAL ")
    return f" ({words[1].split()[0]})" if len(words) > 1 else ""


def load_model(path: str | Path) -> dict[str, Any]:
    """Load a network that kdtune saved.

    Args:
        path: a `.pth` file.

    Returns:
        ``model`` (the network in eval mode, on the CPU), and all that was saved beside it:
        ``config``, ``classes``, ``epoch``, ``validation_accuracy`` and so on.

    Raises:
        UserError: see `read_checkpoint`.
    """
    content = read_checkpoint(path)
    try:
        config = content["config"]
        model = build_model(config["model"], len(content["classes"]), config["image_size"])
        model.load_state_dict(content.pop("weights"))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not hold a whole network: {reason}.") from None
    return {"model": model.eval(), **content}
