"""What may be another when a sweep is resumed or confirmed, and what has to be named again for it.

A log chooses neither whom this process talks to nor which code it runs.
"""

from collections.abc import Mapping
from typing import Any

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.events import Event
from kdtune.log.folder import OF_VERDICT, SweepFolder
from kdtune.plugins import check_given, load_plugins
from kdtune.tuning.cluster.join import LOCAL, wanted_address
from kdtune.tuning.search.samplers import AUTO, GRID, STATEFUL, STATELESS

NAMED_AGAIN = ("address", "storage", "plugins")
"""Settings that a log cannot choose: who joins a cluster runs what it sends, plug-ins are code."""

MAY_CHANGE = {
    "trials", "epochs_total", "time_budget", "methods", "models", "baselines", "spaces",
    "data", "data_root", "teacher", "sampler", "cache_gb", "cpus_per_trial", "gpus_per_trial",
    "concurrent", "max_restarts", "stall_time", "term_limit", "track", "confirm", "top", "seeds",
    "min_difference", *NAMED_AGAIN,
}  # fmt: skip
"""Settings that may be given when a sweep is resumed."""

OF_CONFIRM = {
    "data", "data_root", "teacher", "cache_gb", "cpus_per_trial", "gpus_per_trial", "concurrent",
    "max_restarts", "stall_time", "term_limit", "track", *NAMED_AGAIN, *OF_VERDICT,
}  # fmt: skip
"""Settings that may be given when a sweep is confirmed."""


def resume_settings(earlier: Event, changes: Mapping[str, Any]) -> SweepConfig:
    """The settings of a sweep that is resumed; its plug-ins are loaded.

    Args:
        earlier: the event that opened it before.
        changes: of `MAY_CHANGE`.

    Raises:
        UserError: a setting may not change, or a cell would be lost; or sampler or plug-ins are
            code, and were not given again.
    """
    for key in changes.keys() - MAY_CHANGE:
        raise UserError(f"The setting {key} cannot be changed when a sweep is resumed.")
    before = SweepConfig.check(earlier["config"])
    _check_named(earlier["config"], changes)
    _load_again(earlier, changes)
    spaces = dict.fromkeys((*before.spaces, *changes.get("spaces", ())))
    kept = _joining_nothing({**earlier["config"], "plugins": ()})
    given = SweepConfig.check({**kept, **changes, "spaces": tuple(spaces)})
    sweep = given.model_copy(
        update={
            "methods": tuple(dict.fromkeys((*before.methods, *given.methods))),
            "models": tuple(dict.fromkeys((*before.models, *given.models))),
        }
    )
    if lost := [cell for cell in before.cells() if cell not in sweep.cells()]:
        raise UserError(
            f"The sweep has the cell {'-'.join(lost[0])}, and keeps it: methods and models can be "
            "added when it is resumed, not taken away."
        )
    if "sampler" in changes and sweep.sampler != before.sampler:
        raise UserError(f"The sweep's sampler is {before.sampler}, and stays so.")
    known = sweep.sampler in (AUTO, GRID, *STATELESS, *STATEFUL)
    if not known and not sweep.sampler.startswith("optuna.") and "sampler" not in changes:
        raise UserError(
            f"The sweep's sampler is code, and code that a log names is not run: if you trust it, "
            f"give --sampler {sweep.sampler}."
        )
    return sweep


def confirm_settings(folder: SweepFolder, given: Mapping[str, Any]) -> SweepConfig:
    """The settings of a confirmation; `given` are of `OF_CONFIRM`.

    Raises:
        UserError: a setting is none of these, or out of range.
    """
    for key in given.keys() - OF_CONFIRM:
        raise UserError(f"The setting {key} cannot be changed when a sweep is confirmed.")
    latest = folder.settings().model_dump(mode="json")
    earlier = folder.opened()[-1]
    _check_named(latest, given)
    _load_again(earlier, given)
    kept = {key: latest[key] for key in OF_CONFIRM}
    ours = _joining_nothing({**earlier["config"], **kept, "plugins": ()})
    return SweepConfig.check({**ours, **given})


def named_again(sweep: SweepConfig) -> str:
    """Flags with which a sweep is gone on with, beside its folder."""
    given = [("address", sweep.address), ("storage", sweep.storage)]
    given += [("plugin", path) for path in sweep.plugins]
    return "".join(f" --{key} {value}" for key, value in given if value is not None)


def _load_again(earlier: Event, given: Mapping[str, Any]) -> None:
    """Load the plug-ins that are given now, among which must be those of before."""
    load_plugins(given.get("plugins", ()))
    check_given("The sweep", earlier.get("plugins", ()), same=True)


def _joining_nothing(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a log without a cluster that it names: the user or the environment chooses."""
    return {**kept, "address": LOCAL if kept.get("address") == LOCAL else None}


def _check_named(before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Have the places named again that a sweep had and that a log may not choose."""
    named = "address" in given or wanted_address(None) != LOCAL
    if before.get("address") not in (None, LOCAL) and not named:
        raise UserError(
            f"The sweep ran on the Ray cluster {before['address']}, and a cluster that a log "
            "names is not joined: give --address again, or --address local for this machine."
        )
    if before.get("storage") is not None and "storage" not in given:
        raise UserError(
            f"The sweep is kept in {before['storage']}, and a storage that a log names is not "
            "written to: give --storage again, or --storage none."
        )
