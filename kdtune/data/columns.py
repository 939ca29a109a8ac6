"""Columns of image, label and split in a table, found by their usual names."""

import re
from collections.abc import Collection, Iterable
from pathlib import PurePath
from typing import NamedTuple

from kdtune.data.sources import SPLIT_NAMES
from kdtune.errors import UserError, did_you_mean

IMAGE_NAMES = (
    "image", "img", "file", "filename", "filepath", "path", "imagepath", "imagename", "imagefile",
    "imageid", "imgid", "imagefilename", "id", "idcode", "name",
)  # fmt: skip
"""Names of the column of images, the likeliest first, in small letters without ``_ -``."""

LABEL_NAMES = (
    "label", "labels", "class", "classes", "target", "category", "classname", "labelname", "cls",
)  # fmt: skip
SPLIT_COLUMN_NAMES = ("split", "subset", "set", "partition")


GivenColumns = tuple[str | None, str | None]
"""The columns of image and label that the user named."""


class Columns(NamedTuple):
    """Names of the columns of a table."""

    image: str
    label: str
    split: str | None = None


def find_columns(
    source: str,
    names: Collection[str],
    images: Collection[str],
    labels: Collection[str],
    given: GivenColumns,
) -> Columns:
    """Find the columns of image, label and split.

    Args:
        source: the table, for messages.
        names: all columns.
        images: columns that hold images; if there are none, a column of file names is meant.
        labels: columns with known class names; if there are none, a column is found by name.
        given: columns that the user named.
    """
    for name in given:
        if name is not None and name not in names:
            raise UserError(f"{source} has no column '{name}'; {did_you_mean(name, names)}")
    image = given[0] or _first(images or names, IMAGE_NAMES) or next(iter(images), None)
    if not image:
        raise UserError(
            f"{source} has no column that is known to hold images, such as image, file or id; it "
            f"has {', '.join(names)}: name it with --image-column."
        )
    split = _first([name for name in names if name != image], SPLIT_COLUMN_NAMES)
    others = [name for name in names if name not in (image, split)]
    label = given[1] or _find_label(source, others, [name for name in labels if name in others])
    return Columns(image, label, split)


def _find_label(source: str, names: list[str], labels: list[str]) -> str:
    by_name = [name for name in labels or names if _plain(name) in LABEL_NAMES]
    candidates = by_name or labels or names
    if len(candidates) == 1:
        return candidates[0]
    problem = f"has {' and '.join(by_name)}" if by_name else "has no column with a usual name"
    raise UserError(
        f"{source} {problem} for the label; name the column with --label-column: "
        f"{', '.join(candidates) or 'there is none besides the image'}."
    )


def _first(names: Iterable[str], usual: tuple[str, ...]) -> str | None:
    found = [name for name in names if _plain(name) in usual]
    return min(found, key=lambda name: usual.index(_plain(name)), default=None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def split_of(parts: Iterable[str]) -> str | None:
    """Return the split that the first word of a file or of one of its folders names.

    >>> split_of(["data", "train-00000-of-00002.parquet"]), split_of(["trainer.csv"])
    ('train', None)
    """
    words = (re.match("[a-z]*", PurePath(part).name.lower()) for part in parts)
    found = (SPLIT_NAMES.get(word.group()) for word in words if word)
    return next((split for split in found if split), None)
