"""Search spaces: modules with `METHOD`, `SPACE` and `START`, loaded and checked."""

import importlib.util
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from types import ModuleType
from typing import Any, Self, get_args

import numpy as np
import optuna
from optuna import distributions as ranges
from ray.tune.search.sample import Categorical, Domain, Function

import search_spaces
from kdtune.config.ranges import Range
from kdtune.config.strengths import (
    COUNTERPARTS,
    STRENGTHS,
    override_settings,
    require_one_of_each,
    strengths_to_weights,
    without_settings,
)
from kdtune.config.train import TrainConfig, check_searchable, method_settings, searchable_settings
from kdtune.errors import UserError, first_line
from kdtune.log.distributions import contains, on_grid, quiet_optuna
from kdtune.log.events import Cell
from kdtune.methods import METHODS
from kdtune.plugins import PLUGINS
from kdtune.reports.text.spaces import space_lines
from kdtune.tuning.cluster.ray_private import to_optuna

ConfigureTrial = Callable[[Cell, int, dict[str, Any]], TrainConfig]
"""Returns the complete settings of a trial from its cell, its number and its space's settings.

These have weights in place of strengths.
"""

MeasureScales = Callable[[Cell, dict[str, Any]], dict[str, float]]
"""Returns the scales of a trial's terms, see `strengths_to_weights`, from its space's settings."""


