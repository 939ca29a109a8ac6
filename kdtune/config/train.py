"""Settings of a training run (`TrainConfig`), checked when built; loads no torch."""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from kdtune.config.base import ALIASES, BaseConfig
from kdtune.config.data import DATA_DESCRIPTION, DataConfig, DataSource
from kdtune.config.field_types import Augment, Layers, Metric
from kdtune.config.methods import BUILTIN_METHODS, SettingValues
from kdtune.config.names import FILE_NAME_PATTERN
from kdtune.config.recipes import DEFAULT_RECIPE, RECIPES, load_recipe
from kdtune.config.strengths import STRENGTHS, require_one_of_each
from kdtune.errors import UserError, did_you_mean
from kdtune.plugins import Registry

CLI_FIELDS = {
    "method", "model", "teacher_model", "teacher_layers", "data_dir", "weights", "image_size",
    "epochs", "seed", "metric", *DataConfig.model_fields,
}  # fmt: skip
"""Settings with flags of their own, or that follow from such flags."""

DERIVED_FIELDS = {"augment_views": "cache_gb", "augment_seed": "seed"}
"""Settings that follow from another setting in all runs of a sweep."""

OUTPUT_FIELDS = {"print_freq", "save_freq", "save_dir", "log_dir", "experiment_name", "resume"}
"""Output settings, ignored inside a sweep."""

SINGLE_RUN_FIELDS = OUTPUT_FIELDS | {"patience"}
"""Settings that have no effect inside a sweep."""

_NOT_SEARCHABLE = {
    **dict.fromkeys(CLI_FIELDS, "has a flag of its own; use that"),
    "weights": "is for teachers; students start from random weights",
    **{key: f"follows from {source}; leave it out" for key, source in DERIVED_FIELDS.items()},
    **dict.fromkeys(SINGLE_RUN_FIELDS, "has no effect in a sweep; leave it out"),
}

LOADED_DATA_FIELDS = {"class_weights", "balanced_sampling", "mix"}
"""Settings that need the images of `data_dir`; a loader of a user's own cannot have them."""

METRIC_DESCRIPTION = "balanced_accuracy is the mean recall of the classes"

TEACHER_DESCRIPTION = "the teacher's checkpoint, or NAME=FILE: a network and its state_dict"
LAYERS_DESCRIPTION = (
    "teacher's modules whose outputs are its maps, as a,b,c; all stages if not given"
)

MAX_ADAMW_LR = 0.1
"""Training with AdamW diverges far below. The search spaces of kdtune go higher, for SGD."""


@lru_cache
def _method_settings_model(definitions: tuple[tuple[str, type, Any], ...]) -> type[BaseConfig]:
    fields: Any = {key: (kind, default) for key, kind, default in definitions}
    return create_model("MethodSettings", __base__=BaseConfig, **fields)


