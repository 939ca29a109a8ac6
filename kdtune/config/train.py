"""Every setting of one run (`TrainConfig`), and which of them a sweep decides itself.

Settings are flat, frozen, and checked where they are built. Names of methods and models are
checked where those are built, so that this file needs neither torch nor ray.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails

from kdtune.config.methods import BUILTIN_METHODS, SettingValues
from kdtune.errors import UserError, did_you_mean
from kdtune.plugins import Registry

CLI_FIELDS = {
    "method",
    "model",
    "teacher_model",
    "data_dir",
    "data_root",
    "train_images",
    "validation_images",
    "test_images",
    "weights",
    "image_size",
    "epochs",
    "seed",
    "cache_gb",
    "skip_bad_images",
}
"""Settings that have flags of their own or follow from them."""

DERIVED_FIELDS = {"augment_views": "cache_gb", "augment_seed": "seed"}
"""Settings that follow from others, for all runs of a sweep."""

OUTPUT_FIELDS = {"print_freq", "save_freq", "save_dir", "log_dir", "experiment_name", "resume"}
"""Settings that play no part where a run writes no files of its own."""

LOCATION_FIELDS = {"data_dir", "data_root", "teacher_model", "num_workers", "cache_gb", "device"}
"""Settings that say where things are and what a machine has, not what is learned."""

ALIASES = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs"}
"""What other tools call our settings, where spelling does not lead to ours."""

FILE_NAME_PATTERN = r"^[\w][\w.-]*$"
"""What a name must look like from which names of files are made."""


def file_stem(*names: str) -> str:
    """Names as one that every file system takes.

    >>> file_stem("at", "torchvision:resnet34")
    'at-torchvision.resnet34'
    """
    return "-".join(names).replace(":", ".")


def _has_valid_settings(method: Any) -> bool:
    """Whether the `SETTINGS` of a plug-in's method can be settings."""
    settings = getattr(method, "SETTINGS", {})
    reserved = CLI_FIELDS | OUTPUT_FIELDS | DERIVED_FIELDS.keys()
    return isinstance(settings, dict) and all(
        isinstance(key, str)
        and isinstance(value, bool | int | float | str)
        and key not in reserved
        and (key in TrainConfig.model_fields or _is_available_name(key))
        for key, value in settings.items()
    )


def _is_available_name(key: str) -> bool:
    """Whether a further setting can have a name."""
    return key.isidentifier() and not key.startswith("_") and not hasattr(TrainConfig, key)


METHOD_DEFAULTS: Registry[SettingValues] = Registry(
    "method",
    "METHODS",
    {name: info.defaults for name, info in BUILTIN_METHODS.items()},
    "a class whose SETTINGS, if any, are numbers, words, True or False by names that are free",
    _has_valid_settings,
    lambda method: dict(getattr(method, "SETTINGS", {})),
)
"""Settings of a method by name: where its defaults differ from those that the fields of
`TrainConfig` give, and, under other names, further ones, of this method alone."""


def method_settings(method: str) -> SettingValues:
    """The settings of a method that are no fields of `TrainConfig`, and their defaults."""
    defaults = METHOD_DEFAULTS[method] if method in METHOD_DEFAULTS else {}
    return {key: value for key, value in defaults.items() if key not in TrainConfig.model_fields}


