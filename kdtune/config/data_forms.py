"""Forms of data that a user can name: folders, tables, tar shards, Hugging Face's and others."""

import glob
import os
import re
from pathlib import Path
from typing import Literal

from kdtune.config.names import DATASET_NAMES
from kdtune.errors import UserError

HUGGING_FACE_PREFIX = "hf:"
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
SHARD_SUFFIX = ".tar"

DataForm = Literal["folder", "table", "shards", "hugging_face", "name"]


def data_form(data: str) -> DataForm:
    """Return the form of data; a `UserError` says what can be given if there are none."""
    path = Path(data).expanduser()
    if path.is_dir():
        return "folder"
    if data.startswith(HUGGING_FACE_PREFIX):
        return "hugging_face"
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        return "table"
    if path.suffix.lower() == SHARD_SUFFIX and expand_shards(data):
        return "shards"
    if DATASET_NAMES.find(data):
        return "name"
    raise UserError(
        f"There is no folder {data}; give an ImageFolder, a table (.csv, .parquet), tar shards, "
        f"hf:NAME, or one of the data sets that have names: {', '.join(DATASET_NAMES)}."
    )


def require_data(data: str) -> None:
    """Raise a `UserError` if there are no such data."""
    data_form(data)


def expand_shards(pattern: str) -> list[Path]:
    """Return the files of a pattern such as ``train-{000..003}.tar`` or ``train-*.tar``, if any.

    If there are some of those that braces name, there must be all.
    """
    found = {}
    for path in map(os.path.expanduser, _expand_braces(pattern)):
        found[path] = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    missing = [path for path, files in found.items() if not files]
    if missing and len(missing) < len(found):
        raise UserError(f"There is no file {missing[0]}, which {pattern} names.")
    return [Path(file) for files in found.values() for file in files]


def _expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern, as a shell does.

    >>> _expand_braces("{a,b}-{08..10}.tar")[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    if not (match := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        return [pattern]
    first, last, words = match.groups()
    if words is None:
        numbers = range(int(first), int(last) + 1)
        options = [str(number).zfill(len(first)) for number in numbers]
    else:
        options = words.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + option + rest for option in options for rest in _expand_braces(tail)]


def absolute_data(data: str) -> str:
    """Return data with an absolute path, since trials run in other folders; else the name."""
    prefix = HUGGING_FACE_PREFIX if data.startswith(HUGGING_FACE_PREFIX) else ""
    path = os.path.expanduser(data.removeprefix(prefix))
    is_path = os.path.exists(path) or path.lower().endswith(SHARD_SUFFIX)
    return prefix + os.path.abspath(path) if is_path else data
