"""Every setting of one run (`TrainConfig`) and of one sweep (`SweepConfig`).

Settings are flat, frozen, and checked where they are built. Names of methods and models are
checked where those are built, so that this file needs neither torch nor ray.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from kdtune.errors import UserError, nearest
from kdtune.plugins import Registry

BASELINES = ("kd", "student")
"""Methods that run beside the others of a sweep: logits alone, and no teacher at all."""

HAVE_FLAGS = {
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

FOLLOW = {"augment_views": "cache_gb", "augment_seed": "seed"}
"""Settings that follow from others, for all runs of a sweep."""

OF_A_RUNS_FILES = {"print_freq", "save_freq", "save_dir", "log_dir", "experiment_name", "resume"}
"""Settings that play no part where a run writes no files of its own."""

OF_PLACES = {"data_dir", "data_root", "teacher_model", "num_workers", "cache_gb", "device"}
"""Settings that say where things are and what a machine has, not what is learned."""

OTHER_WORDS = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs"}
"""What other tools call our settings, where spelling does not lead to ours."""

FILE_NAME = r"^[\w][\w.-]*$"
"""What a name must look like from which names of files are made."""


def file_stem(*names: str) -> str:
    """Names as one that every file system takes.

    >>> file_stem("at", "torchvision:resnet34")
    'at-torchvision.resnet34'
    """
    return "-".join(names).replace(":", ".")


Settings = Mapping[str, bool | int | float | str]
"""Values of settings, by name."""


def _is_sound(method: Any) -> bool:
    """Whether the `SETTINGS` of a plug-in's method can be settings."""
    settings = getattr(method, "SETTINGS", {})
    taken = HAVE_FLAGS | OF_A_RUNS_FILES | FOLLOW.keys()
    return isinstance(settings, dict) and all(
        isinstance(key, str)
        and isinstance(value, bool | int | float | str)
        and key not in taken
        and (key in TrainConfig.model_fields or _is_free(key))
        for key, value in settings.items()
    )


def _is_free(key: str) -> bool:
    """Whether a further setting can have a name."""
    return key.isidentifier() and not key.startswith("_") and not hasattr(TrainConfig, key)