@dataclass(frozen=True)
class SearchSpace:
    """The search space of one method: searched and fixed settings, and points tried first."""

    method: str
    distributions: dict[str, ranges.BaseDistribution]
    constants: dict[str, Any]
    define_by_run: Callable[[optuna.Trial], dict[str, Any] | None] | None
    start_points: list[dict[str, Any]]  # the sampler proposes what a point leaves out
    docstring: str
    path: Path

    def with_constants(self, constants: dict[str, Any]) -> Self:
        """Return the space with some settings fixed; only a file can change its own function.

        A weight takes the place of its strength, and a strength that of its weight.
        """
        if self.define_by_run is not None:
            names = (name for key in constants for name in (key, COUNTERPARTS.get(key)))
            for name in names:
                if any(name in trial.params for trial, _ in self.probe_points()):
                    raise UserError(f"{self.path} searches '{name}' by itself; fix it there.")
        searched = without_settings(self.distributions, constants)
        points = [without_settings(point, constants) for point in self.start_points]
        starts = [point for i, point in enumerate(points) if point and point not in points[:i]]
        fixed = override_settings(self.constants, constants)
        return replace(self, distributions=searched, constants=fixed, start_points=starts)

    def with_range(self, requested: Range) -> Self:
        """Return the space with the range, or the value, of a setting in place of its own.

        Start points outside the range leave the setting to the sampler.
        """
        key = requested.setting
        if self.define_by_run is not None:
            raise UserError(f"{self.path} is a function: change the range of '{key}' there.")
        if len(requested.choices) == 1:
            return self.with_constants({key: requested.choices[0]})
        searched = _make_distribution(requested, _is_whole(self.method, key))
        others = without_settings(self.distributions, [key])
        constants = without_settings(self.constants, [key])
        points = [
            point if contains(searched, point.get(key)) else without_settings(point, [key])
            for point in self.start_points
        ]
        starts = [point for i, point in enumerate(points) if point and point not in points[:i]]
        searches = {**others, key: searched}
        space = replace(self, distributions=searches, constants=constants, start_points=starts)
        try:
            _validate_space(space)
        except UserError as error:
            raise UserError(f"The range of {self.method}.{key} is invalid: {error}") from None
        return space

    def with_start(self, point: dict[str, Any]) -> Self:
        """Return the space with one more point, which is tried first."""
        space = replace(self, start_points=[point, *self.start_points])
        try:
            _validate_space(space)
        except UserError as error:
            raise UserError(f"The start point of {self.method} is invalid: {error}") from None
        return space

    def ask_study(self, study: optuna.Study) -> tuple[optuna.Trial, dict[str, Any]]:
        """Ask a study for a trial; return it with all settings that the space decides.

        Raises:
            optuna.TrialPruned: by a space that is a function, which has no such point.
        """
        trial = study.ask(self.distributions)
        try:
            defined = self.define_by_run(trial) if self.define_by_run is not None else None
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        settings = {k: on_grid(trial.distributions[k], v) for k, v in trial.params.items()}
        if defined is not None:  # other names are helpers of the function
            known = searchable_settings([self.method])
            settings = {key: value for key, value in settings.items() if key in known}
            settings |= {key: _plain(value) for key, value in defined.items()}
        return trial, override_settings(settings, self.constants)

    @property
    def has_strengths(self) -> bool:
        """True if it decides the strength of a term, which must be measured for that."""
        return any(STRENGTHS.keys() & settings.keys() for _, settings in self.probe_points())

    def trial_at(self, point: dict[str, Any]) -> tuple[optuna.Trial, dict[str, Any]]:
        """Return trial and settings of a given point; what it leaves out is drawn at random."""
        study = _new_study()
        study.enqueue_trial(point)
        with warnings.catch_warnings(action="ignore"):  # callers check for values outside
            return self.ask_study(study)

    def restrict_point(self, point: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a point that this space searches; empty if a value is outside."""
        try:
            trial, _ = self.trial_at(point)
        except (ValueError, optuna.TrialPruned):  # a choice that is not in the list
            return {}
        searched = {key: value for key, value in point.items() if key in trial.distributions}
        is_inside = all(contains(trial.distributions[k], v) for k, v in searched.items())
        return searched if is_inside else {}

    def example_settings(self) -> dict[str, Any]:
        """Return the settings of the first point."""
        return next(self.probe_points())[1]

    def probe_points(self) -> Iterator[tuple[optuna.Trial, dict[str, Any]]]:
        """Yield trials and settings of START, of the edges of ranges and of random points."""
        study = _new_study()
        points = list(self.start_points)
        for key, distribution in self.distributions.items():
            if isinstance(distribution, ranges.CategoricalDistribution):
                points += [{key: choice} for choice in distribution.choices]
            elif isinstance(distribution, ranges.FloatDistribution | ranges.IntDistribution):
                points += [{key: distribution.low}, {key: distribution.high}]
        points += [{}] * 20
        for point in points:
            study.enqueue_trial(point)
        for _ in points:
            with suppress(optuna.TrialPruned):
                yield self.ask_study(study)


def _is_whole(method: str, setting: str) -> bool:
    """Return True if a setting is a whole number."""
    if setting in TrainConfig.model_fields:
        annotation = TrainConfig.model_fields[setting].annotation
        return int in (annotation, *get_args(annotation))
    return type(method_settings(method).get(setting)) is int


def _make_distribution(requested: Range, whole: bool) -> ranges.BaseDistribution:
    if requested.bounds is None:
        return ranges.CategoricalDistribution(requested.choices)
    low, high = requested.bounds
    if not whole:
        return ranges.FloatDistribution(float(low), float(high), log=requested.log)
    if low % 1 or high % 1:
        raise UserError(f"{requested.setting} is a whole number, and so are the ends of a range.")
    return ranges.IntDistribution(int(low), int(high), log=requested.log)


def _new_study() -> optuna.Study:
    with quiet_optuna():
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def load_spaces(files: tuple[str, ...] = ()) -> dict[str, SearchSpace]:
    """Load the spaces of kdtune, plug-ins and files by method; later ones replace earlier ones."""
    folder = Path(search_spaces.__file__).parent
    shipped = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
    spaces = {space.method: space for space in map(load_space, shipped)} | load_plugin_spaces()
    return spaces | {space.method: space for space in map(load_space, map(Path, files))}


def load_plugin_spaces() -> dict[str, SearchSpace]:
    """Load the spaces of the plug-ins that were loaded, each for a method of its plug-in."""
    spaces = {}
    for plugin in PLUGINS.loaded.values():
        if hasattr(plugin.content, "SPACE"):
            space = _make_space(Path(plugin.name), plugin.content)
            if space.method not in getattr(plugin.content, "METHODS", {}):
                raise UserError(
                    f"The plug-in {plugin.name} has a search space for '{space.method}', which is "
                    "not one of its METHODS; give it with --space."
                )
            spaces[space.method] = space
    return spaces


def load_space(path: Path) -> SearchSpace:
    """Load and check a search space; its module is executed, so load only files that you trust."""
    return _make_space(path, _import_file(path))


def _make_space(path: Path, module: Any) -> SearchSpace:
    for name in ("METHOD", "SPACE", "START"):
        if not hasattr(module, name):
            raise UserError(f"The search space {path} lacks {name}.")
    METHODS.require(module.METHOD)
    try:
        _validate_space(space := _parse_space(path, module))
    except UserError as error:
        raise UserError(f"The search space {path} is invalid: {error}") from None
    return space


def _parse_space(path: Path, module: Any) -> SearchSpace:
    define = module.SPACE if callable(module.SPACE) else None
    settings = module.SPACE if define is None else {}
    if not isinstance(settings, dict):
        raise UserError("SPACE must be a dict, or a function of a trial.")
    require_one_of_each(settings)
    start = module.START
    if not isinstance(start, list | tuple) or not all(isinstance(p, dict) for p in start):
        raise UserError("START must be a list of dicts, one for each point.")
    found = {key: _parse_range(key, value) for key, value in settings.items()}
    distributions = {key: value for key, value in found.items() if value is not None}
    constants = {k: _plain(v) for k, v in settings.items() if k not in distributions}
    points = [{key: _plain(value) for key, value in point.items()} for point in start]
    docstring, path = inspect.cleandoc(module.__doc__ or ""), path.resolve()
    return SearchSpace(module.METHOD, distributions, constants, define, points, docstring, path)


def _parse_range(key: str, value: Any) -> ranges.BaseDistribution | None:
    """Return the distribution of a range; None for a constant."""
    if isinstance(value, dict) and "grid_search" in value:
        raise UserError(f"{key} is a tune.grid_search: use tune.choice, and --sampler grid.")
    if isinstance(value, Function):
        raise UserError(f"{key} is a tune.sample_from: make SPACE a function of a trial.")
    if not isinstance(value, Domain):
        return None
    if isinstance(value, Categorical):
        value = Categorical([*map(_plain, value.categories)])
    try:
        distribution = to_optuna(value)
    except ValueError as error:
        raise UserError(f"the range of {key} is invalid: {error}") from None
    return type(distribution)(**{name: _plain(v) for name, v in vars(distribution).items()})


def _plain(value: Any) -> Any:
    """Return a value without numpy's types, which JSON does not know."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _validate_space(space: SearchSpace) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # points outside are refused below
            probed = list(space.probe_points())
    except Exception as error:  # whatever a user's function may raise
        raise UserError(f"it gives no point: {error}") from None
    if not probed:
        raise UserError("it gives no point: it raises TrialPruned for all that were tried.")
    for trial, settings in probed:
        _require_plain_choices(trial)
        check_searchable(settings, [space.method])
        weights = strengths_to_weights(settings, loss_scales={})
        TrainConfig.parse({"method": space.method, **weights})
    for point in space.start_points:
        try:
            trial, settings = space.trial_at(point)
        except optuna.TrialPruned:
            raise UserError(f"it raises TrialPruned for the point {point} of START.") from None
        for key, value in point.items():
            searched = trial.distributions.get(key)
            if not (contains(searched, value) if searched else settings.get(key) == value):
                raise UserError(f"{key} = {value!r} in START is not a point of the space.")


def _require_plain_choices(trial: optuna.Trial) -> None:
    for name, distribution in trial.distributions.items():
        for choice in getattr(distribution, "choices", ()):
            if isinstance(choice, np.generic):
                kind = type(choice).__name__
                raise UserError(f"{name} has numpy's {kind} as choices: use .tolist().")


def serialize_distributions(trial_or_space: optuna.Trial | SearchSpace) -> dict[str, Any]:
    """Return the distributions as plain values."""
    return {
        name: json.loads(ranges.distribution_to_json(distribution))
        for name, distribution in trial_or_space.distributions.items()
    }


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"There is no search space {path}.")
    spec = importlib.util.spec_from_file_location(f"_space_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"The search space {path} must be a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything that a module of a user may raise
        raise UserError(
            f"The search space {path} cannot be loaded: {first_line(error)}"
        ) from error
    return module


def describe_space(space: SearchSpace) -> str:
    """Return the text that shows a space: ranges, start points, and its docstring."""
    is_function = space.define_by_run is not None
    lines = space_lines(space.distributions, space.constants, is_function, space.start_points)
    title = f"{space.method}  ({space.path})"
    return "\n".join([title, "", *lines, "", indent(space.docstring, "  ")])
