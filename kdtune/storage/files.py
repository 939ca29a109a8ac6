"""Atomic writing of files, and reading of YAML files."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kdtune.errors import DiskFullError, UserError
from kdtune.runtime.console import printable_path

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, quota, limit of a file


class _YamlLoader(yaml.SafeLoader):
    """Reads YAML in which ``1:30`` is text, not the 90 of YAML 1.1."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        return node.value if ":" in node.value else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        return node.value if ":" in node.value else super().construct_yaml_float(node)


for _kind in ("int", "float"):
    _construct = getattr(_YamlLoader, f"construct_yaml_{_kind}")
    _YamlLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct)


@contextmanager
def disk_full_as_error(target: str | Path) -> Iterator[None]:
    """Raise a `DiskFullError` that names `target` if the disk is full or a limit is reached."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise
        reason = os.strerror(error.errno).lower()
        message = f"There is no room to write {printable_path(target)} ({reason}); make room."
        raise DiskFullError(message) from error


@contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path, with the suffix of `path`, and replace `path` by it on success.

    Args:
        path: file to write; its folder is created if it is missing.
        sync: wait until it is on the disk; else a crash of the machine can leave a damaged file.
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
    try:
        with disk_full_as_error(path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {path} cannot be created: {error.strerror}.") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically.

    Args:
        path: the file.
        text: its content.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as YAML, atomically.

    Args:
        path: the file.
        content: the mapping, whose order is kept.
    """
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def parse_yaml_value(text: str) -> Any:
    """Parse a YAML value: ``0.1`` is a number, ``true`` a bool, ``abc`` a string."""
    try:
        return yaml.load(text, _YamlLoader)
    except yaml.YAMLError:
        raise UserError(f"'{text}' is not a value: brackets or quotes do not match.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _YamlLoader)
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
        raise UserError(f"{path} must hold 'key: value' lines, one for each setting.")
    return content
