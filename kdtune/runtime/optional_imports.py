"""Imports of optional packages, the extras of `pyproject.toml`."""

from importlib import import_module
from typing import Any

from kdtune.errors import UserError


def import_optional(package: str, extra: str) -> Any:
    """Import a package, or raise a `UserError` that says how to install it.

    Args:
        package: module to import.
        extra: name of the extra that installs it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"This needs {error.name}, which is not installed: run "
            f"pip install '.[{extra}]' in the folder of kdtune."
        ) from None
