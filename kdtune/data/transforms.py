"""Image transforms: decoding, resizing, augmentation and normalisation."""

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from kdtune.data.datasets import ImageSource
from kdtune.data.splits import Split
from kdtune.errors import BadImagesError
from kdtune.runtime.console import printable_path

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Returns an augmented image, uint8 [3, S, S], of another and a generator."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet, used for every data set so that pretrained teachers fit."""


def normalise(
    images: Tensor,
    mean: Sequence[float] | Tensor = IMAGENET_MEAN,
    std: Sequence[float] | Tensor = IMAGENET_STD,
) -> Tensor:
    """Convert uint8 images to normalised floats; return float images as they are.

    Args:
        images: [B, 3, H, W].
        mean: of each channel, as a share of 255; a tensor on a GPU spares a wait for a copy.
        std: of each channel, as a share of 255.
    """
    if images.dtype != torch.uint8:
        return images
    shift, scale = (torch.as_tensor(v, device=images.device).view(1, 3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - shift) / scale


def augment_images(images: Tensor, seeds: Sequence[int], name: str = "standard") -> Tensor:
    """Augment each image at random, by its own seed alone.

    Crops are from images padded by an eighth: 4 px of 32 (as is usual on CIFAR), 16 px of 128.
    The global random state is not used, since another thread may draw from it while it trains.

    Args:
        images: uint8 [B, 3, S, S].
        seeds: seed of each image [B].
        name: one of `AUGMENTATIONS`.
    """
    augmented, generator = torch.empty_like(images), torch.Generator()
    augment = AUGMENTATIONS[name]
    for i, seed in enumerate(seeds):
        augmented[i] = augment(images[i], generator.manual_seed(seed))
    return augmented


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=generator))


def _crop_and_flip(image: Tensor, generator: torch.Generator) -> Tensor:
    size, padding = image.shape[-1], image.shape[-1] // 8
    if padding:
        top, left = (int(torch.randint(2 * padding + 1, (), generator=generator)) for _ in "yx")
        image = F.crop(F.pad(image, [padding]), top, left, size, size)
    if float(torch.rand(1, generator=generator)) < 0.5:
        image = F.horizontal_flip(image)
    return image


_RECOLOUR = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def _augment_as_standard(image: Tensor, generator: torch.Generator) -> Tensor:
    """Augment an image with the draws of torchvision's transforms, which take no generator."""
    image = _crop_and_flip(image, generator)
    angle = _uniform(generator, -10, 10)
    image = F.rotate(image, angle, InterpolationMode.BILINEAR, fill=[0.0])
    order = torch.randperm(4, generator=generator).tolist()  # 3 is the hue, which stays
    factors = [_uniform(generator, 0.8, 1.2) for _ in _RECOLOUR]
    for i in order:
        if i < len(_RECOLOUR):
            image = _RECOLOUR[i](image, factors[i])
    return image


class _DrawFrom(TorchFunctionMode):
    """In this thread, torch draws from a generator, also in transforms that take none.

    It costs too much time for `_augment_as_standard`, which is therefore written out.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FUNCTIONS:
            kwargs = {"generator": self._generator, **kwargs}
        return func(*args, **kwargs)


_RANDOM_FUNCTIONS = {torch.rand, torch.randint, torch.randperm, torch.randn, Tensor.uniform_}


def _crop_flip_and(transform: nn.Module) -> Augmentation:
    def augment(image: Tensor, generator: torch.Generator) -> Tensor:
        image = _crop_and_flip(image, generator)
        with _DrawFrom(generator):
            augmented: Tensor = transform(image)
        return augmented

    return augment


AUGMENTATIONS: dict[str, Augmentation] = {
    "standard": _augment_as_standard,
    "crop_flip": _crop_and_flip,
    "randaugment": _crop_flip_and(v2.RandAugment()),
    "trivialaugment": _crop_flip_and(v2.TrivialAugmentWide()),
    "autoaugment": _crop_flip_and(v2.AutoAugment()),
}
"""Augmentations by name."""


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
