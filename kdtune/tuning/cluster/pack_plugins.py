"""Plug-ins for processes of Ray, which may run where the files of plug-ins are missing."""

from dataclasses import replace

from ray import cloudpickle

from kdtune.errors import UserError, typed_first_line
from kdtune.plugins import ATTRIBUTES, PLUGINS, Plugin


def pack_plugins() -> tuple[Plugin, ...]:
    """Pickle the definitions of the loaded plug-ins by value; `PLUGINS.sync` loads them."""
    return tuple(map(_pack, PLUGINS.loaded.values()))


def _pack(plugin: Plugin) -> Plugin:
    if plugin.installed:
        return replace(plugin, content=b"")
    definitions = {name: getattr(plugin.content, name, {}) for name in ATTRIBUTES}
    try:
        return replace(plugin, content=cloudpickle.dumps(definitions))
    except Exception as error:  # whatever pickling a user's objects may raise
        reason = typed_first_line(error)
        text = f"The plug-in {plugin.name} cannot be sent to other processes: {reason}"
        raise UserError(text) from error
