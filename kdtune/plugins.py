"""Plug-ins: methods, models and data sets of the user's files and of installed packages.

A plug-in is a Python module with any of the dicts `METHODS`, `MODELS` and `DATA`. It is code: a
file runs if the user names it, and never because a log, a checkpoint or an exported configuration
does. Packages are trusted, since the user installed them: they name a module as an entry point of
the group `kdtune.plugins`, which is imported when a name is not known.
"""

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

from kdtune.errors import UserError, did_you_mean, first_line, typed_first_line

ATTRIBUTES = ("METHODS", "MODELS", "DATA")
"""Dicts of a plug-in's module."""

V = TypeVar("V")


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is loaded here, or is on its way to another process.

    Attributes:
        name: path of the file, or name of the entry point.
        installed: True if the plug-in is a package's, which each process imports itself.
        content: the module; on its way, the pickled dicts of a file.
    """

    name: str
    sha256: str
    installed: bool
    content: ModuleType | SimpleNamespace | bytes = field(compare=False, repr=False)


class Registry(dict[str, V]):
    """Entries by name: kdtune's own and those of plug-ins.

    Args:
        kind: noun for an entry, for messages.
        attribute: name of the dict in a plug-in's module.
        builtin: kdtune's own entries.
        requirement: what an entry of a plug-in must be, for messages.
        is_valid: returns True if an entry of a plug-in meets the requirement.
        convert: makes the registry's entry from the plug-in's.
        aliases: names that others have for some entries, for suggestions.
    """

    def __init__(
        self,
        kind: str,
        attribute: str,
        builtin: Mapping[str, V],
        requirement: str = "",
        is_valid: Callable[[Any], bool] = callable,
        convert: Callable[[Any], V] = lambda value: value,
        aliases: Mapping[str, str] | None = None,
    ):
        super().__init__(builtin)
        self.kind, self.attribute, self.requirement = kind, attribute, requirement
        self.is_valid, self.convert, self.aliases = is_valid, convert, aliases
        self.providers: dict[str, Plugin] = {}
        """The plug-ins that define names."""
        PLUGINS.add_registry(self)

    def find(self, name: str) -> V | None:
        """Return the entry of a name; load installed plug-ins first if it is not known."""
        if name not in self:
            PLUGINS.load_installed()
        return self.get(name)

    def require(self, name: str, other_names: Iterable[str] = ()) -> V:
        """Return the entry of a name; a `UserError` suggests the nearest name if there is none.

        Args:
            name: of the entry.
            other_names: further names to suggest.
        """
        if (entry := self.find(name)) is None:
            load_errors = "".join(f"; {reason}" for reason in PLUGINS.broken.values())
            suggestion = did_you_mean(name, [*self, *other_names], self.aliases)
            raise UserError(f"There is no {self.kind} '{name}'; {suggestion}{load_errors}")
        return entry

    def add_plugin(self, plugin: Plugin) -> None:
        """Add the entries of a plug-in, or raise a `UserError` if one cannot be added."""
        entries = getattr(plugin.content, self.attribute, {})
        if not isinstance(entries, dict):
            raise UserError(f"{self.attribute} must be a dict by name.")
        for name, value in entries.items():
            # File names are made from names.
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
                raise UserError(f"{name!r} is not a valid name: use letters, digits and ._-")
            if name in self:
                provider = self.providers.get(name)
                owner = f"the plug-in {provider.name}" if provider else "kdtune itself"
                raise UserError(f"{owner} already has a {self.kind} '{name}'; use another name.")
            if not self.is_valid(value):
                raise UserError(f"the {self.kind} '{name}' must be {self.requirement}.")
            self[name] = self.convert(value)
            self.providers[name] = plugin

    @contextmanager
    def blame_provider(self, name: str) -> Iterator[None]:
        """Turn an error of a plug-in's code into a `UserError` that names the plug-in."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a user's code may raise
            if name not in self.providers:
                raise
            plugin, reason = self.providers[name].name, typed_first_line(error)
            raise UserError(
                f"The {self.kind} '{name}' of the plug-in {plugin} fails: {reason}"
            ) from error


