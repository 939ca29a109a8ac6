"""Overview of a data set: its images, which are unreadable or duplicated, and how they look."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from kdtune.data.decoding import (
    DECODE_ERRORS,
    describe_error,
    ignore_warnings,
    limit_workers,
    open_image,
    render_image,
)
from kdtune.data.image_formats import readable_formats
from kdtune.data.splits import ImageData, Split
from kdtune.runtime.console import printable_path
from kdtune.storage.files import atomic_write

MAX_LISTED = 20
"""Largest number of contents with duplicates that are listed one by one."""

_SAY_EVERY_SECONDS = 4
_SHEET_ROWS, _SHEET_COLUMNS, _THUMBNAIL, _CAPTION = 40, 10, 64, 14


class _Inspected(NamedTuple):
    """An image that was decoded; `reason` says why it cannot be."""

    content_sha256: str
    size: tuple[int, int] = (0, 0)
    kind: str = ""  # format and mode
    reason: str = ""


def inspect_images(data: ImageData, say: Callable[[str], None]) -> dict[str, Any]:
    """Decode all images of a data set, and describe them as plain values, for JSON.

    Args:
        data: the images.
        say: takes lines about the progress.

    Returns:
        ``data``, ``lines`` (those that other commands begin with), ``classes`` (a row per class,
        with images by split), ``sizes`` (pixels), ``kinds`` (images by format and mode),
        ``bit_depth``, ``left_out``, ``unreadable``, ``duplicates`` and ``duplicate_count``: images
        of one content in several splits, or of several classes.
    """
    images = [(name, i) for name, split in data.splits.items() for i in range(len(split))]
    inspected = list(_inspect_all(data, images, say))
    sound = [found for found in inspected if not found.reason]
    duplicates = list(_find_duplicates(data, images, inspected))
    unreadable = [
        {"split": split, "file": data.splits[split].name_of(i), "reason": found.reason}
        for (split, i), found in zip(images, inspected, strict=True)
        if found.reason
    ]
    class_counts = {n: split.class_counts(len(data.classes)) for n, split in data.splits.items()}
    return {
        "data": data.source,
        "lines": list(data.describe()),
        "classes": [
            {"class": name, **{split: counts[i] for split, counts in class_counts.items()}}
            for i, name in enumerate(data.classes)
        ],
        "sizes": _describe_sizes([found.size for found in sound]),
        "kinds": dict(Counter(found.kind for found in sound).most_common()),
        "bit_depth": data.rendering.bit_depth,
        "left_out": {kind: count for kind, count in data.left_out.items() if count},
        "unreadable": unreadable,
        "duplicates": duplicates[:MAX_LISTED],
        "duplicate_count": len(duplicates),
    }


def _inspect_all(
    data: ImageData, images: list[tuple[str, int]], say: Callable[[str], None]
) -> Iterator[_Inspected]:
    readable_formats()  # registers them once, before there are threads
    say(f"reading {len(images):,} images")
    said_at = time.monotonic()
    with ignore_warnings(), ThreadPoolExecutor(limit_workers()) as executor:
        tasks = executor.map(lambda at: _inspect(data.splits[at[0]], at[1]), images)
        for done, found in enumerate(tasks):
            if time.monotonic() - said_at > _SAY_EVERY_SECONDS:
                said_at = time.monotonic()
                say(f"{done:,} of {len(images):,} images read")
            yield found


def _inspect(split: Split, index: int) -> _Inspected:
    image = split.images[index]
    if isinstance(image, np.ndarray):
        content = image.tobytes()
    else:
        try:
            content = image.read_bytes() if isinstance(image, Path) else image.read()
        except OSError as error:
            return _Inspected("", reason=describe_error(error, split, index))
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with open_image(image) as opened:
            size, kind = opened.size, f"{opened.format or 'array'} {opened.mode}"
            render_image(opened, split.rendering)
    except DECODE_ERRORS as error:
        return _Inspected(sha256, reason=describe_error(error, split, index))
    return _Inspected(sha256, size, kind)


def _describe_sizes(sizes: list[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {}
    widths, heights = zip(*sizes, strict=True)
    [(commonest, count), *_] = Counter(sizes).most_common(1)
    return {
        side: {"smallest": min(values), "median": median_low(values), "largest": max(values)}
        for side, values in (("width", widths), ("height", heights))
    } | {"commonest": list(commonest), "commonest_images": count}


def _find_duplicates(
    data: ImageData, images: list[tuple[str, int]], inspected: list[_Inspected]
) -> Iterator[list[dict[str, str]]]:
    """Yield the images of each content that is in several splits, or has several labels."""
    by_content = defaultdict(list)
    for (name, i), found in zip(images, inspected, strict=True):
        by_content[found.content_sha256 or (name, i)].append((name, i))
    for places in by_content.values():
        rows = [
            {
                "split": name,
                "class": data.classes[data.splits[name].labels[i]],
                "file": data.splits[name].name_of(i),
            }
            for name, i in places
        ]
        if len({(row["split"], row["class"]) for row in rows}) > 1:
            yield rows


def write_contact_sheet(data: ImageData, path: Path) -> None:
    """Draw some training images of each class as a network gets them, before they are normalised.

    Args:
        data: the images.
        path: a `.png` file.
    """
    classes, height = data.classes[:_SHEET_ROWS], _CAPTION + _THUMBNAIL
    sheet = Pillow.new("RGB", (_SHEET_COLUMNS * _THUMBNAIL, len(classes) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(classes):
        members = np.flatnonzero(np.asarray(data.train.labels) == row)
        caption = f"{printable_path(name)}: {len(members):,}".encode("ascii", "replace").decode()
        draw.text((2, row * height + 1), caption, fill="black")
        for column, thumbnail in enumerate(_thumbnails(data.train, members)):
            sheet.paste(thumbnail, (column * _THUMBNAIL, row * height + _CAPTION))
    with atomic_write(path) as temporary:
        sheet.save(temporary)


def _thumbnails(split: Split, members: np.ndarray) -> Iterator[Pillow.Image]:
    """Yield some of the images with these indices, those that can be read."""
    positions = np.linspace(0, len(members) - 1, min(len(members), _SHEET_COLUMNS)).astype(int)
    for index in members[positions].tolist():
        image = split.images[index]
        with ignore_warnings(), suppress(*DECODE_ERRORS), open_image(image) as opened:
            shown = render_image(opened, split.rendering)
            yield shown.resize((_THUMBNAIL, _THUMBNAIL), Pillow.Resampling.BILINEAR)
