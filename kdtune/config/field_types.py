"""Types of settings of runs and sweeps, which parse the text of flags and files."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from kdtune.units import parse_count, parse_duration


def _split_commas(value: Any) -> Any:
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        value = ",".join(value)
    if not isinstance(value, str):
        return value
    words = [word.strip() for word in value.split(",")]
    if value.strip() and not all(words):
        raise ValueError("a name is empty: remove the extra comma")
    return [word for word in words if word]


def _parse_trackers(value: Any) -> Any:
    names = _split_commas(value)
    return () if names == ["none"] else names


def _parse_cpus(value: Any) -> int:
    cpus = float(value)
    if cpus < 1 or cpus % 1:
        raise ValueError("a trial has at least one CPU, and whole ones")
    return int(cpus)


def _parse_gpus(value: Any) -> float:
    gpus = float(value)
    if gpus > 1:
        raise ValueError("a trial trains on one device: give at most 1")
    if gpus != 0 and not gpus >= 0.01:
        raise ValueError("give 1, 0, or a part of one GPU, 0.01 or more")
    return gpus


def _parse_per_model(value: Any, parse_number: Callable[[Any], float]) -> Any:
    """Parse a number, a mapping by model, or either as text.

    >>> _parse_per_model("ResNet50=1,MultiBranchNet=0.25", float), _parse_per_model("0.5", float)
    ({'ResNet50': 1.0, 'MultiBranchNet': 0.25}, 0.5)
    """
    if value is None:
        return None
    if isinstance(value, str) and "=" in value:
        pairs = [word.partition("=") for word in _split_commas(value)]
        value = {model.strip(): number for model, _, number in pairs}
    try:
        if isinstance(value, Mapping):
            return {model: parse_number(number) for model, number in value.items()}
        return parse_number(value)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and "could not convert" not in str(error):
            raise
        raise ValueError("give a number, or one for each model as MODEL=NUMBER") from None


def value_for_model(setting: Any, model: str, default: Any) -> Any:
    """Return what a setting says for a model.

    Args:
        setting: one value, or a mapping by model.
        model: name of the student.
        default: returned if the setting says nothing, or ``auto``.

    >>> value_for_model({"A": 0.5}, "A", 1.0), value_for_model({"A": 0.5}, "B", 1.0)
    (0.5, 1.0)
    """
    if isinstance(setting, Mapping):
        return setting.get(model, default)
    return default if setting in (None, "auto") else setting


def layer_names(layers: str | None) -> list[str]:
    """Return the names in a setting of layers."""
    return [name.strip() for name in (layers or "").split(",") if name.strip()]


Metric = Literal["accuracy", "balanced_accuracy"]
"""Accuracies to search and decide by; the balanced one is the mean recall of the classes."""

Augment = Annotated[
    Literal["none", "standard", "crop_flip", "randaugment", "trivialaugment", "autoaugment"],
    BeforeValidator(lambda v: {False: "none", True: "standard"}[v] if isinstance(v, bool) else v),
]
"""An augmentation of training images by name; true is ``standard``, and false ``none``."""

Layers = Annotated[
    str | None, BeforeValidator(lambda v: ",".join(v) if isinstance(v, list | tuple) else v)
]
"""Modules of a network, separated by commas."""

DURATION = BeforeValidator(lambda v: parse_duration(v) if isinstance(v, str) else v)
"""Marks a setting in seconds that may be given as text, such as ``2h``."""

COUNT = BeforeValidator(lambda v: parse_count(v) if isinstance(v, str) else v)
"""Marks a setting that is a number and may be given as text, such as ``1.5M``."""

Trackers = Annotated[tuple[Literal["mlflow", "wandb"], ...], BeforeValidator(_parse_trackers)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Cpus = Annotated[
    int | dict[str, int] | None, BeforeValidator(lambda v: _parse_per_model(v, _parse_cpus))
]
Storage = Annotated[str | None, AfterValidator(lambda v: None if v == "none" else v)]
RunSettings = Annotated[dict[str, Any], BeforeValidator(lambda v: {} if v is None else v)]
Gpus = Annotated[
    float | Literal["auto"] | dict[str, float] | None,
    BeforeValidator(lambda v: v if v == "auto" else _parse_per_model(v, _parse_gpus)),
]