class PluginManager:
    """The plug-ins of a process, and the registries that have their entries."""

    def __init__(self) -> None:
        self.loaded: dict[str, Plugin] = {}
        """Loaded plug-ins by name."""
        self.broken: dict[str, str] = {}
        """A sentence for each installed plug-in that cannot be loaded, by name."""
        self._registries: list[Registry[Any]] = []

    def add_registry(self, registry: Registry[Any]) -> None:
        """Keep the entries of plug-ins in a registry, too."""
        for plugin in self.loaded.values():
            with _load_errors_named(plugin.name):
                registry.add_plugin(plugin)
        self._registries.append(registry)

    def load_files(self, files: Iterable[str | Path]) -> None:
        """Load plug-ins from files, again if they were changed; load only files that you trust.

        A `UserError` names a file that is missing or not a valid plug-in.
        """
        for file in files:
            path = Path(os.path.abspath(Path(file).expanduser()))
            try:
                source = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                raise UserError(f"There is no plug-in {file}.") from None
            except (OSError, UnicodeDecodeError) as error:
                reason = typed_first_line(error)
                raise UserError(f"The plug-in {file} cannot be read: {reason}") from None
            self._load(str(path), _sha256(source), partial(_run_source, path, source))

    def load_installed(self) -> None:
        """Load the plug-ins of installed packages; keep the reasons of those that are broken."""
        import inspect
        from importlib.metadata import entry_points

        for entry_point in entry_points(group="kdtune.plugins"):
            name = entry_point.name
            if name in self.loaded or name in self.broken:
                continue
            try:
                module = entry_point.load()
                self._add(Plugin(name, _sha256(inspect.getsource(module)), True, module))
            except Exception as error:  # whatever importing a package may raise
                reason = _describe_error(error)
                self.broken[name] = f"the installed plug-in {name} cannot be loaded: {reason}"

    def sync(self, plugins: Iterable[Plugin]) -> None:
        """Load exactly the plug-ins that another process sent; packages are imported here.

        A `UserError` names a plug-in that is missing, differs or cannot be loaded here.
        """
        sent = {plugin.name: plugin for plugin in plugins}
        for plugin in list(self.loaded.values()):
            if not plugin.installed and plugin.name not in sent:
                self._remove(plugin)
        if any(plugin.installed for plugin in sent.values()):
            self.load_installed()
        for name, plugin in sent.items():
            if not plugin.installed:
                self._load(name, plugin.sha256, partial(_unpickle, plugin.content))
            elif name not in self.loaded:
                reason = self.broken.get(name, "it is not installed")
                raise UserError(f"The plug-in {name} is missing on this node: {reason}.")
            elif self.loaded[name] != plugin:
                raise UserError(f"The installed plug-in {name} has other code on this node.")

    def records(self, **names: Iterable[str]) -> list[dict[str, Any]]:
        """Describe the plug-ins that define some of these names, for logs and other files.

        Names are given by the dicts of a plug-in, as ``METHODS=["mine"]``; each record has
        ``name``, ``sha256``, ``installed`` and the names it ``provides``.
        """
        provided: dict[Plugin, dict[str, None]] = {}  # names in order, each once
        for attribute, requested in names.items():
            for registry in (r for r in self._registries if r.attribute == attribute):
                for name in requested:
                    if (provider := registry.providers.get(name)) is not None:
                        provided.setdefault(provider, {})[name] = None
        return [
            {"name": p.name, "sha256": p.sha256, "installed": p.installed, "provides": [*provides]}
            for p, provides in provided.items()
        ]

    def require(self, needed_by: str, records: Any, same_source: bool = False) -> None:
        """Raise a `UserError` if a plug-in that a file needs is not loaded; run no file for it.

        Args:
            needed_by: the file, for messages.
            records: see `records`.
            same_source: refuse a plug-in whose code was changed.
        """
        if not isinstance(records, list | tuple) or not all(
            isinstance(record, dict) and {"name", "sha256", "installed"} <= record.keys()
            for record in records
        ):
            raise UserError(f"{needed_by} does not list the plug-ins it needs as kdtune does.")
        for record in records:
            if record["installed"]:
                self.load_installed()
            if not self.changed([record]):
                continue
            name = str(record["name"])
            namesakes = [other for other in self.loaded if Path(other).name == Path(name).name]
            if not namesakes and record["installed"]:
                reason = self.broken.get(name, f"the plug-in {name} is not installed")
                raise UserError(f"{needed_by} needs a plug-in, and {reason}; install its package.")
            if not namesakes:
                raise UserError(
                    f"{needed_by} needs the plug-in {name}, and code that a file names is not "
                    f"run: if you trust it, give --plugin {name}."
                )
            if same_source:
                raise UserError(
                    f"The plug-in {namesakes[0]} has changed since then, so trials could not be "
                    "compared: restore it, or start another sweep."
                )

    def changed(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """Return the names of recorded plug-ins whose code is not loaded; see `records`."""
        loaded = {plugin.sha256 for plugin in self.loaded.values()}
        return [str(record["name"]) for record in records if record["sha256"] not in loaded]

    def _load(self, name: str, sha256: str, make_module: Callable[[], Any]) -> None:
        if (previous := self.loaded.get(name)) is not None:
            if previous.sha256 == sha256:
                return
            self._remove(previous)
        with _load_errors_named(name):
            self._add(Plugin(name, sha256, False, make_module()))

    def _add(self, plugin: Plugin) -> None:
        try:
            for registry in self._registries:
                registry.add_plugin(plugin)
        except UserError:
            self._remove(plugin)
            raise
        self.loaded[plugin.name] = plugin

    def _remove(self, plugin: Plugin) -> None:
        for registry in self._registries:
            for name in [n for n, provider in registry.providers.items() if provider == plugin]:
                del registry[name], registry.providers[name]
        self.loaded.pop(plugin.name, None)


PLUGINS = PluginManager()
load_plugins = PLUGINS.load_files


def _sha256(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _run_source(path: Path, source: str) -> ModuleType:
    # The module's name stands for its code in keys of the cache. It is not in sys.modules, so
    # Ray pickles what it defines by value, for processes that do not have the file.
    module = ModuleType(f"kdtune_plugin_{_sha256(source)}")
    module.__file__ = str(path)
    exec(compile(source, path, "exec"), vars(module))
    return module


def _unpickle(content: Any) -> SimpleNamespace:
    return SimpleNamespace(**pickle.loads(content))


@contextmanager
def _load_errors_named(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a user's module may raise
        reason = _describe_error(error)
        raise UserError(f"The plug-in {name} cannot be loaded: {reason}") from error


def _describe_error(error: Exception) -> str:
    return first_line(error) if isinstance(error, UserError) else typed_first_line(error)