METHOD_DEFAULTS: Registry[Settings] = Registry(
    "method",
    "METHODS",
    {
        "student": {"alpha": 0.0, "beta": 0.0},
        "kd": {"alpha": 1.0, "beta": 0.0},
        "dkd": {"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
        "dist": {"temperature": 4.0, "alpha": 0.0, "beta": 2.0},
        "at": {"temperature": 4.0, "alpha": 0.0, "beta": 1e3},
        "at_paper": {"temperature": 4.0, "alpha": 0.0, "beta": 0.1},
        "fitnets": {"temperature": 3.0, "alpha": 0.1, "beta": 1e-3},
        "vid": {"temperature": 4.0, "alpha": 0.0, "beta": 1.0},
        "sp": {"temperature": 4.0, "alpha": 0.0, "beta": 3e3},
        "rkd": {"temperature": 4.0, "alpha": 0.0, "beta": 25.0},
        "pkt": {"temperature": 4.0, "alpha": 0.0, "beta": 3e4},
    },
    "a class whose SETTINGS, if any, are numbers, words, True or False by names that are free",
    _is_sound,
    lambda method: dict(getattr(method, "SETTINGS", {})),
)
"""Settings of a method by name: where its defaults differ from those that the fields of
`TrainConfig` give, and, under other names, further ones, of this method alone."""


def own_settings(method: str) -> Settings:
    """The settings of a method that are no fields of `TrainConfig`, and their defaults."""
    given = METHOD_DEFAULTS[method] if method in METHOD_DEFAULTS else {}
    return {key: value for key, value in given.items() if key not in TrainConfig.model_fields}


def settings_for(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that other methods alone have."""
    own = own_settings(method)
    return {k: v for k, v in settings.items() if k in own or k in TrainConfig.model_fields}


class DataSource(NamedTuple):
    """Which images a run has, as `kdtune.data.images.find_images` takes it."""

    data_dir: str
    data_root: str | None = None
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> Self:
        """Build the settings from a plain mapping.

        Raises:
            UserError: a key is unknown (the nearest known one is named), or a value is out of
                range or of the wrong type.
        """
        for key in settings:
            if not isinstance(key, str):
                raise UserError(f"{key!r} is no setting's name; {nearest('', cls.model_fields)}")
        try:
            return cls(**settings)
        except ValidationError as error:
            raise UserError(cls._sentence(error.errors()[0])) from None

    @classmethod
    def _sentence(cls, error: ErrorDetails) -> str:
        key = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            meant = OTHER_WORDS.get(key, key)
            return f"There is no setting '{key}'; {nearest(meant, cls.model_fields)}"
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


class _OfData(_Settings):
    """What runs and sweeps say of their images alike."""

    data_root: str | None = Field(
        None, description="folder of named data sets; datasets/ in the cache if not given"
    )
    train_images: int | None = Field(
        None,
        ge=2,
        description="so many for training, of each class its share; all if not given",
    )
    validation_images: int | None = Field(None, ge=2, description="the same for validation")
    test_images: int | None = Field(None, ge=2, description="the same for test")


@lru_cache
def _own_model(own: tuple[tuple[str, type, Any], ...]) -> type[_Settings]:
    """Checks the settings that a method alone has, from names, types and defaults of these."""
    fields: Any = {key: (kind, value) for key, kind, value in own}
    return create_model("Own", __base__=_Settings, **fields)


class TrainConfig(_OfData):
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
        None, description="stem of all files of the run", pattern=FILE_NAME
    )
    resume: str | None = Field(None, description="checkpoint to go on from")

    @property
    def source(self) -> DataSource:
        """Which images the run has."""
        return DataSource(**{key: getattr(self, key) for key in DataSource._fields})

    @classmethod
    def of_method(cls, method: str, settings: Mapping[str, Any]) -> Self:
        """Build the settings of a run of `method`.

        Raises:
            UserError: as `check`; or the settings name another method.
        """
        if settings.get("method", method) != method:
            raise UserError(
                f"These are settings of the method '{settings['method']}', not of '{method}'."
            )
        return cls.check({**settings, "method": method})

    @model_validator(mode="before")
    @classmethod
    def _of_its_method(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Fill in the method's defaults, and check the settings that it alone has."""
        method = settings.get("method", cls.model_fields["method"].default)
        if not isinstance(method, str):
            return settings
        own = own_settings(method)
        given = {key: value for key, value in settings.items() if key not in cls.model_fields}
        for key in given.keys() - own.keys():
            METHOD_DEFAULTS.check(method)  # whose settings these may be
            meant = OTHER_WORDS.get(key, key)
            known = [*cls.model_fields, *own]
            raise ValueError(f"There is no setting '{key}'; {nearest(meant, known)}")
        checked = (
            _own_model(tuple((k, type(v), v) for k, v in own.items())).check(given).model_dump()
            if own
            else {}
        )
        return {**METHOD_DEFAULTS.get(method, {}), **settings, **checked}

    @model_validator(mode="after")
    def _hints_fit(self) -> Self:
        if self.hint_epochs >= self.epochs:
            raise ValueError(
                f"hint_epochs ({self.hint_epochs}) must leave some of the {self.epochs} epochs "
                "for the labels."
            )
        return self


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of what settings have a run learn: not of their order, nor of places and files."""
    left_out = OF_PLACES | OF_A_RUNS_FILES
    learned = {key: value for key, value in settings.items() if key not in left_out}
    learned["taught"] = settings.get("teacher_model") is not None
    return hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()


def check_free(keys: Iterable[str], methods: Iterable[str]) -> None:
    """Check that a search space, or ``--setting``, may decide these settings of a run.

    Args:
        keys: of the settings.
        methods: of the runs.

    Raises:
        UserError: a key is unknown, has a flag of its own, or would play no part.
    """
    taken = HAVE_FLAGS | OF_A_RUNS_FILES | FOLLOW.keys()
    free = [f for f in TrainConfig.model_fields if f not in taken]
    free += [key for method in methods for key in own_settings(method)]
    for key in keys:
        if key in HAVE_FLAGS:
            raise UserError(f"The setting '{key}' has a flag of its own, where it can be given.")
        if key in FOLLOW:
            raise UserError(f"The setting '{key}' follows from {FOLLOW[key]}; leave it out.")
        if key in OF_A_RUNS_FILES:
            raise UserError(f"The setting '{key}' plays no part here; leave it out.")
        if key not in free:
            raise UserError(f"There is no setting '{key}'; {nearest(str(key), free)}")


DEFAULT_TRIALS = 20
"""Trials in each cell where no budget is given."""

MIN_DIFFERENCE = 0.5
"""Points of accuracy below which a difference does not matter."""


_UNITS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}
_PART = r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)\s*"


def parse_duration(text: str) -> float:
    """Seconds of a duration as people write it.

    Raises:
        ValueError: it is none.

    >>> parse_duration("2h"), parse_duration("1h30m"), parse_duration("1.5 min")
    (7200.0, 5400.0, 90.0)
    """
    if not re.fullmatch(f"({_PART})+", text.strip()):
        raise ValueError("write it as 2h, 1h30m, 90m or 45s")
    return sum(float(count) * _UNITS[unit] for count, unit in re.findall(_PART, text))


def duration(seconds: float) -> str:
    """A duration for people, its two largest units.

    >>> duration(7200), duration(5430), duration(45)
    ('2 h', '1 h 30 min', '45 s')
    """
    words, rest = [], round(seconds)
    for unit in ("d", "h", "min", "s"):
        count, rest = divmod(rest, _UNITS[unit])
        words += [f"{count} {unit}"] if count else []
    return " ".join(words[:2]) or "0 s"


def rung_epochs(epochs: int, grace_period: int, reduction_factor: int) -> tuple[int, ...]:
    """Epochs after which trials are compared, all of them before the last.

    >>> rung_epochs(16, 2, 2), rung_epochs(50, 13, 3)
    ((2, 4, 8), (13, 39))
    """
    rungs = []
    while grace_period < epochs:
        rungs.append(grace_period)
        grace_period *= reduction_factor
    return tuple(rungs)


def default_trials(given: Mapping[str, Any]) -> int | None:
    """No number of trials where another budget is given."""
    return DEFAULT_TRIALS if not (given.get("epochs_total") or given.get("time_budget")) else None


def default_grace_period(epochs: int) -> int:
    """Half of the epochs: what a trial gets before it may be stopped.

    With a quarter the best is found sooner on two of four recorded cells and later on the others,
    but on three of them most slow and sound learners are stopped (benchmarks/README.md).
    """
    return math.ceil(epochs / 2)


def _words(value: Any) -> Any:
    return [w.strip() for w in value.split(",") if w.strip()] if isinstance(value, str) else value


def _cpus(value: Any) -> int:
    cpus = float(value)
    if cpus < 1 or cpus % 1:
        raise ValueError("a trial has at least one CPU, and whole ones")
    return int(cpus)


def _gpus(value: Any) -> float:
    gpus = float(value)
    if not 0 <= gpus < math.inf or 0 < gpus < LEAST_GPU or (gpus > 1 and gpus % 1):
        raise ValueError(f"give a part of one GPU, {LEAST_GPU} or more, or whole ones")
    return gpus


LEAST_GPU = 0.01
"""The smallest part of a GPU."""


def read_needs(value: Any, read: Callable[[Any], float]) -> Any:
    """What trials need, as it may be given: a number, by model, or as words for these.

    Args:
        value: as given.
        read: gives the number, or raises a `ValueError`.

    >>> read_needs("ResNet50=1,MultiBranchNet=0.25", float), read_needs("0.5", float)
    ({'ResNet50': 1.0, 'MultiBranchNet': 0.25}, 0.5)
    """
    if value is None:
        return None
    if isinstance(value, str) and "=" in value:
        pairs = [word.partition("=") for word in _words(value)]
        value = {model.strip(): number for model, _, number in pairs}
    try:
        if isinstance(value, Mapping):
            return {model: read(number) for model, number in value.items()}
        return read(value)
    except TypeError:
        raise ValueError("give a number, or one for each model as MODEL=NUMBER") from None
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        raise ValueError("give a number, or one for each model as MODEL=NUMBER") from None


def of_model(setting: Any, model: str, default: Any) -> Any:
    """What a trial of a model needs, from a setting as `read_needs` gives it.

    >>> of_model({"A": 0.5}, "A", 1.0), of_model({"A": 0.5}, "B", 1.0), of_model(2.0, "B", 1.0)
    (0.5, 1.0, 2.0)
    """
    if isinstance(setting, Mapping):
        return setting.get(model, default)
    return default if setting in (None, "auto") else setting


class SweepConfig(_OfData):
    """Every setting of one sweep; keys are the flags of ``kdtune sweep``."""

    name: str = Field(description="the sweep's folder under results/", pattern=FILE_NAME)
    data: str = Field(description="ImageFolder, or the name of a data set")
    teacher: str | None = Field(None, description="path of the teacher's checkpoint")
    methods: tuple[str, ...] = Field(("at", "fitnets"), min_length=1, description="compared")
    models: tuple[str, ...] = Field(
        ("MultiBranchNet", "ResNet18"), min_length=1, description="student architectures"
    )
    baselines: bool = Field(True, description="also run the methods kd and student")
    spaces: tuple[str, ...] = Field((), description="files of search spaces of your own")
    plugins: tuple[str, ...] = Field((), description="files of methods, models and data sets")
    epochs_total: int | None = Field(None, ge=1, description="epochs of all trials together")
    time_budget: float | None = Field(
        None, gt=0, description="seconds, or as 2h or 90m; then running trials end, too"
    )
    trials: int | None = Field(
        default_factory=lambda given: default_trials(given),
        ge=1,
        description="trials in each cell; 20 if no budget is given",
    )
    equal: Literal["trials", "epochs", "seconds"] = Field(
        "trials", description="of what every cell gets the same; seconds are those of devices"
    )
    epochs: int = Field(50, ge=1, description="epochs of a trial that is not stopped early")
    sampler: str = Field(
        "auto",
        description="auto (gp, then tpe), tpe, gp, cmaes, random, qmc, grid, or module.Name",
    )
    repeats: bool = Field(False, description="train a suggestion again that was trained before")
    warm_start: tuple[str, ...] = Field((), description="folders of sweeps to learn from")
    scheduler: Literal["asha", "hyperband", "median", "none"] = Field(
        "asha", description="the rule by which trials are stopped early"
    )
    grace_period: int = Field(
        default_factory=lambda given: default_grace_period(given.get("epochs", 1)),
        ge=1,
        description="epochs before a trial may be stopped; half of all if not given",
    )
    reduction_factor: int = Field(2, ge=2, description="one in so many goes on at each rung")
    confirm: bool = Field(False, description="confirm the search when it is complete")
    top: int = Field(3, ge=1, description="trials of each cell that are confirmed")
    seeds: int = Field(5, ge=3, description="fresh seeds with which they are trained again")
    min_difference: float = Field(
        MIN_DIFFERENCE,
        gt=0,
        description="points of accuracy below which a difference does not matter",
    )
    image_size: int | None = Field(None, ge=8, description="pixels; as the teacher if not given")
    address: str | None = Field(
        None,
        description="Ray cluster to join: auto, or host:port; local is none",
    )
    storage: str | None = Field(
        None, description="folder or URI for a copy of the sweep, and for its checkpoints"
    )
    seed: int = Field(0, ge=0, description="fixes suggestions and every trial's seed")
    settings: dict[str, Any] = Field({}, description="other settings of every run, by name")
    cache_gb: float = Field(
        20, ge=0, description="size of this machine's cache of views; 0: nothing is kept on disk"
    )
    cpus_per_trial: int | dict[str, int] | None = Field(
        None, description="CPU threads of a trial, or by model, as ResNet50=4,ResNet18=2"
    )
    gpus_per_trial: float | Literal["auto"] | dict[str, float] | None = Field(
        None, description="GPUs, or a part of one; or by model; auto measures the part"
    )
    concurrent: int | None = Field(None, ge=1, description="trials at once, at most")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read")
    max_restarts: int = Field(
        3, ge=0, description="times that a trial whose process died is begun again"
    )
    stall_time: float = Field(
        3600, gt=0, description="seconds, or as 1h, without progress until a trial is begun again"
    )
    term_limit: float = Field(
        20, ge=0, description="seconds that epochs under way have after a SIGTERM"
    )

    track: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (), description="what else gets the figures of trials"
    )

    @field_validator("methods", "models", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        """``at,kd`` is as good as ``[at, kd]``."""
        return _words(value)

    @field_validator("track", mode="before")
    @classmethod
    def _end_tracking(cls, value: Any) -> Any:
        """``none`` is how a flag says that there are to be no more."""
        words = _words(value)
        return () if words in (["none"], ("none",)) else words

    @field_validator("storage", mode="after")
    @classmethod
    def _end_storage(cls, value: str | None) -> str | None:
        """``none`` is how a flag says that there is to be none any more."""
        return None if value == "none" else value

    @field_validator("time_budget", "stall_time", "term_limit", mode="before")
    @classmethod
    def _read_duration(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @field_validator("cpus_per_trial", "gpus_per_trial", mode="before")
    @classmethod
    def _read_needs(cls, value: Any, info: ValidationInfo) -> Any:
        read = _gpus if info.field_name == "gpus_per_trial" else _cpus
        return value if (value, read) == ("auto", _gpus) else read_needs(value, read)

    @field_validator("settings", mode="before")
    @classmethod
    def _empty_settings(cls, value: Any) -> Any:
        return {} if value is None else value  # as an empty key of a YAML file is read

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.grace_period > self.epochs:
            raise ValueError(
                f"grace_period ({self.grace_period}) cannot be above epochs ({self.epochs})."
            )
        if None is self.trials is self.epochs_total is self.time_budget:
            raise ValueError("give a budget: trials, epochs_total or time_budget.")
        if self.equal != "trials" and None is self.epochs_total is self.time_budget:
            raise ValueError(
                f"equal {self.equal} needs epochs_total or time_budget: trials alone are a budget "
                "of which every cell gets the same number."
            )
        if self.epochs_total is not None and self.epochs_total < len(self.cells()):
            raise ValueError(
                f"epochs_total ({self.epochs_total}) must be at least one for each of the "
                f"{len(self.cells())} cells."
            )
        # A log can be read without the plug-ins that gave its methods; a sweep cannot be run so.
        if {method for method, _ in self.cells()} <= METHOD_DEFAULTS.keys():
            self.check_settings()
        return self

    def check_settings(self) -> None:
        """Check that the settings of every run are settings of some of its methods.

        Raises:
            UserError: see `check_free`.
        """
        check_free(self.settings, dict.fromkeys(method for method, _ in self.cells()))

    @property
    def source(self) -> DataSource:
        """Which images the sweep has."""
        own = {key: getattr(self, key) for key in DataSource._fields[1:]}
        return DataSource(self.data, **own)

    def cells(self) -> list[tuple[str, str]]:
        """The (method, model) pairs of the sweep, baselines last."""
        methods = list(dict.fromkeys(self.methods + (BASELINES if self.baselines else ())))
        return [(method, model) for method in methods for model in dict.fromkeys(self.models)]
