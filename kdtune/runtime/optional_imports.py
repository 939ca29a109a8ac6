"""Packages that not everybody needs: the extras of `pyproject.toml`."""

from importlib import import_module
from typing import Any

from kdtune.errors import UserError


def import_optional(package: str, extra: str) -> Any:
    """Import a package of an extra.

    Args:
        package: what is imported.
        name: the extra's.

    Raises:
        UserError: it is not installed; the text says what installs it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"This needs {error.name}, which is not installed: in the folder of kdtune, "
            f"pip install '.[{extra}]'."
        ) from None
