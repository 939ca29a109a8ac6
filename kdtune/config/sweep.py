"""Every setting of one sweep (`SweepConfig`); those of its runs are in `kdtune.config.train`."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kdtune.config.train import (
    FILE_NAME_PATTERN,
    METHOD_DEFAULTS,
    DataConfig,
    DataSource,
    check_searchable,
)
from kdtune.units import parse_duration

BASELINES = ("kd", "student")
"""Methods that run beside the others of a sweep: logits alone, and no teacher at all."""

DEFAULT_TRIALS = 20
"""Trials in each cell where no budget is given."""

MIN_DIFFERENCE = 0.5
"""Points of accuracy below which a difference does not matter."""

MIN_GPU_FRACTION = 0.01
"""The smallest part of a GPU."""


def default_trials(validated: Mapping[str, Any]) -> int | None:
    """No number of trials where another budget is given."""
    return (
        DEFAULT_TRIALS
        if not (validated.get("total_epochs") or validated.get("time_budget"))
        else None
    )


def default_grace_period(validated: Mapping[str, Any]) -> int:
    """Half of the epochs: what a trial gets before it may be stopped.

    With a quarter the best is found sooner on two of four recorded cells and later on the others,
    but on three of them most slow and sound learners are stopped (benchmarks/README.md).
    """
    return math.ceil(validated.get("epochs", 1) / 2)


def _split_commas(value: Any) -> Any:
    return [w.strip() for w in value.split(",") if w.strip()] if isinstance(value, str) else value


def _parse_cpus(value: Any) -> int:
    cpus = float(value)
    if cpus < 1 or cpus % 1:
        raise ValueError("a trial has at least one CPU, and whole ones")
    return int(cpus)


def _parse_gpus(value: Any) -> float:
    gpus = float(value)
    if not 0 <= gpus < math.inf or 0 < gpus < MIN_GPU_FRACTION or (gpus > 1 and gpus % 1):
        raise ValueError(f"give a part of one GPU, {MIN_GPU_FRACTION} or more, or whole ones")
    return gpus


def parse_per_model(value: Any, parse_number: Callable[[Any], float]) -> Any:
    """What trials need, as it may be given: a number, by model, or as words for these.

    Args:
        value: as given.
        read: gives the number, or raises a `ValueError`.

    >>> parse_per_model("ResNet50=1,MultiBranchNet=0.25", float), parse_per_model("0.5", float)
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
    """What a trial of a model needs, from a setting as `read_needs` gives it.

    >>> value_for_model({"A": 0.5}, "A", 1.0), value_for_model({"A": 0.5}, "B", 1.0), value_for_model(2.0, "B", 1.0)
    (0.5, 1.0, 2.0)
    """
    if isinstance(setting, Mapping):
        return setting.get(model, default)
    return default if setting in (None, "auto") else setting