def applicable_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that other methods alone have."""
    method_keys = method_settings(method)
    return {k: v for k, v in settings.items() if k in method_keys or k in TrainConfig.model_fields}


class DataSource(NamedTuple):
    """Which images a run has, as `kdtune.data.folders.find_images` takes it."""

    data_dir: str
    data_root: str | None = None
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None


class _BaseConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Self:
        """Build the settings from a plain mapping.

        Raises:
            UserError: a key is unknown (the nearest known one is named), or a value is out of
                range or of the wrong type.
        """
        for key in settings:
            if not isinstance(key, str):
                raise UserError(
                    f"{key!r} is no setting's name; {did_you_mean('', cls.model_fields)}"
                )
        try:
            return cls(**settings)
        except ValidationError as error:
            raise UserError(cls._describe_error(error.errors()[0])) from None

    @classmethod
    def _describe_error(cls, error: ErrorDetails) -> str:
        key = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            canonical = ALIASES.get(key, key)
            return f"There is no setting '{key}'; {did_you_mean(canonical, cls.model_fields)}"
        if error["type"] == "missing":
            return f"The setting '{key}' is missing."
        if error["type"] == "string_pattern_mismatch":
            return f"The setting {key} cannot be {error['input']!r}: use letters, digits and ._-"
        if not key:
            return error["msg"].removeprefix("Value error, ")
        reason = (
            error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be", 1)
        )
        value = repr(error["input"])
        if len(value) > 80:  # such as a whole network, where its path is wanted
            value = f"a {type(error['input']).__name__}"
        return f"The setting {key} cannot be {value}: {reason}."


class DataConfig(_BaseConfig):
    """What runs and sweeps say of their images alike."""

    data_root: str | None = Field(
        None, description="folder of named data sets; datasets/ in the cache if not given"
    )
    train_images: int | None = Field(
        None, ge=2, description="so many for training, of each class its share; all if not given"
    )
    validation_images: int | None = Field(None, ge=2, description="the same for validation")
    test_images: int | None = Field(None, ge=2, description="the same for test")


@lru_cache
def _method_settings_model(definitions: tuple[tuple[str, type, Any], ...]) -> type[_BaseConfig]:
    """Checks the settings that a method alone has, from names, types and defaults of these."""
    fields: Any = {key: (kind, value) for key, kind, value in definitions}
    return create_model("Own", __base__=_BaseConfig, **fields)


class TrainConfig(DataConfig):
    """Every setting of one training run, and those that its method alone has."""

    model_config = ConfigDict(extra="allow")  # `_of_its_method` looks at them

    method: str = Field("at", description="what the student learns from the teacher")
    model: str = Field("MultiBranchNet", description="architecture of the student")
    teacher_model: str | None = Field(None, description="path of the teacher's checkpoint")
    weights: str | None = Field(
        None, description="weights to begin with: DEFAULT of torchvision, or a file"
    )
    data_dir: str = Field("data", description="ImageFolder, or the name of a data set")
    image_size: int = Field(128, ge=8, description="pixels; images are resized to a square")
    batch_size: int = Field(32, ge=2, description="images in one step")
    num_workers: int = Field(4, ge=0, description="threads, or processes of loaders, that decode")
    augment: bool = Field(False, description="random crops, flips, rotations, colours")
    epochs: int = Field(50, ge=1, description="passes over the training images")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty of SGD")
    step_size: int = Field(10, ge=1, description="epochs between two decays of lr")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of a decay of lr")
    temperature: float = Field(4.0, gt=0, description="softens the logits of the KD loss")
    alpha: float = Field(0.0, ge=0, description="weight of the KD loss; of TCKD in DKD")
    beta: float = Field(0.0, ge=0, description="weight of the method's own loss")
    hint_epochs: int = Field(0, ge=0, description="FitNets: first epochs, on the hint alone")
    hint_layer: int = Field(-1, description="FitNets, VID, SP: index of the stage compared")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="auto: bf16 where the device is fast at it"
    )
    compile: bool = Field(False, description="torch.compile student and teacher")
    seed: int = Field(0, ge=0, description="fixes weights, data order and augmentation")
    augment_views: int = Field(
        0, ge=0, description="augmented views that epochs take turns with; 0: anew in every epoch"
    )
    augment_seed: int = Field(0, ge=0, description="fixes the augmented views")
    cache_gb: float = Field(
        20, ge=0, description="size of this machine's cache of views; 0: nothing is kept on disk"
    )
    cache_targets: bool = Field(True, description="keep the teacher's targets, if they fit")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read")
    print_freq: int = Field(100, ge=1, description="steps between two lines of progress")
    save_freq: int = Field(10, ge=1, description="epochs between two kept checkpoints")
    save_dir: str = Field("checkpoints", description="folder of the checkpoints")
    log_dir: str = Field("logs", description="folder of logs and TensorBoard events")
    experiment_name: str | None = Field(
        None, description="stem of all files of the run", pattern=FILE_NAME_PATTERN
    )
    resume: str | None = Field(None, description="checkpoint to go on from")

    @property
    def data_source(self) -> DataSource:
        """Which images the run has."""
        return DataSource(**{key: getattr(self, key) for key in DataSource._fields})

    @classmethod
    def for_method(cls, method: str, settings: Mapping[str, Any]) -> Self:
        """Build the settings of a run of `method`.

        Raises:
            UserError: as `check`; or the settings name another method.
        """
        if settings.get("method", method) != method:
            raise UserError(
                f"These are settings of the method '{settings['method']}', not of '{method}'."
            )
        return cls.parse({**settings, "method": method})

    @model_validator(mode="before")
    @classmethod
    def _apply_method_defaults(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Fill in the method's defaults, and check the settings that it alone has."""
        method = settings.get("method", cls.model_fields["method"].default)
        if not isinstance(method, str):
            return settings
        method_defaults = method_settings(method)
        extra_settings = {
            key: value for key, value in settings.items() if key not in cls.model_fields
        }
        for key in extra_settings.keys() - method_defaults.keys():
            METHOD_DEFAULTS.require(method)  # whose settings these may be
            canonical = ALIASES.get(key, key)
            known_names = [*cls.model_fields, *method_defaults]
            raise ValueError(
                f"There is no setting '{key}'; {did_you_mean(canonical, known_names)}"
            )
        validated = (
            _method_settings_model(tuple((k, type(v), v) for k, v in method_defaults.items()))
            .parse(extra_settings)
            .model_dump()
            if method_defaults
            else {}
        )
        return {**METHOD_DEFAULTS.get(method, {}), **settings, **validated}

    @model_validator(mode="after")
    def _check_hint_epochs(self) -> Self:
        if self.hint_epochs >= self.epochs:
            raise ValueError(
                f"hint_epochs ({self.hint_epochs}) must leave some of the {self.epochs} epochs "
                "for the labels."
            )
        return self


