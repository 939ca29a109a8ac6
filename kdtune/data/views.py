"""Decoded images, and the batches that the loop is fed with.

A split is decoded once into one uint8 array in memory; a process that runs many trials decodes
it once for all of them. Processes do not share the array, and it must fit into memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms import v2

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
    """Random crop with padding of an eighth, flip, rotation by up to 10°, colour jitter."""
    return v2.Compose(
        [
            v2.RandomCrop(image_size, padding=image_size // 8),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )


def decode(split: Split, image_size: int) -> np.ndarray:
    """Decode a split and resize every image to a square.

    Args:
        split: the images.
        image_size: height and width, in pixels; the aspect ratio is not kept.

    Returns:
        uint8 [N, 3, image_size, image_size].

    Raises:
        UserError: a file is not a readable image; it is named.
    """
    pixels = np.empty((len(split), 3, image_size, image_size), dtype=np.uint8)
    for i, image in enumerate(split.images):
        pixels[i] = _decode_one(image, image_size)
    return pixels


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


class Batches:
    """The batches of one split, from memory; every `for` is one pass over it.

    The order of a shuffled pass and the augmentation are drawn from torch's global random state,
    which the loop seeds for each epoch.

    Args:
        pixels: uint8 [N, 3, H, W].
        labels: class indices, N of them.
        batch_size: images a batch; a last batch of a single image is left out when shuffling,
            since batch norm cannot be trained on it.
        shuffle: True for training.
        augment: transform each image at random.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: Sequence[int],
        batch_size: int = EVALUATION_BATCH,
        shuffle: bool = False,
        augment: bool = False,
    ):
        self.pixels = torch.from_numpy(pixels)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.transform = augmentation(pixels.shape[-1]) if augment else None

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.labels)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for chosen in order.split(self.batch_size):
            if self.shuffle and len(chosen) == 1:
                continue
            images = self.pixels[chosen]
            if self.transform is not None:
                images = torch.stack([self.transform(image) for image in images])
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
            self.train, self.train_labels, config.batch_size, shuffle=True, augment=config.augment
        )

    def validation_batches(self) -> Batches:
        """Validation images, in order."""
        return Batches(self.validation, self.validation_labels)


def decode_run(data: ImageData, image_size: int) -> RunData:
    """Decode the training and validation images of a data set.

    Raises:
        UserError: see `decode`.
    """
    return RunData(
        decode(data.train, image_size),
        data.train.labels,
        decode(data.validation, image_size),
        data.validation.labels,
        data.classes,
    )
