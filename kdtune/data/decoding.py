"""Decoding: images of files and arrays as uint8 RGB squares of one size."""

import os
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from kdtune.data.image_formats import readable_formats
from kdtune.data.sources import ImageSource, PackedImage
from kdtune.data.splits import Rendering, Split
from kdtune.errors import BadImagesError
from kdtune.runtime.console import printable_path

DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, MemoryError, EOFError, Pillow.DecompressionBombError
)  # fmt: skip
"""Errors that Pillow raises for images that cannot be read."""


def decode_images(
    split: Split, image_size: int, workers: int | None = 1, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode a split and resize every image to a square.

    Args:
        split: the images.
        image_size: height and width in pixels; the aspect ratio is not kept.
        workers: threads, at most one per core; None: one per core.
        out: uint8 [N, 3, image_size, image_size], to fill and return; None creates one.

    Raises:
        BadImagesError: images cannot be read; all of them are named.
    """
    if out is None:
        out = np.empty((len(split), 3, image_size, image_size), dtype=np.uint8)
    if reasons := find_unreadable(split, workers, image_size, out):
        names = [split.name_of(i) for i in reasons]
        raise BadImagesError(list(zip(names, reasons.values(), strict=True)))
    return out


def find_unreadable(
    split: Split, workers: int | None = None, image_size: int = 1, out: np.ndarray | None = None
) -> dict[int, str]:
    """Decode every image of a split, and return why it cannot be read, by its index.

    Args:
        split: the images.
        workers: threads, at most one per core; None: one per core.
        image_size: height and width in pixels.
        out: array to fill; None keeps no pixels.
    """

    def decode(i: int) -> str | None:
        try:
            pixels = _decode_image(split.images[i], image_size, split.rendering)
        except DECODE_ERRORS as error:
            return describe_error(error, split, i)
        if out is not None:
            out[i] = pixels
        return None

    with ignore_warnings():
        readable_formats()  # registers them once, before there are threads
        with ThreadPoolExecutor(max(1, limit_workers(workers))) as executor:
            reasons = executor.map(decode, range(len(split)), chunksize=64)
            return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def describe_error(error: Exception, split: Split, index: int) -> str:
    """Return why an image cannot be read, without its name.

    Args:
        error: raised when it was read.
        split: has the image.
        index: of the image in the split.
    """
    message = str(error).partition(" <_io.BytesIO")[0]
    message = message.replace(f" {str(split.images[index])!r}", "").strip().rstrip(".")
    return printable_path(message) or type(error).__name__


def limit_workers(workers: int | None = None) -> int:
    """Return a number of workers, at most one per core of this process; None: one per core."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS lacks it
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return num_cores if workers is None else min(workers, num_cores)


def ignore_warnings() -> AbstractContextManager[object]:
    """Ignore Pillow's warnings about large images and odd palettes, which are decoded anyway."""
    return warnings.catch_warnings(action="ignore")


def measure_bit_depth(split: Split) -> int:
    """Return the bits that 16-bit images of a split use: 8, 10, 12, 14 or 16.

    It is measured on 64 images in equal distances; 16 if none of the first 8 of them has 16 bits.
    """
    largest = 0
    chosen = np.linspace(0, len(split) - 1, min(len(split), 64)).astype(int).tolist()
    for position, image in enumerate(split.images[i] for i in chosen):
        if position == 8 and not largest:
            break
        with ignore_warnings(), suppress(*DECODE_ERRORS), open_image(image) as pil_image:
            if pil_image.mode.startswith("I"):
                largest = max(largest, int(np.asarray(pil_image).max()))
    return next((bits for bits in (8, 10, 12, 14) if 0 < largest < 2**bits), 16)


@contextmanager
def open_image(image: ImageSource) -> Iterator[Pillow.Image]:
    """Open an image; its pixels are not read yet."""
    if isinstance(image, np.ndarray):
        is_single = image.shape[2:] == (1,)
        yield Pillow.fromarray(image[:, :, 0] if is_single else image)
        return
    if isinstance(image, PackedImage):
        file: Path | BytesIO = BytesIO(image.read())
    else:
        if not stat.S_ISREG(os.stat(image).st_mode):
            raise OSError("it is not a file")  # opening a pipe would block
        if os.path.getsize(image) == 0:
            raise OSError("it is empty")
        file = image
    with Pillow.open(file, formats=readable_formats()[0]) as pil_image:
        yield pil_image


def _decode_image(image: ImageSource, image_size: int, rendering: Rendering) -> np.ndarray:
    with open_image(image) as pil_image:
        rgb = render_image(pil_image, rendering)
    square = rgb.resize((image_size, image_size), Pillow.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def render_image(image: Pillow.Image, rendering: Rendering) -> Pillow.Image:
    """Return an image as it is shown: opaque RGB of 8 bits, turned as its EXIF data say.

    Args:
        image: as opened.
        rendering: what to do with transparency and 16 bits.
    """
    image.load()  # raises if it is damaged
    with suppress(Exception):  # such as damaged EXIF data
        ImageOps.exif_transpose(image, in_place=True)
    image = _to_eight_bits(image, rendering.bit_depth)
    if image.has_transparency_data:
        ground = Pillow.new("RGBA", image.size, rendering.background)
        image = Pillow.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def _to_eight_bits(image: Pillow.Image, bit_depth: int) -> Pillow.Image:
    """Scale 16-bit grey values to 8 bits, which Pillow would clip."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels have more than 16 bits")
    if values.max() >= 2**bit_depth:
        raise ValueError(f"its pixels use more than {bit_depth} bits: give --bit-depth 16")
    return Pillow.fromarray(np.round(values / ((2**bit_depth - 1) / 255)).astype(np.uint8))