class SweepConfig(DataConfig):
    """Every setting of one sweep; keys are the flags of ``kdtune sweep``."""

    name: str = Field(description="the sweep's folder under results/", pattern=FILE_NAME_PATTERN)
    data: str = Field(description="ImageFolder, or the name of a data set")
    teacher: str | None = Field(None, description="path of the teacher's checkpoint")
    methods: tuple[str, ...] = Field(("at", "fitnets"), min_length=1, description="compared")
    models: tuple[str, ...] = Field(
        ("MultiBranchNet", "ResNet18"), min_length=1, description="student architectures"
    )
    baselines: bool = Field(True, description="also run the methods kd and student")
    spaces: tuple[str, ...] = Field((), description="files of search spaces of your own")
    plugins: tuple[str, ...] = Field((), description="files of methods, models and data sets")
    total_epochs: int | None = Field(None, ge=1, description="epochs of all trials together")
    time_budget: float | None = Field(
        None, gt=0, description="seconds, or as 2h or 90m; then running trials end, too"
    )
    trials: int | None = Field(
        default_factory=default_trials,
        ge=1,
        description="trials in each cell; 20 if no budget is given",
    )
    balance_by: Literal["trials", "epochs", "seconds"] = Field(
        "trials", description="of what every cell gets the same; seconds are those of devices"
    )
    epochs: int = Field(50, ge=1, description="epochs of a trial that is not stopped early")
    sampler: str = Field(
        "auto",
        description="auto (gp, then tpe), tpe, gp, cmaes, random, qmc, grid, or module.Name",
    )
    allow_duplicates: bool = Field(
        False, description="train a suggestion again that was trained before"
    )
    warm_start: tuple[str, ...] = Field((), description="folders of sweeps to learn from")
    scheduler: Literal["asha", "hyperband", "median", "none"] = Field(
        "asha", description="the rule by which trials are stopped early"
    )
    grace_period: int = Field(
        default_factory=default_grace_period,
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
        None, description="Ray cluster to join: auto, or host:port; local is none"
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
    max_concurrent: int | None = Field(None, ge=1, description="trials at once, at most")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read")
    max_restarts: int = Field(
        3, ge=0, description="times that a trial whose process died is begun again"
    )
    stall_timeout: float = Field(
        3600, gt=0, description="seconds, or as 1h, without progress until a trial is begun again"
    )
    shutdown_grace: float = Field(
        20, ge=0, description="seconds that epochs under way have after a SIGTERM"
    )

    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (), description="what else gets the figures of trials"
    )

    @field_validator("methods", "models", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """``at,kd`` is as good as ``[at, kd]``."""
        return _split_commas(value)

    @field_validator("trackers", mode="before")
    @classmethod
    def _parse_trackers(cls, value: Any) -> Any:
        """``none`` is how a flag says that there are to be no more."""
        names = _split_commas(value)
        return () if names in (["none"], ("none",)) else names

    @field_validator("storage", mode="after")
    @classmethod
    def _parse_storage(cls, value: str | None) -> str | None:
        """``none`` is how a flag says that there is to be none any more."""
        return None if value == "none" else value

    @field_validator("time_budget", "stall_timeout", "shutdown_grace", mode="before")
    @classmethod
    def _parse_durations(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @field_validator("cpus_per_trial", "gpus_per_trial", mode="before")
    @classmethod
    def _parse_resources(cls, value: Any, info: ValidationInfo) -> Any:
        parse_number = _parse_gpus if info.field_name == "gpus_per_trial" else _parse_cpus
        return (
            value
            if (value, parse_number) == ("auto", _parse_gpus)
            else parse_per_model(value, parse_number)
        )

    @field_validator("settings", mode="before")
    @classmethod
    def _default_empty_settings(cls, value: Any) -> Any:
        return {} if value is None else value  # as an empty key of a YAML file is read

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.grace_period > self.epochs:
            raise ValueError(
                f"grace_period ({self.grace_period}) cannot be above epochs ({self.epochs})."
            )
        if None is self.trials is self.total_epochs is self.time_budget:
            raise ValueError("give a budget: trials, total_epochs or time_budget.")
        if self.balance_by != "trials" and None is self.total_epochs is self.time_budget:
            raise ValueError(
                f"balance_by {self.balance_by} needs total_epochs or time_budget: trials alone are a budget "
                "of which every cell gets the same number."
            )
        if self.total_epochs is not None and self.total_epochs < len(self.cells()):
            raise ValueError(
                f"total_epochs ({self.total_epochs}) must be at least one for each of the "
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
        check_searchable(self.settings, dict.fromkeys(method for method, _ in self.cells()))

    @property
    def data_source(self) -> DataSource:
        """Which images the sweep has."""
        fields = {key: getattr(self, key) for key in DataSource._fields[1:]}
        return DataSource(self.data, **fields)

    def locations(self, uses_teacher: bool) -> dict[str, Any]:
        """Return the settings of a run that say where its data, teacher and cache are now.

        A sweep that is resumed may find them elsewhere than its log says.
        """
        teacher = self.teacher if uses_teacher else None
        return {
            **self.data_source._asdict(), "teacher_model": teacher, "cache_gb": self.cache_gb
        }  # fmt: skip

    def cells(self) -> list[tuple[str, str]]:
        """The (method, model) pairs of the sweep, baselines last."""
        methods = list(dict.fromkeys(self.methods + (BASELINES if self.baselines else ())))
        return [(method, model) for method in methods for model in dict.fromkeys(self.models)]
