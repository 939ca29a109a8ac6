"""Decoded images, and the batches that the loop is fed with.

A split is decoded once into one uint8 array in memory; a process that runs many trials decodes
it once for all of them. Processes do not share the array, and it must fit into memory.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from kdtune.config import TrainConfig
from kdtune.data.images import Image, ImageData, Split
from kdtune.errors import UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, for every data set, so that pretrained teachers fit."""

EVALUATION_BATCH = 256
"""Images at once where nothing is trained; fixed, so that figures do not depend on it."""

Batch = tuple[Tensor, Tensor, dict[str, Tensor] | None]
"""(images, labels [B], the teacher's targets where they were computed before)."""


def normalise(images: Tensor) -> Tensor:
    """Turn uint8 images [B, 3, H, W] into floats of mean 0 and deviation 1 (on ImageNet).

    Float images stay as they are: they come from a loader that has its own normalisation.
    """
    if images.dtype != torch.uint8:
        return images
    mean, std = (images.new_tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augmentation(image_size: int) -> v2.Transform:
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
    transform = augmentation(images.shape[-1])
    done = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for i, seed in enumerate(seeds):
            torch.default_generator.manual_seed(seed)
            done[i] = transform(images[i])
    return done


def decode(split: Split, image_size: int, workers: int = 1) -> np.ndarray:
    """Decode a split and resize every image to a square.

    Args:
        split: the images.
        image_size: height and width, in pixels; the aspect ratio is not kept.
        workers: threads; more than there are cores are not started.

    Returns:
        uint8 [N, 3, image_size, image_size].

    Raises:
        UserError: a file is not a readable image; it is named.
    """
    pixels = np.empty((len(split), 3, image_size, image_size), dtype=np.uint8)

    def decode_into(i: int) -> None:
        pixels[i] = _decode_one(split.images[i], image_size)

    with ThreadPoolExecutor(max(1, usable_workers(workers))) as threads:
        for _ in threads.map(decode_into, range(len(split)), chunksize=64):
            pass
    return pixels


def usable_workers(workers: int) -> int:
    """At most as many workers as there are cores for this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(workers, cores or 1)


def _decode_one(image: Image, image_size: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return _square(Pillow.fromarray(image), image_size)
    try:
        with Pillow.open(image) as opened:
            return _square(opened, image_size)
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise UserError(
            f"The image {image} cannot be read ({error}); mend it or remove it."
        ) from None


def _square(image: Pillow.Image, image_size: int) -> np.ndarray:
    square = image.convert("RGB").resize((image_size, image_size), Pillow.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


class Order:
    """Which images make up which batch; every `for` is one pass.

    The order of a shuffled pass, and the seed of its augmentation, are drawn from torch's global
    random state, which the loop seeds for each epoch.

    Args:
        count: N, the number of images.
        batch_size: images a batch; a last batch of a single image is left out when shuffling,
            since batch norm cannot be trained on it.
        shuffle: True for training.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool):
        self.count, self.batch_size, self.shuffle = count, batch_size, shuffle

    def __len__(self) -> int:
        lone = self.shuffle and self.count % self.batch_size == 1
        return -(-self.count // self.batch_size) - lone

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        order = torch.randperm(self.count) if self.shuffle else torch.arange(self.count)
        seed = int(torch.randint(2**62, ())) if self.shuffle else 0
        for chosen in order.split(self.batch_size)[: len(self)]:
            yield chosen, seed


class Batches:
    """The batches of one split, from memory; every `for` is one pass over it.

    Args:
        pixels: uint8 [N, 3, H, W].
        labels: class indices, N of them.
        batch_size: images a batch, see `Order`.
        shuffle: True for training.
        augmented: transform each image at random, anew in every pass.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: Sequence[int],
        batch_size: int = EVALUATION_BATCH,
        shuffle: bool = False,
        augmented: bool = False,
    ):
        self.pixels = torch.from_numpy(pixels)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.order = Order(len(self.labels), batch_size, shuffle)
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for chosen, seed in self.order:
            images = self.pixels[chosen]
            if self.augmented:
                images = augment_images(images, (chosen + seed).tolist())
            yield images, self.labels[chosen], None


@dataclass(frozen=True)
class RunData:
    """The decoded images of one run; test images are not among them."""

    train: np.ndarray
    train_labels: Sequence[int]
    validation: np.ndarray
    validation_labels: Sequence[int]
    classes: tuple[str, ...]

    def train_batches(self, config: TrainConfig) -> Batches:
        """Training images in the batches that the run's settings ask for."""
        return Batches(
            self.train,
            self.train_labels,
            config.batch_size,
            shuffle=True,
            augmented=config.augment,
        )

    def validation_batches(self) -> Batches:
        """Validation images, in order."""
        return Batches(self.validation, self.validation_labels)


def decode_run(data: ImageData, image_size: int, workers: int = 1) -> RunData:
    """Decode the training and validation images of a data set, see `decode`."""
    return RunData(
        decode(data.train, image_size, workers),
        data.train.labels,
        decode(data.validation, image_size, workers),
        data.validation.labels,
        data.classes,
    )