class TrainConfig(DataConfig):
    """Settings of a training run, with those that its method alone has."""

    model_config = ConfigDict(extra="allow")  # `_apply_method_defaults` checks them

    method: str = Field("at", description="distillation method")
    model: str = Field("MultiBranchNet", description="architecture of the student")
    recipe: str = Field(
        DEFAULT_RECIPE,
        description=f"settings that are not given: {', '.join(RECIPES)}; see docs/recipes.md",
    )
    teacher_model: str | None = Field(None, description=TEACHER_DESCRIPTION)
    teacher_layers: Layers = Field(None, description=LAYERS_DESCRIPTION)
    weights: str | None = Field(
        None,
        description="initial weights: DEFAULT (torchvision's), or a file; random if not given",
    )
    data_dir: str = Field("data", description=DATA_DESCRIPTION)
    image_size: int = Field(128, ge=8, description="pixels; images are resized to a square")
    batch_size: int = Field(32, ge=2, description="images in a step")
    num_workers: int = Field(4, ge=0, description="threads, or processes of loaders, that decode")
    augment: Augment = Field(
        "none",
        description="random crops and flips of training images, and after them, by name: nothing "
        "(crop_flip), rotations and colours (standard, or true), or torchvision's",
    )
    mix: Literal["none", "mixup", "cutmix"] = Field(
        "none",
        description="mixes each image of a cached view with another one, and their labels; views "
        "are `augment_views` or, without a number, one for each epoch",
    )
    epochs: int = Field(50, ge=1, description="passes over the training images")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="torch's optimizer")
    lr: float = Field(0.01, gt=0, description="learning rate, at its highest")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd, beta1 of adamw")
    nesterov: bool = Field(False, description="Nesterov's momentum, with sgd")
    weight_decay: float = Field(
        5e-4, ge=0, description="L2 penalty of sgd, decoupled weight decay of adamw"
    )
    lr_scheduler: Literal["step", "cosine", "constant", "one_cycle"] = Field(
        "step", description="course of the learning rate after the warm-up, by epoch"
    )
    warmup_epochs: int = Field(
        0, ge=0, description="first epochs, in which the learning rate rises linearly"
    )
    step_size: int = Field(10, ge=1, description="step: epochs between two decays of lr")
    gamma: float = Field(0.1, gt=0, le=1, description="step: factor of a decay of lr")
    gradient_clip_val: float = Field(
        0.0, ge=0, description="largest norm of the gradients of a step; 0 does not clip"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a label that all classes get, in training"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weights of the classification loss; balanced: 1 / images of a class"
    )
    balanced_sampling: bool = Field(
        False, description="draw training images with replacement, all classes alike"
    )
    drop_rate: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="dropout of networks of torchvision and timm, as they have it",
    )
    drop_path_rate: float | None = Field(
        None, ge=0, lt=1, description="their stochastic depth; the network's own if not given"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of the average of weights that is validated and kept; 0: none",
    )
    temperature: float = Field(4.0, gt=0, description="temperature of the KD loss")
    alpha: float = Field(0.0, ge=0, description="weight of the KD loss; of TCKD in DKD")
    beta: float = Field(0.0, ge=0, description="weight of the method's own loss")
    hint_epochs: int = Field(
        0, ge=0, description="FitNets: first epochs, which train on the hint loss alone"
    )
    hint_layer: int = Field(-1, description="FitNets, VID, SP: index of the compared stage")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "bf16", "float16", "tf32", "float32"] = Field(
        "auto", description="arithmetic of networks; auto is bf16 or float16 where that is fast"
    )
    metric: Metric = Field("accuracy", description=f"chooses the best epoch; {METRIC_DESCRIPTION}")
    compile: bool = Field(False, description="compile student and teacher with torch.compile")
    cuda_graph: bool = Field(
        True, description="repeat the training step of an epoch as a CUDA graph, on a GPU"
    )
    seed: int = Field(0, ge=0, description="fixes weights, data order and augmentation")
    augment_views: int = Field(
        0,
        ge=0,
        description="augmented views that epochs cycle through; 0 augments every epoch anew",
    )
    augment_seed: int = Field(0, ge=0, description="fixes the augmented views")
    cache_targets: bool = Field(True, description="cache the teacher's targets, if they fit")
    print_freq: int = Field(100, ge=1, description="steps between lines of progress")
    patience: int = Field(
        0, ge=0, description="epochs without a better one after which a single run stops; 0: never"
    )
    save_freq: int = Field(10, ge=1, description="epochs between kept checkpoints")
    save_dir: str = Field("checkpoints", description="folder of the checkpoints")
    log_dir: str = Field("logs", description="folder of logs and TensorBoard events")
    experiment_name: str | None = Field(
        None, description="stem of the names of the run's files", pattern=FILE_NAME_PATTERN
    )
    resume: str | None = Field(None, description="checkpoint from which training resumes")

    @property
    def augments(self) -> bool:
        """True if training images are augmented."""
        return self.augment != "none"

    @property
    def num_views(self) -> int:
        """Number of views that epochs cycle through; 0 without views."""
        if self.mix != "none":
            return self.augment_views or self.epochs
        return self.augment_views if self.augments else 0

    @property
    def dropout_rates(self) -> dict[str, float]:
        """`drop_rate` and `drop_path_rate`, as far as they are given."""
        rates = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        return {key: rate for key, rate in rates.items() if rate is not None}

    @property
    def data_source(self) -> DataSource:
        """The images of the run."""
        return DataSource(*(getattr(self, key) for key in DataSource._fields))

    @classmethod
    def for_method(cls, method: str, settings: Mapping[str, Any]) -> Self:
        """Build the settings of a run of a method.

        Args:
            method: of the run.
            settings: by name; they may leave the method out, but not name another one.
        """
        if (other := settings.get("method", method)) != method:
            raise UserError(f"These are settings of the method '{other}', not of '{method}'.")
        return cls.parse({**settings, "method": method})

    def require_defaults(self, keys: Iterable[str], user: str) -> None:
        """Raise a `UserError` if settings are not their defaults.

        Args:
            keys: names of the settings.
            user: names what they have no effect on.
        """
        for key in sorted(keys):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise UserError(f"The setting {key} has no effect on {user}; leave it out.")

    @model_validator(mode="before")
    @classmethod
    def _apply_method_defaults(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Fill in the defaults of method and recipe, and check the method's own settings."""
        method = settings.get("method", cls.model_fields["method"].default)
        if not isinstance(method, str):
            return settings
        method_defaults = method_settings(method)
        extra = {key: value for key, value in settings.items() if key not in cls.model_fields}
        for key in extra.keys() - method_defaults.keys():
            METHOD_DEFAULTS.require(method)  # the settings may be those of a missing method
            suggestion = did_you_mean(key, [*cls.model_fields, *method_defaults], ALIASES)
            raise ValueError(f"There is no setting '{key}'; {suggestion}")
        if method_defaults:
            definitions = tuple((key, type(v), v) for key, v in method_defaults.items())
            extra = _method_settings_model(definitions).parse(extra).model_dump()
        recipe = load_recipe(str(settings.get("recipe", DEFAULT_RECIPE)))
        return {**METHOD_DEFAULTS.get(method, {}), **recipe, **settings, **extra}

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.optimizer == "adamw" and self.lr > MAX_ADAMW_LR:
            raise ValueError(
                f"lr {self.lr:g} is one of sgd, and too large for adamw: fix it, as with "
                "--setting lr=0.001, or search it in a space of your own."
            )
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0.")
        if (warmup := self.warmup_epochs) >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({warmup}) must leave some of the {self.epochs} epochs."
            )
        if warmup and self.lr_scheduler == "one_cycle":
            raise ValueError("one_cycle warms up by itself: leave warmup_epochs out.")
        if (hint := self.hint_epochs) >= self.epochs:
            raise ValueError(
                f"hint_epochs ({hint}) must leave some of the {self.epochs} epochs for the labels."
            )
        return self


