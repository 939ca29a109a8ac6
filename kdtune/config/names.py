"""Names of the built-in models and data sets; this module loads no torch."""

import re
from importlib.util import find_spec
from pathlib import Path

from kdtune.errors import UserError, did_you_mean
from kdtune.plugins import Registry

MODEL_LIBRARIES = ("torchvision", "timm")
"""Libraries whose models are named as ``LIBRARY:NAME``."""

MODEL_NAMES: Registry[str] = Registry(
    "model",
    "MODELS",
    {
        "MultiBranchNet": "multibranch:MultiBranchNet",
        "ResNet18": "resnet:resnet18",
        "ResNet50": "resnet:resnet50",
    },
    "a function, or class, of the number of classes and the image size",
    convert=lambda model: "",
)
"""Module under `kdtune.models` and function or class of each model; empty for a plug-in's."""

_DATASETS = (
    "digits", "mnist", "fashion-mnist", "kmnist", "emnist", "usps", "svhn", "cifar10", "cifar100",
    "stl10", "flowers102", "oxford-iiit-pet", "food101", "dtd", "fgvc-aircraft", "country211",
    "rendered-sst2", "imagenette",
)  # fmt: skip

DATASET_NAMES: Registry[bool] = Registry(
    "data set",
    "DATA",
    dict.fromkeys(_DATASETS, True),
    "a function of the name and the folder of named data sets",
    convert=lambda dataset: True,
)
"""Names of data sets; `kdtune.data.datasets` loads them."""

SAMPLER_NAMES = ("auto", "tpe", "gp", "cmaes", "random", "qmc", "grid")
"""Samplers by name; `kdtune.tuning.search.samplers` makes them."""


def require_sampler_name(name: str) -> None:
    """Raise a `UserError` if there is no sampler of a name; import paths are not checked."""
    if "." not in name and name not in SAMPLER_NAMES:
        hint = did_you_mean(name, SAMPLER_NAMES)
        raise UserError(
            f"There is no sampler '{name}'; {hint}; give one of your own as package.module.Name."
        )


def require_model_name(name: str) -> None:
    """Raise a `UserError` if there is no model of a name; names in libraries are not checked."""
    library, _, name_in_library = name.partition(":")
    if name_in_library and library in MODEL_LIBRARIES:
        return
    if MODEL_NAMES.find(name) is None and name.lower() not in map(str.lower, MODEL_NAMES):
        for library in MODEL_LIBRARIES:
            if name.lower() in _names_in_library(library):
                meant = f"did you mean '{library}:{name.lower()}'?"
                raise UserError(f"There is no model '{name}'; {meant}")
    MODEL_NAMES.require(name, [f"{library}:NAME" for library in MODEL_LIBRARIES])


def _names_in_library(library: str) -> set[str]:
    """Return the names of a library's models, found in its source, since its import is slow."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return set()
    sources = (Path(spec.origin).parent / "models").glob("*.py")
    pattern = re.compile(r"@register_model.*?\ndef (\w+)\(", re.DOTALL)
    return {name for path in sources for name in pattern.findall(path.read_text("utf-8"))}


def split_teacher(teacher: str) -> tuple[str | None, str]:
    """Return network and path of a teacher; the network is None if only a file is given.

    >>> split_teacher("torchvision:resnet18=weights/a=b.pth"), split_teacher("weights/a=b.pth")
    (('torchvision:resnet18', 'weights/a=b.pth'), (None, 'weights/a=b.pth'))
    """
    name, separator, path = teacher.partition("=")
    is_path = not separator or "/" in name or Path(teacher).expanduser().exists()
    return (None, teacher) if is_path else (name, path)


FILE_NAME_PATTERN = r"^[\w][\w.-]*$"


def file_stem(*names: str) -> str:
    """Join names to a file name that every file system accepts.

    >>> file_stem("at", "torchvision:resnet34")
    'at-torchvision.resnet34'
    """
    return "-".join(names).replace(":", ".").replace("@", ".")
