"""Methods, models and data sets of users: in files that they give, and in installed packages.

A plug-in is a Python module with any of `METHODS`, `MODELS` and `DATA`, each a dict by name. It is
code: a file is run when the user gives it, and never because a log, a checkpoint or an exported
configuration names it. Packages are trusted, since the user installed them: they name a module as
an entry point of the group `kdtune.plugins`, and are imported once a name is asked for that is not
known. A file travels to other processes as text, so what it imports must be installed there; of a
package the text of the module that it names stands for its code.
"""

import hashlib
import inspect
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from kdtune.errors import UserError, did_you_mean

ENTRY_POINT_GROUP = "kdtune.plugins"
"""Entry points of installed plug-ins."""

NAME_PATTERN = r"[A-Za-z0-9_][\w.-]*"
"""What a name of a plug-in's must look like: names of files are made from it."""

V = TypeVar("V")


@dataclass(frozen=True)
class Plugin:
    """A plug-in, as it travels.

    Attributes:
        name: the file's path, or the entry point's name.
        text: the module's source.
        installed: whether it is of a package.
    """

    name: str
    source: str
    is_installed: bool = False

    @property
    def sha256(self) -> str:
        """Of its text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


_LOADED_PLUGINS: dict[str, tuple[Plugin, ModuleType]] = {}
"""What this process has loaded, by name."""

_BROKEN_PLUGINS: dict[str, str] = {}
"""Installed plug-ins that cannot be loaded, and why."""

_REGISTRIES: list["Registry[Any]"] = []


class Registry(dict[str, V]):
    """What has a name: kdtune's own, and that of plug-ins.

    To ask whether it has a name loads the installed plug-ins, if the name is not known so far.

    Args:
        kind: what has the names, for people.
        attribute: the dict of a plug-in's module.
        own: kdtune's.
        what: what the values of a plug-in's dict must be, for people.
        fits: whether a value is that.
        take: gives from it what is kept here.
    """

    def __init__(
        self,
        kind: str,
        attribute: str,
        builtin: Mapping[str, V],
        requirement: str,
        is_valid: Callable[[Any], bool] = callable,
        convert: Callable[[Any], V] = lambda value: value,
    ):
        super().__init__(builtin)
        self.kind, self.attribute, self.requirement, self.is_valid, self.convert = (
            kind, attribute, requirement, is_valid, convert,
        )  # fmt: skip
        self._providers: dict[str, Plugin] = {}
        for plugin, module in _LOADED_PLUGINS.values():
            self.add_plugin(plugin, module)
        _REGISTRIES.append(self)

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            load_installed_plugins()
        return super().__contains__(name)

    def require(self, name: str, other_names: Iterable[str] = ()) -> None:
        """Raise a `UserError` that names the nearest known one if nothing has the name."""
        if name not in self:
            load_errors = "".join(f"; {why}" for why in _BROKEN_PLUGINS.values())
            suggestion = did_you_mean(name, [*self, *other_names])
            raise UserError(f"There is no {self.kind} '{name}'; {suggestion}{load_errors}")

    def provider(self, name: str) -> Plugin | None:
        """The plug-in that gives a name; None if it is kdtune's own, or nobody's."""
        return self._providers.get(name)

    def add_plugin(self, plugin: Plugin, module: ModuleType) -> None:
        """Take what a plug-in gives.

        Raises:
            UserError: it is no good, or has a name that is taken.
        """
        entries = getattr(module, self.attribute, {})
        if not isinstance(entries, dict):
            raise UserError(f"{self.attribute} must be a dict by name.")
        for name, value in entries.items():
            if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
                raise UserError(f"{name!r} is no name: use letters, digits and ._-")
            if super().__contains__(name):
                provider = self._providers.get(name)
                provider_label = f"the plug-in {provider.name}" if provider else "kdtune itself"
                raise UserError(
                    f"{provider_label} has a {self.kind} '{name}' already; take another name."
                )
            if not self.is_valid(value):
                raise UserError(f"the {self.kind} '{name}' must be {self.requirement}.")
            self[name] = self.convert(value)
            self._providers[name] = plugin

    def remove_plugin(self, plugin: Plugin) -> None:
        """Forget what a plug-in gave."""
        for name in [name for name, provider in self._providers.items() if provider == plugin]:
            del self[name], self._providers[name]

    @contextmanager
    def blame_provider(self, name: str) -> Iterator[None]:
        """Say in a sentence what goes wrong in what a plug-in gives."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a user's code may raise
            if (provider := self.provider(name)) is None:
                raise
            raise UserError(
                f"The {self.kind} '{name}' of the plug-in {provider.name} fails: {_describe_error(error)}"
            ) from error


def load_plugins(files: Iterable[str | Path]) -> None:
    """Load plug-ins from files, which are run: give only files that you trust.

    What one of them defines has a name in this process from then on. A file that was changed
    since it was loaded is loaded anew.

    Raises:
        UserError: a file is missing or no good; what is wrong with it is named.
    """
    for file in files:
        path = Path(os.path.abspath(Path(file).expanduser()))
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"There is no plug-in {file}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The plug-in {file} cannot be read: {_describe_error(error)}"
            ) from None
        _execute_plugin(Plugin(str(path), source))


