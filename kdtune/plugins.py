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

from kdtune.errors import UserError, nearest

GROUP = "kdtune.plugins"
"""Entry points of installed plug-ins."""

NAME = r"[A-Za-z0-9_][\w.-]*"
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
    text: str
    installed: bool = False

    @property
    def sha256(self) -> str:
        """Of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


_LOADED: dict[str, tuple[Plugin, ModuleType]] = {}
"""What this process has loaded, by name."""

_BROKEN: dict[str, str] = {}
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
        own: Mapping[str, V],
        what: str,
        fits: Callable[[Any], bool] = callable,
        take: Callable[[Any], V] = lambda value: value,
    ):
        super().__init__(own)
        self.kind, self.attribute, self.what, self.fits, self.take = (
            kind, attribute, what, fits, take,
        )  # fmt: skip
        self._givers: dict[str, Plugin] = {}
        for plugin, module in _LOADED.values():
            self.add(plugin, module)
        _REGISTRIES.append(self)

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            load_installed()
        return super().__contains__(name)

    def check(self, name: str, others: Iterable[str] = ()) -> None:
        """Raise a `UserError` that names the nearest known one if nothing has the name."""
        if name not in self:
            broken = "".join(f"; {why}" for why in _BROKEN.values())
            close = nearest(name, [*self, *others])
            raise UserError(f"There is no {self.kind} '{name}'; {close}{broken}")

    def giver(self, name: str) -> Plugin | None:
        """The plug-in that gives a name; None if it is kdtune's own, or nobody's."""
        return self._givers.get(name)

    def add(self, plugin: Plugin, module: ModuleType) -> None:
        """Take what a plug-in gives.

        Raises:
            UserError: it is no good, or has a name that is taken.
        """
        given = getattr(module, self.attribute, {})
        if not isinstance(given, dict):
            raise UserError(f"{self.attribute} must be a dict by name.")
        for name, value in given.items():
            if not isinstance(name, str) or not re.fullmatch(NAME, name):
                raise UserError(f"{name!r} is no name: use letters, digits and ._-")
            if super().__contains__(name):
                owner = self._givers.get(name)
                whose = f"the plug-in {owner.name}" if owner else "kdtune itself"
                raise UserError(f"{whose} has a {self.kind} '{name}' already; take another name.")
            if not self.fits(value):
                raise UserError(f"the {self.kind} '{name}' must be {self.what}.")
            self[name] = self.take(value)
            self._givers[name] = plugin

    def remove(self, plugin: Plugin) -> None:
        """Forget what a plug-in gave."""
        for name in [name for name, giver in self._givers.items() if giver == plugin]:
            del self[name], self._givers[name]

    @contextmanager
    def blamed(self, name: str) -> Iterator[None]:
        """Say in a sentence what goes wrong in what a plug-in gives."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a user's code may raise
            if (giver := self.giver(name)) is None:
                raise
            raise UserError(
                f"The {self.kind} '{name}' of the plug-in {giver.name} fails: {_reason(error)}"
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
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"There is no plug-in {file}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The plug-in {file} cannot be read: {_reason(error)}") from None
        _load(Plugin(str(path), text))


def load_installed() -> None:
    """Load the plug-ins of installed packages; those that are broken are named when one misses
    something."""
    for point in entry_points(group=GROUP):
        if point.name in _LOADED or point.name in _BROKEN:
            continue
        try:
            module = point.load()
            _enter(Plugin(point.name, inspect.getsource(module), installed=True), module)
        except Exception as error:  # whatever importing a package may raise
            _BROKEN[point.name] = (
                f"the installed plug-in {point.name} cannot be loaded: {_reason(error)}"
            )


def loaded() -> tuple[Plugin, ...]:
    """The plug-ins that this process has loaded."""
    return tuple(plugin for plugin, _ in _LOADED.values())


def modules() -> Iterator[tuple[Plugin, ModuleType]]:
    """The same, with their modules."""
    yield from _LOADED.values()


