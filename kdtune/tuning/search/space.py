"""Load and check a search space: a module with `METHOD`, `SPACE` and `START`."""

import importlib.util
import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from types import ModuleType
from typing import Any, Self

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
)
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

import search_spaces
from kdtune.config.train import TrainConfig, check_free
from kdtune.errors import UserError
from kdtune.log.events import Cell
from kdtune.methods import check_method
from kdtune.plugins import modules

Configure = Callable[[Cell, int, dict[str, Any]], TrainConfig]
"""Makes the complete settings of a trial of a cell, from its number and what its space decided."""


@dataclass(frozen=True)
class Space:
    """What is searched for one method.

    Attributes:
        method: a key of `METHODS`.
        distributions: searched settings, for Optuna; empty for a define-by-run space.
        constants: settings that the space fixes.
        define: the define-by-run function, or None.
        start: points tried first; settings that a point leaves out are proposed by the sampler.
        source: the module's docstring: where the ranges come from.
        path: the module's file.
    """

    method: str
    distributions: dict[str, BaseDistribution]
    constants: dict[str, Any]
    define: Callable[[optuna.Trial], dict[str, Any] | None] | None
    start: list[dict[str, Any]]
    source: str
    path: Path

    def fix(self, settings: dict[str, Any]) -> Self:
        """The same space with some settings fixed: they are searched no longer.

        Raises:
            UserError: a define-by-run space searches one of them, which only its file can change.
        """
        if self.define is not None:
            for key in settings:
                if any(key in trial.params for trial, _ in self.probe()):
                    raise UserError(f"{self.path} searches '{key}' by itself; fix it there.")

        def others(values: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in values.items() if key not in settings}

        start = [others(point) for point in self.start]
        return replace(
            self,
            distributions=others(self.distributions),
            constants={**self.constants, **settings},
            start=[p for i, p in enumerate(start) if p and p not in start[:i]],
        )

    def ask(self, study: optuna.Study) -> tuple[optuna.Trial, dict[str, Any]]:
        """Ask a study for the next point.

        Returns:
            The Optuna trial, and every setting that the space decides: searched and fixed.
        """
        trial = study.ask(self.distributions)
        defined = self.define(trial) or {} if self.define is not None else {}
        return trial, {**trial.params, **defined, **self.constants}

    def at(self, point: dict[str, Any]) -> tuple[optuna.Trial, dict[str, Any]]:
        """The same for a given point, asked of nobody; what it leaves out is drawn at random."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(point)
        with warnings.catch_warnings(action="ignore"):  # values outside: the caller looks
            return self.ask(study)

    def inside(self, point: dict[str, Any]) -> dict[str, Any]:
        """The part of a point that this space searches; empty if a value of it lies outside."""
        try:
            trial, _ = self.at(point)
        except ValueError:  # a choice that is not in the list
            return {}
        part = {key: value for key, value in point.items() if key in trial.distributions}
        return part if all(_contains(trial, key, value) for key, value in part.items()) else {}

    def probe(self) -> list[tuple[optuna.Trial, dict[str, Any]]]:
        """Points to try the space on before a trial runs: START, edges of ranges, random ones."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        edges: list[dict[str, Any]] = []
        for key, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                edges += [{key: choice} for choice in distribution.choices]
            else:
                edges += [{key: distribution.low}, {key: distribution.high}]  # type: ignore[attr-defined]
        points = [*self.start, *edges, *([{}] * 20)]
        for point in points:
            study.enqueue_trial(point)
        return [self.ask(study) for _ in points]


def load_spaces(files: tuple[str, ...] = ()) -> dict[str, Space]:
    """Load the spaces of kdtune and of plug-ins, and those of the user's own files in their stead.

    Args:
        files: paths of Python modules, from anywhere.

    Returns:
        The space of each method.

    Raises:
        UserError: a file is missing or no good; what is wrong with it is named.
    """
    folder = Path(search_spaces.__file__).parent
    shipped = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
    spaces = {space.method: space for space in map(load_space, shipped)} | plugin_spaces()
    return spaces | {space.method: space for space in map(load_space, map(Path, files))}


