"""Settings of a sweep (`SweepConfig`); those of its runs are in `kdtune.config.train`."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdtune.config import train
from kdtune.config.data import DATA_DESCRIPTION, DataConfig, DataSource
from kdtune.config.data_forms import require_data
from kdtune.config.field_types import (
    COUNT,
    DURATION,
    Cpus,
    Gpus,
    Layers,
    Metric,
    Names,
    RunSettings,
    Storage,
    Trackers,
)
from kdtune.config.names import (
    FILE_NAME_PATTERN,
    require_model_name,
    require_sampler_name,
    split_teacher,
)
from kdtune.config.ranges import is_range, parse_point, parse_range
from kdtune.config.recipes import DEFAULT_RECIPE, RECIPES, join_student, split_student
from kdtune.config.strengths import COUNTERPARTS, strengths_to_weights
from kdtune.errors import UserError, did_you_mean

BASELINES = ("kd", "student")
"""Methods that run beside the others of a sweep: logits alone, and no teacher at all."""

MIN_DIFFERENCE = 0.5
"""Points of accuracy below which a difference does not matter."""

CONFIRM_SETTINGS = ("top", "seeds", "min_difference", "until_decided", "budget")

NOT_FROM_LOG = ("address", "storage", "plugins")
"""Settings that a log cannot choose: who joins a cluster runs what it sends, plug-ins are code."""

CONFIRM_FIELDS = {
    "data", "data_root", "image_column", "label_column", "teacher", "cache_gb", "cpus_per_trial",
    "gpus_per_trial", "trackers", "max_concurrent", "max_restarts",
    "stall_timeout", "shutdown_grace",
    *NOT_FROM_LOG, *CONFIRM_SETTINGS,
}  # fmt: skip
"""Settings that may change when a sweep is confirmed."""

RESUME_FIELDS = CONFIRM_FIELDS | {
    "trials", "total_epochs", "time_budget", "methods", "models", "baselines", "spaces",
    "sampler", "confirm",
}  # fmt: skip
"""Settings that may change when a sweep is resumed."""


def _default_trials(validated: Mapping[str, Any]) -> int | None:
    return None if validated.get("total_epochs") or validated.get("time_budget") else 20


def _default_grace_period(validated: Mapping[str, Any]) -> int:
    # With a quarter of the epochs, most slow learners are stopped on three of four recorded cells,
    # and the best trial is not found sooner on two of them (benchmarks/README.md).
    epochs: int = validated.get("epochs", 1)
    return math.ceil(epochs / 2)


class SweepConfig(DataConfig):
    """Settings of a sweep; keys are the flags of ``kdtune sweep``."""

    name: str = Field(description="the sweep's folder in results/", pattern=FILE_NAME_PATTERN)
    data: str = Field(description=DATA_DESCRIPTION)
    teacher: str | None = Field(None, description=train.TEACHER_DESCRIPTION)
    teacher_layers: Layers = Field(None, description=train.LAYERS_DESCRIPTION)
    methods: Names = Field(("at", "fitnets"), min_length=1, description="methods to compare")
    models: Names = Field(
        ("MultiBranchNet", "ResNet18"),
        min_length=1,
        description="students: MultiBranchNet, ResNet18, ResNet50, torchvision:NAME, timm:NAME",
    )
    recipe: Names = Field(
        (DEFAULT_RECIPE,),
        min_length=1,
        description=f"settings that neither a space nor `settings` decides: {', '.join(RECIPES)}; "
        "with several, each student has cells under each",
    )
    max_parameters: Annotated[int | None, COUNT] = Field(
        None, ge=1, description="leave out students with more parameters than this, e.g. 1.5M"
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        description="leave out students that take more milliseconds for an image, as measured",
    )
    baselines: bool = Field(True, description="also run the methods kd and student")
    spaces: tuple[str, ...] = Field(
        (),
        description="files with your own search spaces, or a range in place of a space's own: "
        "METHOD.SETTING=LOW:HIGH, LOW:HIGH:log, or A,B,C",
    )
    start: tuple[str, ...] = Field(
        (), description="a point to try first: METHOD.SETTING=VALUE,SETTING=VALUE"
    )
    plugins: tuple[str, ...] = Field(
        (), description="files with your own methods, models or data sets, which are run"
    )
    total_epochs: int | None = Field(None, ge=1, description="epochs of all trials together")
    time_budget: Annotated[float | None, DURATION] = Field(
        None, gt=0, description="seconds, or 2h; running trials then end at their next epoch"
    )
    trials: int | None = Field(
        default_factory=_default_trials,
        ge=1,
        description="trials in each cell; 20 without a budget",
    )
    balance_by: Literal["trials", "epochs", "seconds"] = Field(
        "trials", description="resource that cells share equally; seconds are those of devices"
    )
    epochs: int = Field(50, ge=1, description="epochs of a trial that is not stopped early")
    metric: Metric = Field(
        "accuracy",
        description=f"to search, stop, confirm and decide by; {train.METRIC_DESCRIPTION}",
    )
    sampler: str = Field(
        "auto",
        description="source of points: auto (gp, or tpe for a space that is a function), tpe, gp, "
        "cmaes, random, qmc, grid, or module.Name",
    )
    repeat_share: float = Field(
        0.25,
        ge=0,
        le=0.5,
        description="share of a cell's trials, after its first 8, that repeat its best settings "
        "with other seeds",
    )
    allow_duplicates: bool = Field(False, description="train a point that was trained before")
    warm_start: tuple[str, ...] = Field((), description="folders of earlier sweeps to learn from")
    scheduler: Literal["asha", "hyperband", "median", "none"] = Field(
        "asha", description="rule that stops trials early"
    )
    grace_period: int = Field(
        default_factory=_default_grace_period,
        ge=1,
        description="epochs before a stop; half of all",
    )
    reduction_factor: int = Field(2, ge=2, description="a rung keeps the best 1/N of the trials")
    confirm: bool = Field(False, description="confirm the sweep when its search is complete")
    top: int = Field(3, ge=1, description="trials of each cell to confirm")
    seeds: int = Field(5, ge=3, description="fresh seeds with which they are trained again")
    min_difference: float = Field(
        MIN_DIFFERENCE, gt=0, description="points of accuracy that matter as a difference"
    )
    until_decided: bool = Field(
        False,
        description="confirm, and add trials and seeds while they can still change the answer",
    )
    budget: Annotated[float | None, DURATION] = Field(
        None,
        gt=0,
        description="seconds, or 2h: until_decided adds nothing with which the search, or the "
        "confirmation, would take longer",
    )
    image_size: int | None = Field(None, ge=8, description="pixels; the teacher's if not given")
    address: str | None = Field(
        None, description="Ray cluster to join: host:port, auto, or local for this machine"
    )
    storage: Storage = Field(
        None, description="folder or URI for checkpoints and a copy of the sweep, or none"
    )
    seed: int = Field(0, ge=0, description="seed of the proposals and of every trial")
    settings: RunSettings = Field({}, description="other settings of every run, by name")
    cpus_per_trial: Cpus = Field(
        None, description="CPU threads of a trial, or by model: ResNet50=4,ResNet18=2"
    )
    gpus_per_trial: Gpus = Field(
        None, description="1, 0, or a part of one GPU, or by model; auto measures the part"
    )
    max_concurrent: int | None = Field(None, ge=1, description="most trials at once")
    max_restarts: int = Field(3, ge=0, description="most restarts of a trial whose process died")
    stall_timeout: Annotated[float, DURATION] = Field(
        3600, gt=0, description="seconds, or 1h, without progress before a trial restarts (once)"
    )
    shutdown_grace: Annotated[float, DURATION] = Field(
        20, ge=0, description="seconds to finish running epochs after SIGTERM"
    )
    trackers: Trackers = Field((), description="also log trials to these; none switches all off")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        grace, epochs, total = self.grace_period, self.epochs, self.total_epochs
        if grace > epochs:
            raise ValueError(f"grace_period ({grace}) cannot be above epochs ({epochs}).")
        if None is self.trials is total is self.time_budget:
            raise ValueError("give a budget: trials, total_epochs or time_budget.")
        if self.balance_by != "trials" and None is total is self.time_budget:
            raise ValueError(
                f"balance_by {self.balance_by} needs total_epochs or time_budget: with trials "
                "alone every cell gets the same number of them."
            )
        if self.budget is not None and not self.until_decided:
            raise ValueError("budget limits what until_decided adds: give until_decided, too.")
        if total is not None and total < (count := len(self.cells())):
            raise ValueError(
                f"total_epochs ({total}) must be at least one for each of the {count} cells."
            )
        # A log can be read without its plug-ins; what runs a sweep loads them and checks again.
        if set(self.all_methods) <= train.METHOD_DEFAULTS.keys():
            self._check_settings()
        return self

    def _check_settings(self) -> None:
        train.check_searchable(self.settings, self.all_methods)
        for method, recipe in product(self.all_methods, self.recipe):
            settings = train.applicable_settings(method, self.settings)
            settings = strengths_to_weights(settings, loss_scales={})
            settings = {"recipe": recipe, **settings, "epochs": self.epochs}
            train.TrainConfig.for_method(method, settings)

    def check_names_and_files(self) -> None:
        """Raise a `UserError` for an unknown name, invalid setting or missing file.

        The plug-ins must be loaded. Neither torch nor Ray is, so a mistake is reported at once.
        """
        for method in self.all_methods:
            train.METHOD_DEFAULTS.require(method)
        for model in self.models:
            require_model_name(model)
        require_sampler_name(self.sampler)
        self._check_settings()
        self._check_spaces()
        for setting in ("cpus_per_trial", "gpus_per_trial"):
            if isinstance(per_model := getattr(self, setting), Mapping):
                for model in per_model.keys() - set(self.models):
                    raise UserError(
                        f"{setting} names '{model}', which is not a student of this sweep; "
                        f"{did_you_mean(model, self.models)}"
                    )
        require_data(self.data)
        if self.teacher is not None:
            name, path = split_teacher(self.teacher)
            if not Path(path).expanduser().is_file():
                raise UserError(f"There is no file {path}.")
            if name is not None:
                require_model_name(name)

    def _check_spaces(self) -> None:
        """Check ranges and start points, as far as that needs no Ray."""
        for text in filter(is_range, self.spaces):
            requested = parse_range(text)
            self._check_for_method(f"The range {text}", requested.method, requested.setting)
        for text in self.start:
            method, point = parse_point(text)
            self._check_for_method(f"The point {text}", method, *point)

    def _check_for_method(self, what: str, method: str, *settings: str) -> None:
        """Refuse another method than those of the sweep, and settings that cannot be searched."""
        if method not in self.all_methods:
            suggestion = did_you_mean(method, self.all_methods)
            raise UserError(f"{what} is for '{method}', not in this sweep; {suggestion}")
        try:
            train.check_searchable(settings, [method])
        except UserError as error:
            raise UserError(f"{what} is invalid: {error}") from None
        for setting in {*settings, *map(COUNTERPARTS.get, settings)} & self.settings.keys():
            raise UserError(f"{what} is invalid: the sweep's settings fix {setting}.")

    @property
    def data_source(self) -> DataSource:
        """The images of the sweep."""
        _, *keys = DataSource._fields
        return DataSource(self.data, *(getattr(self, key) for key in keys))

    def locations(self, uses_teacher: bool) -> dict[str, Any]:
        """Return settings of a run that may differ from the log: its data, teacher and cache."""
        teacher = self.teacher if uses_teacher else None
        locations = self.data_source._asdict()
        return {**locations, "teacher_model": teacher, "cache_gb": self.cache_gb}

    @property
    def students(self) -> list[str]:
        """The models, each under every recipe if there are several."""
        models = dict.fromkeys(self.models)
        return [student for model in models for student in self.students_of(model)]

    def students_of(self, model: str) -> list[str]:
        """Return the `students` that are one of the models."""
        recipes = dict.fromkeys(self.recipe)
        if len(recipes) == 1:
            return [model]
        return [join_student(model, recipe) for recipe in recipes]

    def settings_of(self, student: str) -> dict[str, Any]:
        """Return model and recipe of one of `students`, as settings of a run."""
        model, recipe = split_student(student)
        return {"model": model, "recipe": recipe or self.recipe[0]}

    @property
    def all_methods(self) -> list[str]:
        """The methods, and last the baselines if they run."""
        return list(dict.fromkeys(self.methods + (BASELINES if self.baselines else ())))

    def cells(self) -> list[tuple[str, str]]:
        """Return the (method, student) pairs of the sweep, method by method."""
        return [*product(self.all_methods, self.students)]
