"""Decoding: images of files and arrays as uint8 RGB squares of one size."""

import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image as Pillow

from kdtune.data.datasets import ImageSource
from kdtune.data.splits import Split
from kdtune.errors import BadImagesError
from kdtune.runtime.console import printable_path


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
        names = [printable_path(str(split.images[i])) for i in reasons]
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

    bomb = Pillow.DecompressionBombError

    def decode(i: int) -> str | None:
        try:
            pixels = _decode_image(split.images[i], image_size)
        except (OSError, SyntaxError, ValueError, MemoryError, EOFError, bomb) as error:
            message = str(error).replace(f" {str(split.images[i])!r}", "").strip().rstrip(".")
            return printable_path(message) or type(error).__name__
        if out is not None:
            out[i] = pixels
        return None

    # Pillow's warnings about large images and odd palettes help nobody: such images are decoded.
    with warnings.catch_warnings(action="ignore"):
        with ThreadPoolExecutor(max(1, limit_workers(workers))) as executor:
            reasons = executor.map(decode, range(len(split)), chunksize=64)
            return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def limit_workers(workers: int | None = None) -> int:
    """Return a number of workers, at most one per core of this process; None: one per core."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS lacks it
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return num_cores if workers is None else min(workers, num_cores)


def _decode_image(image: ImageSource, image_size: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return _resize_to_square(Pillow.fromarray(image), image_size)
    if not stat.S_ISREG(os.stat(image).st_mode):
        raise OSError("it is no file")  # opening a pipe would block
    if os.path.getsize(image) == 0:
        raise OSError("it is empty")
    with Pillow.open(image) as pil_image:
        return _resize_to_square(pil_image, image_size)


def _resize_to_square(image: Pillow.Image, image_size: int) -> np.ndarray:
    rgb = _to_eight_bits(image).convert("RGB")
    square = rgb.resize((image_size, image_size), Pillow.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def _to_eight_bits(image: Pillow.Image) -> Pillow.Image:
    """Scale 16-bit grey values to 8 bits, which Pillow would clip."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels have more than 16 bits")
    return Pillow.fromarray(np.round(values / 257).astype(np.uint8))