def plugin_spaces() -> dict[str, Space]:
    """The spaces of the plug-ins that were loaded.

    Raises:
        UserError: one is no good, or for a method that its plug-in does not have.
    """
    spaces = {}
    for plugin, module in modules():
        if hasattr(module, "SPACE"):
            space = _space(Path(plugin.name), module)
            if space.method not in getattr(module, "METHODS", {}):
                raise UserError(
                    f"The plug-in {plugin.name} has a search space for '{space.method}', which is "
                    "no method of its METHODS; give it with --space."
                )
            spaces[space.method] = space
    return spaces


def load_space(path: Path) -> Space:
    """Load one search-space module and check all that can be checked before a trial runs.

    The module is Python and is executed: load only files that you trust.

    Raises:
        UserError: see `load_spaces`.
    """
    return _space(path, _import(path))


def _space(path: Path, module: ModuleType) -> Space:
    missing = [name for name in ("METHOD", "SPACE", "START") if not hasattr(module, name)]
    if missing:
        raise UserError(f"The search space {path} lacks {missing[0]}.")
    check_method(module.METHOD)
    try:
        space = _build(path, module)
        _check(space)
    except UserError as error:
        raise UserError(f"The search space {path} is no good: {error}") from None
    return space


def _build(path: Path, module: ModuleType) -> Space:
    define = module.SPACE if callable(module.SPACE) else None
    settings = {} if define is not None else module.SPACE
    if not isinstance(settings, dict):
        raise UserError("SPACE must be a dict, or a function of a trial.")
    start = module.START
    if not isinstance(start, list | tuple) or not all(isinstance(p, dict) for p in start):
        raise UserError("START must be a list of dicts, one a point.")
    searched = {key: value for key, value in settings.items() if isinstance(value, Domain)}
    return Space(
        method=module.METHOD,
        distributions={key: _distribution(key, domain) for key, domain in searched.items()},
        constants={key: value for key, value in settings.items() if key not in searched},
        define=define,
        start=list(start),
        source=inspect.cleandoc(module.__doc__ or ""),
        path=path.resolve(),
    )


def _distribution(key: str, domain: Domain) -> BaseDistribution:
    try:
        return OptunaSearch.convert_search_space({key: domain})[key]
    except ValueError as error:
        raise UserError(f"the range of {key} is bad: {error}") from None


def _check(space: Space) -> None:
    """Check that the space gives legal settings, and that START lies inside it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # points outside are refused below
            probes = space.probe()
    except Exception as error:  # whatever a user's function may raise
        raise UserError(f"it gives no point: {error}") from None
    for _, settings in probes:
        check_free(settings, [space.method])
        TrainConfig.check({"method": space.method, **settings})
    for point, (trial, settings) in zip(space.start, probes, strict=False):
        for key, value in point.items():
            searched = key in trial.distributions
            if not (_contains(trial, key, value) if searched else settings.get(key) == value):
                raise UserError(f"{key} = {value!r} in START is not a point of the space.")


def _contains(trial: optuna.Trial, key: str, value: Any) -> bool:
    distribution = trial.distributions[key]
    return distribution._contains(distribution.to_internal_repr(value))


def distributions_of(drawn: optuna.Trial | Space) -> dict[str, Any]:
    """What values are drawn from, as plain values."""
    return {
        name: json.loads(distribution_to_json(distribution))
        for name, distribution in drawn.distributions.items()
    }


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"There is no search space {path}.")
    spec = importlib.util.spec_from_file_location(f"_space_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"The search space {path} must be a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's module may raise, bad domains among it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"The search space {path} cannot be loaded: {reason}") from error
    return module


def describe(space: Space) -> str:
    """Show a space to a person: ranges, start points, and its docstring."""
    lines = [f"{space.method}  ({space.path})", ""]
    lines += [f"  {key:<14}{_range(d)}" for key, d in space.distributions.items()]
    lines += [f"  {key:<14}{value}" for key, value in space.constants.items()]
    if space.define is not None:
        lines.append("  conditional: see the function in the file")
    lines += [f"  start         {point}" for point in space.start]
    return "\n".join([*lines, "", indent(space.source, "  ")])


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    scale = ", log scale" if distribution.log else ""  # type: ignore[attr-defined]
    return f"{low:g} to {high:g}{scale}"
