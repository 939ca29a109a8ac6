"""Formats of image files: all that Pillow reads by itself, and HEIC with pillow-heif."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version

from PIL import Image as Pillow

_HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")

# PostScript is a program, which Pillow gives to Ghostscript; the others only have a header read.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}

_COMMON = ("JPEG", "PNG")
"""Tried first; some of the others must read a part of each file to tell that it is not theirs."""


@cache
def readable_formats() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return Pillow's names of the formats that can be read, and the suffixes of their files."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Pillow.init()
    formats = sorted(set(Pillow.OPEN) - _NOT_READ, key=lambda name: (name not in _COMMON, name))
    names = {*formats, "MPO"}  # which is opened as JPEG
    suffixes = {s.lower() for s, name in Pillow.registered_extensions().items() if name in names}
    return tuple(formats), tuple(sorted(suffixes))


def is_image(name: str) -> bool:
    """Return True if a file is an image by the suffix of its name."""
    return name.lower().endswith(readable_formats()[1])


def heif_version(images: Iterable[object]) -> dict[str, str]:
    """Return the version of the package that reads HEIC, if some of the images are such files."""
    is_used = any(str(image).lower().endswith(_HEIF_SUFFIXES) for image in images)
    return {"pillow-heif": version("pillow-heif")} if is_used and is_image(".heic") else {}


def missing_reader(suffix: str) -> str | None:
    """Return the package that reads files with a suffix, if it is not installed."""
    is_missing = suffix in _HEIF_SUFFIXES and suffix not in readable_formats()[1]
    return "pillow-heif: pip install '.[heif]'" if is_missing else None