def hash_settings(settings: Mapping[str, Any]) -> str:
    """SHA-256 of what settings have a run learn: not of their order, nor of places and files."""
    excluded = LOCATION_FIELDS | OUTPUT_FIELDS
    relevant = {key: value for key, value in settings.items() if key not in excluded}
    relevant["taught"] = settings.get("teacher_model") is not None
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def check_searchable(keys: Iterable[str], methods: Iterable[str]) -> None:
    """Check that a search space, or ``--setting``, may decide these settings of a run.

    Args:
        keys: of the settings.
        methods: of the runs.

    Raises:
        UserError: a key is unknown, has a flag of its own, or would play no part.
    """
    reserved = CLI_FIELDS | OUTPUT_FIELDS | DERIVED_FIELDS.keys()
    searchable = [f for f in TrainConfig.model_fields if f not in reserved]
    searchable += [key for method in methods for key in method_settings(method)]
    for key in keys:
        if key in CLI_FIELDS:
            raise UserError(f"The setting '{key}' has a flag of its own, where it can be given.")
        if key in DERIVED_FIELDS:
            raise UserError(
                f"The setting '{key}' follows from {DERIVED_FIELDS[key]}; leave it out."
            )
        if key in OUTPUT_FIELDS:
            raise UserError(f"The setting '{key}' plays no part here; leave it out.")
        if key not in searchable:
            raise UserError(f"There is no setting '{key}'; {did_you_mean(str(key), searchable)}")
