"""What happens to pixels: decoding, resizing, augmentation, normalisation."""

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from kdtune.data.datasets import ImageSource
from kdtune.data.splits import Split
from kdtune.errors import BadImagesError
from kdtune.runtime.console import printable_path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, for every data set, so that pretrained teachers fit."""

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    MemoryError,
    EOFError,
    Pillow.DecompressionBombError,
)
"""What Pillow raises where a file is no image, or too large a one."""


def normalise(
    images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """Turn uint8 images [B, 3, H, W] into floats of mean 0 and deviation 1 (on ImageNet).

    Float images stay as they are: they come from a loader that has its own normalisation.
    """
    if images.dtype != torch.uint8:
        return images
    shift, scale = (
        images.new_tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (mean, std)
    )
    return (images.float() / 255 - shift) / scale


def build_augmentation(image_size: int) -> v2.Transform:
    """Random crop with padding of an eighth, flip, rotation by up to 10°, colour jitter.

    Crop and rotation follow the image's size: 4 px of 32 (as is usual on CIFAR), 16 px of 128.
    """
    return v2.Compose(
        [
            v2.RandomCrop(image_size, padding=image_size // 8),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10, interpolation=InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )


def augment_images(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Transform each image at random, as its own seed says.

    What becomes of an image depends neither on its neighbours nor on the process that does it.

    Args:
        images: uint8 [B, 3, S, S].
        seeds: B of them.

    Returns:
        uint8 [B, 3, S, S]; the global random state stays as it was.
    """
    transform = build_augmentation(images.shape[-1])
    augmented = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for i, seed in enumerate(seeds):
            torch.default_generator.manual_seed(seed)
            augmented[i] = transform(images[i])
    return augmented


def decode_images(
    split: Split, image_size: int, workers: int | None = 1, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode a split and resize every image to a square.

    Args:
        split: the images.
        image_size: height and width, in pixels; the aspect ratio is not kept.
        workers: threads; more than there are cores are not started, and as many if None.
        out: filled and returned, if given.

    Returns:
        uint8 [N, 3, image_size, image_size].

    Raises:
        BadImagesError: files are no readable images; all of them are named.
    """
    if out is None:
        out = np.empty((len(split), 3, image_size, image_size), dtype=np.uint8)
    pixels = out

    def decode_into(i: int) -> None:
        pixels[i] = _decode_image(split.images[i], image_size)

    if reasons := collect_failures(split, decode_into, workers):
        raise BadImagesError(
            [(printable_path(str(split.images[i])), reason) for i, reason in reasons.items()]
        )
    return pixels


def find_unreadable(split: Split, workers: int | None = None) -> dict[int, str]:
    """Decode every image of a split, for its own sake: reasons of those that cannot be read."""
    return collect_failures(split, lambda i: _decode_image(split.images[i], 1), workers)


def collect_failures(
    split: Split, decode_one: Callable[[int], object], workers: int | None
) -> dict[int, str]:
    """Call a function for every image: why it failed, by the image's index."""

    def attempt(i: int) -> str | None:
        try:
            decode_one(i)
        except DECODE_ERRORS as error:
            message = str(error).replace(f" {str(split.images[i])!r}", "").strip().rstrip(".")
            return printable_path(message) or type(error).__name__
        return None

    # Large images and odd palettes are decoded like others, or fail; a warning helps nobody.
    with warnings.catch_warnings(action="ignore"):
        with ThreadPoolExecutor(max(1, limit_workers(workers))) as executor:
            reasons = executor.map(attempt, range(len(split)), chunksize=64)
            return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def limit_workers(workers: int | None = None) -> int:
    """At most as many workers as there are cores for this process; as many, if not given."""
    cpu_count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    return min(workers, cpu_count or 1) if workers is not None else cpu_count or 1


def _decode_image(image: ImageSource, image_size: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return _resize_to_square(Pillow.fromarray(image), image_size)
    if not stat.S_ISREG(os.stat(image).st_mode):
        raise OSError("it is no file")  # to open a pipe would take for ever
    if os.path.getsize(image) == 0:
        raise OSError("it is empty")
    with Pillow.open(image) as pil_image:
        return _resize_to_square(pil_image, image_size)


def _resize_to_square(image: Pillow.Image, image_size: int) -> np.ndarray:
    square = _to_eight_bits(image).convert("RGB")
    square = square.resize((image_size, image_size), Pillow.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def _to_eight_bits(image: Pillow.Image) -> Pillow.Image:
    """Grey values of 16 bits on the scale of 8, which Pillow cuts off instead."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, of which nobody knows the range")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels have more than 16 bits")
    return Pillow.fromarray(np.round(values / 257).astype(np.uint8))
