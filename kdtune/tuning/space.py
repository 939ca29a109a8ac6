"""Load and check a search space: a module with `METHOD`, `SPACE` and `START`."""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from types import ModuleType
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

import search_spaces
from kdtune.config import TrainConfig, check_trial_keys
from kdtune.errors import UserError
from kdtune.methods import check_method


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

        A define-by-run function keeps its searches; what it proposes for a fixed setting is not
        used by `ask`.
        """

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


def load_spaces(files: tuple[str, ...] = ()) -> dict[str, Space]:
    """Load the spaces that come with kdtune, and those of the user's own files in their stead.

    Args:
        files: paths of Python modules, from anywhere.

    Returns:
        The space of each method.

    Raises:
        UserError: a file is missing or no good; what is wrong with it is named.
    """
    folder = Path(search_spaces.__file__).parent
    shipped = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
    spaces = [load_space(path) for path in [*shipped, *map(Path, files)]]
    return {space.method: space for space in spaces}


def load_space(path: Path) -> Space:
    """Load one search-space module and check all that can be checked before a trial runs.

    The module is Python and is executed: load only files that you trust.

    Raises:
        UserError: see `load_spaces`.
    """
    module = _import(path)
    missing = [name for name in ("METHOD", "SPACE", "START") if not hasattr(module, name)]
    if missing:
        raise UserError(f"The search space {path} lacks {missing[0]}.")
    check_method(module.METHOD)
    start = list(module.START)
    searched: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    if not callable(module.SPACE):
        searched = {k: v for k, v in module.SPACE.items() if isinstance(v, Domain)}
        constants = {k: v for k, v in module.SPACE.items() if not isinstance(v, Domain)}
    try:
        check_trial_keys([*searched, *constants, *(key for point in start for key in point)])
    except UserError as error:
        raise UserError(f"The search space {path} is no good: {error}") from None
    distributions = {key: _distribution(path, key, domain) for key, domain in searched.items()}
    _check_values(path, module.METHOD, distributions, constants, start)
    return Space(
        method=module.METHOD,
        distributions=distributions,
        constants=constants,
        define=module.SPACE if callable(module.SPACE) else None,
        start=start,
        source=inspect.cleandoc(module.__doc__ or ""),
        path=path,
    )


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


def _distribution(path: Path, key: str, domain: Domain) -> BaseDistribution:
    try:
        return OptunaSearch.convert_search_space({key: domain})[key]
    except ValueError as error:
        raise UserError(f"The search space {path} has a bad range for {key}: {error}") from None


def _check_values(
    path: Path,
    method: str,
    distributions: dict[str, BaseDistribution],
    constants: dict[str, Any],
    start: list[dict[str, Any]],
) -> None:
    """Check that every edge of every range, every constant and every point is a legal setting."""
    edges: list[dict[str, Any]] = [constants, *start]
    for key, distribution in distributions.items():
        if isinstance(distribution, CategoricalDistribution):
            edges += [{key: choice} for choice in distribution.choices]
        else:
            edges += [{key: distribution.low}, {key: distribution.high}]  # type: ignore[attr-defined]
    for edge in edges:
        try:
            TrainConfig.check({"method": method, **edge})
        except UserError as error:
            raise UserError(f"The search space {path} is no good: {error}") from None
    for point in start:
        for key, value in point.items():
            inside = key in distributions and distributions[key]._contains(
                distributions[key].to_internal_repr(value)
            )
            if distributions and not inside and constants.get(key) != value:
                raise UserError(
                    f"The search space {path} has a START point outside its range: "
                    f"{key} = {value!r}."
                )


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
