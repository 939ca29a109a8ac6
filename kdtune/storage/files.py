"""Files that are written whole or not at all, and YAML that is read with a sentence on error."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kdtune.errors import DiskFullError, UserError
from kdtune.runtime.console import printable_path

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room, of a user's quota, and of the largest size of a file."""


@contextmanager
def disk_full_as_error(target: str | Path) -> Iterator[None]:
    """Say in a sentence that `what` found no room on its disk.

    Raises:
        DiskFullError: the disk is full, or a limit of the user's is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise
        raise DiskFullError(
            f"There is no room to write {printable_path(target)}: {os.strerror(error.errno).lower()}."
        ) from error


@contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the place of `path`.

    A reader sees the old file or the new one, never a part of either, also after a crash.

    Args:
        path: the file to be written; its folder is made if it is missing.
        sync: wait until it is on the disk; else a crash of the machine, not one of the process,
            can leave a damaged file.

    Yields:
        The path to write to; it keeps the suffix of `path`.

    Raises:
        DiskFullError: there is no room.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with disk_full_as_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder with those above it, unless it is there.

    Raises:
        UserError: a file is in the way, or writing there is not allowed.
        DiskFullError: there is no room.
    """
    try:
        with disk_full_as_error(path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {path} cannot be made: {error.strerror}.") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def parse_yaml_value(text: str) -> Any:
    """Read one value as YAML does: ``0.1`` is a number, ``true`` a truth value, ``abc`` a word.

    Raises:
        UserError: it is not valid YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"'{text}' is not a value: brackets or quotes do not match.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of settings.

    Raises:
        UserError: the file is missing, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a YAML file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold 'key: value' lines, one a setting.")
    return content