def _searchable_fields() -> list[str]:
    return [key for key in TrainConfig.model_fields if key not in _NOT_SEARCHABLE]


def _is_setting_name(key: Any) -> bool:
    if not isinstance(key, str) or key in STRENGTHS or key in TrainConfig.model_fields:
        return key in _searchable_fields()
    return key.isidentifier() and not key.startswith("_") and not hasattr(TrainConfig, key)


def _has_valid_settings(method: Any) -> bool:
    settings = getattr(method, "SETTINGS", {})
    return isinstance(settings, dict) and all(
        _is_setting_name(key) and isinstance(value, bool | int | float | str)
        for key, value in settings.items()
    )


METHOD_DEFAULTS: Registry[SettingValues] = Registry(
    "method",
    "METHODS",
    {name: info.defaults for name, info in BUILTIN_METHODS.items()},
    "a class whose SETTINGS, if any, are numbers, words, True or False by names that are free",
    _has_valid_settings,
    lambda method: dict(getattr(method, "SETTINGS", {})),
    {info.class_path.partition(":")[2]: name for name, info in BUILTIN_METHODS.items()},
)
"""Default settings by method: fields of `TrainConfig`, and settings of the method alone."""


def method_settings(method: str) -> SettingValues:
    """Return the defaults of the settings that a method alone has."""
    defaults = METHOD_DEFAULTS.find(method) or {}
    return {key: value for key, value in defaults.items() if key not in TrainConfig.model_fields}


def applicable_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that other methods alone have.

    Args:
        method: of a run.
        settings: of several methods, by name.
    """
    method_keys = method_settings(method)
    shared_keys = TrainConfig.model_fields.keys() | STRENGTHS.keys()
    return {k: v for k, v in settings.items() if k in method_keys or k in shared_keys}


def searchable_settings(methods: Iterable[str]) -> list[str]:
    """Return the names of the settings, and strengths, that a search space may decide."""
    method_keys = (key for method in methods for key in method_settings(method))
    return [*_searchable_fields(), *STRENGTHS, *method_keys]


def check_searchable(keys: Collection[str], methods: Iterable[str]) -> None:
    """Raise a `UserError` if a search space, or ``--setting``, may not decide a setting of a run.

    Args:
        keys: names of the settings, or of strengths.
        methods: methods of the runs.
    """
    searchable = searchable_settings(methods)
    require_one_of_each(keys)
    for key in keys:
        if key in _NOT_SEARCHABLE:
            raise UserError(f"The setting '{key}' {_NOT_SEARCHABLE[key]}.")
        if key not in searchable:
            suggestion = did_you_mean(str(key), searchable, ALIASES)
            raise UserError(f"There is no setting '{key}'; {suggestion}")
