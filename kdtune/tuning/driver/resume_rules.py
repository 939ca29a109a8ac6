"""Settings that may change on resume or confirm; a log names neither cluster nor code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtune.config.names import SAMPLER_NAMES
from kdtune.config.sweep import CONFIRM_FIELDS, CONFIRM_SETTINGS, RESUME_FIELDS, SweepConfig
from kdtune.errors import UserError
from kdtune.log.events import SweepOpening
from kdtune.log.folder import SweepFolder
from kdtune.plugins import PLUGINS
from kdtune.tuning.cluster.session import LOCAL_ADDRESS, resolve_address
from kdtune.tuning.search.space import SearchSpace


def build_resume_config(earlier_opening: SweepOpening, changes: Mapping[str, Any]) -> SweepConfig:
    """Return the settings of a sweep that is resumed, and load its plug-ins.

    Args:
        earlier_opening: the event that opened it before.
        changes: settings of `RESUME_FIELDS`.
    """
    for key in changes.keys() - RESUME_FIELDS:
        raise UserError(f"The setting {key} cannot be changed when a sweep is resumed.")
    previous = SweepConfig.parse(earlier_opening.config)
    recorded = _usable_settings(earlier_opening, earlier_opening.config, changes)
    spaces = dict.fromkeys((*previous.spaces, *changes.get("spaces", ())))
    requested = SweepConfig.parse({**recorded, **changes, "spaces": tuple(spaces)})
    methods = dict.fromkeys((*previous.methods, *requested.methods))
    models = dict.fromkeys((*previous.models, *requested.models))
    sweep = requested.model_copy(update={"methods": tuple(methods), "models": tuple(models)})
    if missing_cells := [cell for cell in previous.cells() if cell not in sweep.cells()]:
        raise UserError(
            f"The sweep has the cell {'-'.join(missing_cells[0])}: on resume, methods and "
            "models can be added, but not removed."
        )
    if "sampler" in changes and sweep.sampler != previous.sampler:
        raise UserError(f"The sweep's sampler is {previous.sampler} and cannot be changed.")
    if _is_code(sweep.sampler) and "sampler" not in changes:
        raise UserError(
            f"The sweep's sampler is code, and code that a log names is not run: if you trust it, "
            f"give --sampler {sweep.sampler}."
        )
    return sweep


def build_confirm_config(folder: SweepFolder, changes: Mapping[str, Any]) -> SweepConfig:
    """Return the settings of a confirmation, and load the plug-ins of its sweep.

    Args:
        folder: the sweep's folder.
        changes: settings of `CONFIRM_FIELDS`.
    """
    for key in changes.keys() - CONFIRM_FIELDS:
        raise UserError(f"The setting {key} cannot be changed when a sweep is confirmed.")
    latest_config = folder.load_config().model_dump(mode="json")
    earlier_opening = folder.load_opening_events()[-1]
    latest_settings = {key: latest_config[key] for key in CONFIRM_FIELDS}
    recorded = {**earlier_opening.config, **latest_settings}
    return SweepConfig.parse({**_usable_settings(earlier_opening, recorded, changes), **changes})


def _is_code(sampler: str) -> bool:
    return sampler not in SAMPLER_NAMES and not sampler.startswith("optuna.")


def resume_flags(sweep: SweepConfig, spaces: Mapping[str, SearchSpace]) -> list[str]:
    """Return the flags that `kdtune resume` needs beside a sweep's folder.

    Args:
        sweep: complete settings.
        spaces: its search spaces by method.
    """
    flags = ["--sampler", sweep.sampler] if _is_code(sweep.sampler) else []
    files = {Path(file).resolve() for file in sweep.spaces}  # others are of plug-ins
    for space in spaces.values():
        if space.define_by_run is not None and space.path in files:
            flags += ["--space", str(space.path)]
    return [*confirm_flags(sweep), *flags]


def confirm_flags(sweep: SweepConfig, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Return the flags that `kdtune confirm` needs beside a sweep's folder.

    Args:
        sweep: complete settings.
        changes: settings that the user gave; those of `CONFIRM_SETTINGS` are repeated.
    """
    flags = [("address", sweep.address), ("storage", sweep.storage)]
    flags += [("plugin", path) for path in sweep.plugins]
    words = [word for key, value in flags if value is not None for word in (f"--{key}", value)]
    for key in CONFIRM_SETTINGS:
        name, value = key.replace("_", "-"), (changes or {}).get(key)
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def _usable_settings(
    earlier_opening: SweepOpening, recorded: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return recorded settings without code and cluster, which must be given again."""
    has_address = "address" in changes or resolve_address(None) != LOCAL_ADDRESS
    if recorded.get("address") not in (None, LOCAL_ADDRESS) and not has_address:
        raise UserError(
            f"The sweep ran on the Ray cluster {recorded['address']}, and a cluster that a log "
            "names is not joined: give --address again, or --address local for this machine."
        )
    if recorded.get("storage") is not None and "storage" not in changes:
        raise UserError(
            f"The sweep is kept in {recorded['storage']}, and a storage that a log names is not "
            "written to: give --storage again, or --storage none."
        )
    PLUGINS.load_files(changes.get("plugins", ()))
    records = [record.model_dump() for record in earlier_opening.plugins]
    PLUGINS.require("The sweep", records, same_source=True)
    address = LOCAL_ADDRESS if recorded.get("address") == LOCAL_ADDRESS else None
    usable = {**recorded, "plugins": (), "address": address}
    return {**usable, "budget": None} if changes.get("until_decided") is False else usable