def have_only(plugins: Iterable[Plugin]) -> None:
    """Have this process know the plug-ins of another one, and no others.

    Installed ones are imported here.

    Raises:
        UserError: one is missing or no good here, or is another one than there.
    """
    wanted = {plugin.name: plugin for plugin in plugins}
    for plugin in loaded():
        if not plugin.installed and wanted.get(plugin.name) != plugin:
            _forget(plugin)
    if any(plugin.installed for plugin in wanted.values()):
        load_installed()
    for plugin in wanted.values():
        if not plugin.installed:
            _load(plugin)
        elif plugin.name not in _LOADED:
            why = _BROKEN.get(plugin.name, "it is not installed")
            raise UserError(f"The plug-in {plugin.name} is missing on this node: {why}.")
        elif _LOADED[plugin.name][0] != plugin:
            raise UserError(f"The installed plug-in {plugin.name} is another one on this node.")


def records(**names: Iterable[str]) -> list[dict[str, Any]]:
    """The plug-ins that give some of these names, as logs and other files keep them.

    Args:
        names: by the dicts of a plug-in, as ``METHODS=["mine"]``.

    Returns:
        Of each its ``name``, its ``sha256``, whether it is ``installed``, and which of the names
        it ``gives``.
    """
    found: dict[Plugin, list[str]] = {}
    for registry in _REGISTRIES:
        for name in dict.fromkeys(names.get(registry.attribute, ())):
            if (giver := registry.giver(name)) is not None:
                given = found.setdefault(giver, [])
                given += [name] if name not in given else []
    return [
        {"name": p.name, "sha256": p.sha256, "installed": p.installed, "gives": given}
        for p, given in found.items()
    ]


def check_given(whose: str, kept: Any, same: bool = False) -> None:
    """Have the plug-ins given again that a file needs: code that it names is not run.

    Args:
        whose: what needs them, for people.
        kept: see `records`.
        same: refuse other code than it was.

    Raises:
        UserError: one is not there.
    """
    if not isinstance(kept, list | tuple) or not all(
        isinstance(record, dict) and {"name", "sha256", "installed"} <= record.keys()
        for record in kept
    ):
        raise UserError(f"{whose} does not say which plug-ins it needs as kdtune writes it.")
    for record in kept:
        if record["installed"]:
            load_installed()
        if not changed([record]):
            continue
        name = str(record["name"])
        likely = [plugin for plugin in loaded() if Path(plugin.name).name == Path(name).name]
        if likely and same:
            raise UserError(
                f"The plug-in {likely[0].name} was changed since, so trials could not be "
                "compared: give it as it was, or begin another sweep."
            )
        if not likely and record["installed"]:
            why = _BROKEN.get(name, f"the plug-in {name} is not installed")
            raise UserError(f"{whose} needs a plug-in, and {why}; install its package.")
        if not likely:
            raise UserError(
                f"{whose} needs the plug-in {name}, and code that a file names is not run: if you "
                f"trust it, give --plugin {name}."
            )


def changed(kept: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the plug-ins, see `records`, whose code is none that is loaded."""
    sums = {plugin.sha256 for plugin in loaded()}
    return [str(record["name"]) for record in kept if record["sha256"] not in sums]


def _load(plugin: Plugin) -> None:
    """Run a plug-in's text, and take what it gives."""
    if plugin.name in _LOADED:
        if (before := _LOADED[plugin.name][0]) == plugin:
            return
        _forget(before)
    module = ModuleType(f"plugin_{Path(plugin.name).stem}_{plugin.sha256[:8]}")
    module.__file__ = plugin.name
    # Tracebacks, and all who ask for a module's source, find it where there is no such file, too.
    lines = plugin.text.splitlines(keepends=True)
    linecache.cache[plugin.name] = (len(plugin.text), None, lines, plugin.name)
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.text, plugin.name, "exec"), module.__dict__)
        _enter(plugin, module)
    except Exception as error:  # whatever a user's module may raise
        del sys.modules[module.__name__]
        raise UserError(f"The plug-in {plugin.name} cannot be loaded: {_reason(error)}") from error


def _enter(plugin: Plugin, module: ModuleType) -> None:
    try:
        for registry in _REGISTRIES:
            registry.add(plugin, module)
    except UserError:
        _forget(plugin)
        raise
    _LOADED[plugin.name] = plugin, module


def _forget(plugin: Plugin) -> None:
    for registry in _REGISTRIES:
        registry.remove(plugin)
    _LOADED.pop(plugin.name, None)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")
