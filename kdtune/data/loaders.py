"""Data loaders for notebooks: of an image folder, and checks of a user's own."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from kdtune.config.train import TrainConfig
from kdtune.data.batches import EVALUATION_BATCH_SIZE, Batch, SeededBatchSampler, is_tiny_batch
from kdtune.data.decoding import decode_images, limit_workers
from kdtune.data.folders import find_images
from kdtune.data.splits import Split
from kdtune.data.transforms import augment_images, normalise
from kdtune.errors import UserError
from kdtune.runtime.device import has_gpu

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches (images [B, 3, H, W], labels [B])."""


@dataclass(frozen=True)
class CheckedLoader:
    """A user's loader, with its batches checked and without targets.

    Attributes:
        name: the loader's name in messages.
        training: skip batches of a single image, and a last one that `is_tiny_batch` beside the
            first.
    """

    loader: Loader
    name: str
    image_size: int | None = None
    num_classes: int | None = None
    training: bool = False

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader) if isinstance(self.loader, Iterable) else None
        if batches is None or batches is self.loader:
            raise UserError(
                f"{self.name} must be a DataLoader, or a list of batches, since every epoch "
                f"iterates over it; a {type(self.loader).__name__} cannot be iterated over again."
            )
        first_size, last = 0, None
        for batch in batches:
            images, labels = self._check_batch(batch)
            if len(labels) > self.training:
                if last is not None:
                    yield last
                first_size, last = first_size or len(labels), (images, labels, None)
        if last is None:
            minimum = "more than one image" if self.training else "an image"
            raise UserError(f"{self.name} has no batch with {minimum}.")
        if not (self.training and is_tiny_batch(len(last[1]), first_size)):
            yield last
            return
        warnings.warn(
            f"The last batch of {self.name} is left out: it has {len(last[1])} images, fewer than "
            f"a quarter of the first one's {first_size}.",
            stacklevel=2,
        )

    def _check_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        try:
            images, labels = map(torch.as_tensor, batch)
            fits = images.ndim == 4 and images.shape[1] == 3 and labels.shape == images.shape[:1]
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits or labels.is_floating_point():
            raise UserError(
                f"A batch of {self.name} must be (images [B, 3, H, W], labels [B]), two tensors "
                f"with as many labels as images; it gave {_describe_value(batch)}."
            )
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise UserError(
                f"The images of {self.name} are {images.dtype}; give uint8, or normalised floats."
            )
        shape, size = tuple(images.shape[2:]), self.image_size
        if size is not None and shape != (size, size):
            raise UserError(
                f"The images of {self.name} are {shape}, but image_size is {size}; give the "
                "config the image_size that the loader has."
            )
        if len(labels) and labels.device.type == "cpu":  # a look at a GPU's would wait for it
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or (self.num_classes is not None and highest >= self.num_classes):
                known = f"{self.num_classes} classes" if self.num_classes else "classes"
                raise UserError(
                    f"{self.name} has the label {lowest if lowest < 0 else highest}, but there "
                    f"are {known}, counted from 0."
                )
        return images if images.dtype == torch.uint8 else images.float(), labels.long()


def _describe_value(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list) and len(value) <= 4:
        return f"({', '.join(map(_describe_value, value))})"
    return type(value).__name__


def class_names(loader: Any) -> tuple[str, ...] | None:
    """Return the class names of a loader's dataset, or of the one it is a subset of, if any."""
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else None


Index = int | tuple[int, int]
"""Index of an image, with a seed if the image is to be augmented."""


@dataclass(frozen=True)
class SplitDataset(Dataset[tuple[Tensor, Tensor]]):
    """The images of one split, decoded a batch at a time."""

    split: Split
    classes: tuple[str, ...]
    image_size: int
    augment: str

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Index) -> tuple[Tensor, Tensor]:
        """Return an image, float [3, H, W], and its label."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Index]) -> list[tuple[Tensor, Tensor]]:
        """Return images and labels; `DataLoader` asks for those of a batch in one call."""
        pairs = [index if isinstance(index, tuple) else (index, None) for index in indices]
        batch = self.split.select([i for i, _ in pairs])
        images = torch.from_numpy(decode_images(batch, self.image_size))
        seeds = [i + seed for i, seed in pairs if seed is not None]
        if self.augment != "none" and seeds:
            images = augment_images(images, seeds, self.augment)
        labels = torch.from_numpy(np.asarray(batch.labels, dtype=np.int64))
        return list(zip(normalise(images), labels, strict=True))


@dataclass(frozen=True)
class SeededSampler(Sampler[Index]):
    """Single indices of a `SeededBatchSampler`, which a `DataLoader` joins to the same batches."""

    batches: SeededBatchSampler

    def __len__(self) -> int:
        num_images, size = self.batches.num_images, self.batches.batch_size
        return num_images - self.batches.drops_last * (num_images % size)

    def __iter__(self) -> Iterator[Index]:
        for indices, seed in self.batches:
            yield from ((i, seed) for i in indices.tolist())


ImageLoader = DataLoader[tuple[Tensor, Tensor]]


def prepare_dataloaders(
    data_dir: str = "data",
    batch_size: int = 32,
    num_workers: int = 4,
    augment: bool | str = False,
    image_size: int = 128,
) -> tuple[ImageLoader, ImageLoader, ImageLoader | None]:
    """Make loaders of training, validation and test images; None if there are no test images.

    Batches are (normalised images float [B, 3, H, W], labels [B]); ``dataset.classes`` has the
    names. Training gives the same numbers as with these settings in its config; with a teacher
    only up to rounding.

    Args:
        data_dir: a folder or other data, as `find_images` takes and splits them.
        batch_size: images in a training batch.
        num_workers: processes that decode, at most one per core; 0 decodes in this process.
        augment: augments the training images: True for random crops, flips, rotations and
            colours, or a name of `TrainConfig.augment`.
        image_size: height and width in pixels; the aspect ratio is not kept.
    """
    config = TrainConfig.parse(
        {"data_dir": data_dir, "batch_size": batch_size, "num_workers": num_workers,
         "augment": augment, "image_size": image_size}
    )  # fmt: skip
    data = find_images(config.data_dir)
    workers = limit_workers(config.num_workers)

    def make_loader(split: Split, training: bool) -> ImageLoader:
        size = batch_size if training else EVALUATION_BATCH_SIZE
        augment = config.augment if training else "none"
        return DataLoader(
            SplitDataset(split, data.classes, config.image_size, augment),
            batch_size=size,
            sampler=SeededSampler(SeededBatchSampler(len(split), size, training)),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=has_gpu(),
            generator=torch.Generator(),  # the global one fixes the order of the images
        )

    test_loader = make_loader(data.test, False) if data.test is not None else None
    return make_loader(data.train, True), make_loader(data.validation, False), test_loader
