"""The weights in a file that kdtune did not write: where they are, and which are a teacher's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from kdtune.errors import UserError

_USUAL_KEYS = ("state_dict", "model_state_dict", "model")
_PROFILER_COUNTS = ("total_ops", "total_params")  # thop adds them to every layer
_TEACHER = re.compile(r"teacher|(^|[/._])(tnet|t)($|[/._])", re.IGNORECASE)
_AVERAGE = re.compile(r"(^|[/._])(ema|swa|avg|average|averaged)($|[/._])", re.IGNORECASE)


class FoundWeights(NamedTuple):
    """A `state_dict` in a file.

    Attributes:
        label: keys and prefix that lead to it; empty for the file itself.
        weights: by name, without the prefix.
    """

    label: str
    weights: dict[str, Tensor]


def find_state_dicts(content: Any, known_key: str, label: str = "") -> list[FoundWeights]:
    """Return all state_dicts in a file without their prefixes, the likeliest ones first.

    Args:
        content: of the file.
        known_key: a weight of the network; tensors with another prefix are left out.
        label: of the content.
    """
    if not isinstance(content, dict):
        return []
    tensors = {
        str(key): value
        for key, value in content.items()
        if isinstance(value, Tensor) and str(key).rpartition(".")[2] not in _PROFILER_COUNTS
    }
    endings = (key.removesuffix(known_key) for key in tensors if key.endswith(known_key))
    prefixes = sorted((end for end in endings if end == "" or end.endswith(".")), key=len)
    found = []
    for prefix in prefixes or [""] * bool(tensors):
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        found.append(FoundWeights(f"{label}/{prefix}".strip("/."), weights))
    for key in sorted(content, key=lambda key: key not in _USUAL_KEYS):
        found += find_state_dicts(content[key], known_key, f"{label}/{key}".strip("/"))
    return found


def pick_teacher(path: object, networks: Sequence[FoundWeights]) -> tuple[FoundWeights, str]:
    """Return the network that is meant, and a sentence if the file holds others.

    An average of weights (``model_ema``) beside the weights themselves is not another network.

    Args:
        path: of the file, for messages.
        networks: those in the file, at least one.
    """
    plain = [f for f in networks if _TEACHER.search(f.label) or not _AVERAGE.search(f.label)]
    candidates = plain or networks
    if len(candidates) == 1:
        return candidates[0], ""
    labels = [found.label or "the file itself" for found in candidates]
    listed = f"{', '.join(labels[:-1])} and {labels[-1]}"
    teachers = [found for found in candidates if _TEACHER.search(found.label)]
    if len(teachers) != 1:
        raise UserError(
            f"{path} holds {len(candidates)} networks, {listed}: save the one that is meant "
            "alone, or under the key 'teacher'."
        )
    return teachers[0], f"{path} holds {listed}: the network {teachers[0].label} is used"


def describe_other_names(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Say which weights lack or are too many; empty if none.

    Batch counters may be missing, since old files lack them.

    Args:
        expected: of the network.
        weights: of a file.
    """
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = expected.keys() - counters - weights.keys()
    problems = {"lacks": missing, "has besides": weights.keys() - expected.keys()}
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            return f"it {problem} {min(keys)}{more}"
    return ""


def load_weights_strictly(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights that must be complete, except for batch counters.

    Args:
        model: the network.
        weights: a `state_dict` with its names; a `ValueError` names one that does not fit.
    """
    expected = model.state_dict()
    if problem := describe_other_names(expected, weights):
        raise ValueError(problem)
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(f"{key} is {list(tensor.shape)}, not {list(expected[key].shape)}")
    model.load_state_dict({**expected, **weights})
