"""Search spaces of a sweep: those that the user names, those of the log, and kdtune's own."""

from pathlib import Path
from typing import Any

from kdtune.config.ranges import is_range, parse_point, parse_range
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import applicable_settings
from kdtune.errors import UserError
from kdtune.log.distributions import parse_distributions
from kdtune.log.events import SpaceRecord, SweepOpening
from kdtune.methods import METHODS
from kdtune.tuning.search.space import (
    SearchSpace,
    load_plugin_spaces,
    load_space,
    load_spaces,
    serialize_distributions,
)


def prepare_spaces(
    sweep: SweepConfig, space_files: tuple[str, ...], earlier_opening: SweepOpening | None
) -> dict[str, SearchSpace]:
    """Return the search space of each method, without what the sweep fixes.

    Args:
        sweep: settings of the sweep.
        space_files: files of search spaces, or ranges, that the user names now.
        earlier_opening: the event that opened the same sweep before; its spaces stay.
    """
    methods = sweep.all_methods
    requested_ranges = [parse_range(text) for text in space_files if is_range(text)]
    files = [Path(file) for file in space_files if not is_range(file)]
    user_spaces = {(space := load_space(file)).method: space for file in files}
    for method, space in user_spaces.items():
        if method not in methods:
            problem = f"is for '{method}', which is not in this sweep"
            raise UserError(f"The space {space.path} {problem}.")
    known_spaces, spaces = {**load_spaces(), **user_spaces}, {}
    for method in methods:
        if METHODS[method].uses_teacher and sweep.teacher is None:
            raise UserError(
                f"The method '{method}' learns from a teacher: give --teacher "
                "(make one with 'kdtune teacher'), or --methods student --no-baselines."
            )
        fixed_settings = applicable_settings(method, sweep.settings)
        own_ranges = [requested for requested in requested_ranges if requested.method == method]
        if earlier_opening is not None and method in earlier_opening.spaces:
            if own_ranges:
                raise UserError(_keeps_space(method))
            recorded, user_space = earlier_opening.spaces[method], user_spaces.get(method)
            spaces[method] = _restore_space(method, recorded, user_space, fixed_settings)
        elif method in known_spaces:
            space = known_spaces[method]
            for requested in own_ranges:
                space = space.with_range(requested)
            for start_method, point in map(parse_point, reversed(sweep.start)):
                space = space.with_start(point) if start_method == method else space
            spaces[method] = space.with_constants(fixed_settings)
        else:
            raise UserError(f"There is no search space for '{method}'; give one with --space.")
    return spaces


def _keeps_space(method: str) -> str:
    return f"The sweep has a space for '{method}', and keeps it; leave --space out."


def record_space(space: SearchSpace) -> SpaceRecord:
    """Return a space as the log holds it."""
    return SpaceRecord(
        path=str(space.path),
        function=space.define_by_run is not None,
        distributions=serialize_distributions(space),
        constants=space.constants,
        start=tuple(space.start_points),
    )


def _restore_space(
    method: str, recorded: SpaceRecord, user_space: SearchSpace | None, settings: dict[str, Any]
) -> SearchSpace:
    """Return a space of the log; a function must come from a file that the user names again."""
    if recorded.function:
        user_space = user_space or load_plugin_spaces().get(method)
        if user_space is None or user_space.define_by_run is None:
            raise UserError(
                f"The space of '{method}' is a function, and code that a log names is not run: if "
                f"you trust it, give --space {recorded.path}."
            )
        return user_space.with_constants(settings)
    if user_space is not None:
        raise UserError(_keeps_space(method))
    return SearchSpace(
        method=method,
        distributions=parse_distributions(recorded.distributions),
        constants=recorded.constants,
        define_by_run=None,
        start_points=list(recorded.start),
        docstring="",
        path=Path(recorded.path),
    )