def load_installed_plugins() -> None:
    """Load the plug-ins of installed packages; those that are broken are named when one misses
    something."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name in _LOADED_PLUGINS or entry_point.name in _BROKEN_PLUGINS:
            continue
        try:
            module = entry_point.load()
            _register_plugin(
                Plugin(entry_point.name, inspect.getsource(module), is_installed=True), module
            )
        except Exception as error:  # whatever importing a package may raise
            _BROKEN_PLUGINS[entry_point.name] = (
                f"the installed plug-in {entry_point.name} cannot be loaded: {_describe_error(error)}"
            )


def loaded_plugins() -> tuple[Plugin, ...]:
    """The plug-ins that this process has loaded."""
    return tuple(plugin for plugin, _ in _LOADED_PLUGINS.values())


def plugin_modules() -> Iterator[tuple[Plugin, ModuleType]]:
    """The same, with their modules."""
    yield from _LOADED_PLUGINS.values()


def sync_plugins(plugins: Iterable[Plugin]) -> None:
    """Have this process know the plug-ins of another one, and no others.

    Installed ones are imported here.

    Raises:
        UserError: one is missing or no good here, or is another one than there.
    """
    requested = {plugin.name: plugin for plugin in plugins}
    for plugin in loaded_plugins():
        if not plugin.is_installed and requested.get(plugin.name) != plugin:
            _unregister_plugin(plugin)
    if any(plugin.is_installed for plugin in requested.values()):
        load_installed_plugins()
    for plugin in requested.values():
        if not plugin.is_installed:
            _execute_plugin(plugin)
        elif plugin.name not in _LOADED_PLUGINS:
            reason = _BROKEN_PLUGINS.get(plugin.name, "it is not installed")
            raise UserError(f"The plug-in {plugin.name} is missing on this node: {reason}.")
        elif _LOADED_PLUGINS[plugin.name][0] != plugin:
            raise UserError(f"The installed plug-in {plugin.name} is another one on this node.")


def plugin_records(**names: Iterable[str]) -> list[dict[str, Any]]:
    """The plug-ins that give some of these names, as logs and other files keep them.

    Args:
        names: by the dicts of a plug-in, as ``METHODS=["mine"]``.

    Returns:
        Of each its ``name``, its ``sha256``, whether it is ``installed``, and which of the names
        it ``gives``.
    """
    names_by_plugin: dict[Plugin, list[str]] = {}
    for registry in _REGISTRIES:
        for name in dict.fromkeys(names.get(registry.attribute, ())):
            if (provider := registry.provider(name)) is not None:
                provided = names_by_plugin.setdefault(provider, [])
                provided += [name] if name not in provided else []
    return [
        {"name": p.name, "sha256": p.sha256, "installed": p.is_installed, "provides": provided}
        for p, provided in names_by_plugin.items()
    ]


def require_plugins(needed_by: str, records: Any, same_source: bool = False) -> None:
    """Have the plug-ins given again that a file needs: code that it names is not run.

    Args:
        whose: what needs them, for people.
        kept: see `records`.
        same: refuse other code than it was.

    Raises:
        UserError: one is not there.
    """
    if not isinstance(records, list | tuple) or not all(
        isinstance(record, dict) and {"name", "sha256", "installed"} <= record.keys()
        for record in records
    ):
        raise UserError(f"{needed_by} does not say which plug-ins it needs as kdtune writes it.")
    for record in records:
        if record["installed"]:
            load_installed_plugins()
        if not changed_plugins([record]):
            continue
        name = str(record["name"])
        candidates = [
            plugin for plugin in loaded_plugins() if Path(plugin.name).name == Path(name).name
        ]
        if candidates and same_source:
            raise UserError(
                f"The plug-in {candidates[0].name} was changed since, so trials could not be "
                "compared: give it as it was, or begin another sweep."
            )
        if not candidates and record["installed"]:
            reason = _BROKEN_PLUGINS.get(name, f"the plug-in {name} is not installed")
            raise UserError(f"{needed_by} needs a plug-in, and {reason}; install its package.")
        if not candidates:
            raise UserError(
                f"{needed_by} needs the plug-in {name}, and code that a file names is not run: if you "
                f"trust it, give --plugin {name}."
            )


def changed_plugins(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the plug-ins, see `records`, whose code is none that is loaded."""
    loaded_sha256 = {plugin.sha256 for plugin in loaded_plugins()}
    return [str(record["name"]) for record in records if record["sha256"] not in loaded_sha256]


def _execute_plugin(plugin: Plugin) -> None:
    """Run a plug-in's text, and take what it gives."""
    if plugin.name in _LOADED_PLUGINS:
        if (previous := _LOADED_PLUGINS[plugin.name][0]) == plugin:
            return
        _unregister_plugin(previous)
    module = ModuleType(f"plugin_{Path(plugin.name).stem}_{plugin.sha256[:8]}")
    module.__file__ = plugin.name
    # Tracebacks, and all who ask for a module's source, find it where there is no such file, too.
    lines = plugin.source.splitlines(keepends=True)
    linecache.cache[plugin.name] = (len(plugin.source), None, lines, plugin.name)
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.source, plugin.name, "exec"), module.__dict__)
        _register_plugin(plugin, module)
    except Exception as error:  # whatever a user's module may raise
        del sys.modules[module.__name__]
        raise UserError(
            f"The plug-in {plugin.name} cannot be loaded: {_describe_error(error)}"
        ) from error


def _register_plugin(plugin: Plugin, module: ModuleType) -> None:
    try:
        for registry in _REGISTRIES:
            registry.add_plugin(plugin, module)
    except UserError:
        _unregister_plugin(plugin)
        raise
    _LOADED_PLUGINS[plugin.name] = plugin, module


def _unregister_plugin(plugin: Plugin) -> None:
    for registry in _REGISTRIES:
        registry.remove_plugin(plugin)
    _LOADED_PLUGINS.pop(plugin.name, None)


def _describe_error(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")
