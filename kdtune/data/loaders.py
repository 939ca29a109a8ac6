"""Loaders for notebooks: of an image folder, and those that others wrote.

A folder's decode in worker processes whenever an image is asked for, so data need not fit into
memory; a sweep decodes once instead. Both give the same batches in the same order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from kdtune.config.train import TrainConfig
from kdtune.data.batches import EVALUATION_BATCH_SIZE, Batch, SeededBatchSampler
from kdtune.data.folders import find_images
from kdtune.data.splits import Split
from kdtune.data.transforms import augment_images, decode_images, limit_workers, normalise
from kdtune.errors import UserError
from kdtune.runtime.device import has_gpu

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches (images [B, 3, H, W], labels [B])."""


class CheckedLoader:
    """A loader of (images, labels) as the loop wants it: checked, and without targets.

    Args:
        loader: batches of images [B, 3, H, W], uint8 or normalised floats, and labels [B].
        name: what a message calls it.
        image_size: height and width that its images must have; None accepts any.
        num_classes: K, above every label; None accepts any.
        training: leave batches of a single image out, on which batch norm cannot be trained.
    """

    def __init__(
        self,
        loader: Loader,
        name: str,
        image_size: int | None = None,
        num_classes: int | None = None,
        training: bool = False,
    ):
        self.loader, self.name, self.training = loader, name, training
        self.image_size, self.num_classes = image_size, num_classes

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader) if isinstance(self.loader, Iterable) else None
        if batches is None or batches is self.loader:
            raise UserError(
                f"{self.name} must be a DataLoader, or a list of batches, since every epoch goes "
                f"through it; a {type(self.loader).__name__} cannot be gone through again."
            )
        empty = True
        for batch in batches:
            images, labels = self._validate_batch(batch)
            if len(labels) > self.training:
                empty = False
                yield images, labels, None
        if empty:
            minimum = "more than one image" if self.training else "an image"
            raise UserError(f"{self.name} has no batch with {minimum}.")

    def _validate_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        try:
            images, labels = (torch.as_tensor(part) for part in batch)
        except (TypeError, ValueError, RuntimeError):
            raise self._batch_error(batch) from None
        shape, integer = tuple(images.shape), not labels.is_floating_point()
        if len(shape) != 4 or shape[1] != 3 or labels.shape != shape[:1] or not integer:
            raise self._batch_error(batch)
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise UserError(
                f"The images of {self.name} are {images.dtype}; give uint8, or normalised floats."
            )
        expected_size = self.image_size
        if expected_size is not None and shape[2:] != (expected_size, expected_size):
            raise UserError(
                f"The images of {self.name} are {shape[2:]}, but image_size is {expected_size}; give the "
                "config the image_size that the loader has."
            )
        if len(labels) and labels.device.type == "cpu":  # elsewhere a look would wait for it
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or (self.num_classes is not None and highest >= self.num_classes):
                invalid_label = lowest if lowest < 0 else highest
                known = f"{self.num_classes} classes" if self.num_classes else "classes"
                raise UserError(
                    f"{self.name} has the label {invalid_label}, but there are {known}, counted from 0."
                )
        return images if images.dtype == torch.uint8 else images.float(), labels.long()

    def _batch_error(self, batch: Any) -> UserError:
        return UserError(
            f"A batch of {self.name} must be (images [B, 3, H, W], labels [B]), two tensors "
            f"with as many labels as images; it gave {_describe_value(batch)}."
        )


def _describe_value(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor {list(batch.shape)}"
    if isinstance(batch, tuple | list) and len(batch) <= 4:
        return f"({', '.join(map(_describe_value, batch))})"
    return type(batch).__name__


def class_names(loader: Any) -> tuple[str, ...] | None:
    """Class names that a loader's dataset has, or the dataset that it is a part of; else None."""
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else None


@dataclass(frozen=True)
class SplitDataset(Dataset[tuple[Tensor, Tensor]]):
    """The images of one split, a batch at a time.

    Attributes:
        split: the images, undecoded.
        classes: class names, in the order of the labels.
        image_size: height and width of the batches, in pixels.
        augmented: transform each image at random.
    """

    split: Split
    classes: tuple[str, ...]
    image_size: int
    augment: bool

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int | tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
        """Decode a batch, (indices [B], seed): images float [B, 3, H, W], and labels [B].

        A plain index gives one image [3, H, W] and its label, as it is without augmentation.
        """
        if isinstance(index, int):
            unaugmented = SplitDataset(self.split, self.classes, self.image_size, False)
            images, labels = unaugmented[torch.tensor([index]), 0]
            return images[0], labels[0]
        indices, seed = index
        batch = Split(
            [self.split.images[i] for i in indices], [self.split.labels[i] for i in indices]
        )
        images = torch.from_numpy(decode_images(batch, self.image_size))
        if self.augment:
            images = augment_images(images, (indices + seed).tolist())
        return normalise(images), torch.from_numpy(np.asarray(batch.labels, dtype=np.int64))


def prepare_dataloaders(
    data_dir: str = "data",
    batch_size: int = 32,
    num_workers: int = 4,
    augment: bool = False,
    image_size: int = 128,
) -> tuple[DataLoader, DataLoader, DataLoader | None]:
    """Make the loaders of an image folder.

    `train_at(config, *prepare_dataloaders(...))` gives the numbers that `train_at` gives with the
    same `data_dir`, `batch_size`, `augment` and `image_size` in its config, for any `num_workers`;
    with a teacher, which runs live beside a loader, to rounding (see
    `kdtune.training.teacher_targets`).

    Args:
        data_dir: an ImageFolder, or the name of a data set; split as `find_images` does.
        batch_size: images in a training batch.
        num_workers: processes that decode, at most one a core; 0 decodes in this process.
        augment: random crops, flips, rotations and colours for the training images.
        image_size: pixels; images are resized to a square.

    Returns:
        Training, validation and test loader; the last is None where there are no test images.
        A batch is (images float [B, 3, H, W], normalised; labels [B]); ``loader.dataset.classes``
        has the names.

    Raises:
        UserError: a setting is out of range, or the folder is no good.
    """
    config = TrainConfig.parse(
        {
            "data_dir": data_dir,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "augment": augment,
            "image_size": image_size,
        }
    )
    data = find_images(config.data_dir)
    workers = limit_workers(config.num_workers)

    def make_loader(split: Split, training: bool) -> DataLoader:
        return DataLoader(
            SplitDataset(split, data.classes, config.image_size, training and config.augment),
            batch_size=None,  # a batch is made at once
            sampler=SeededBatchSampler(
                len(split), batch_size if training else EVALUATION_BATCH_SIZE, training
            ),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=has_gpu(),
            generator=torch.Generator(),  # else it draws from the state that fixes the order
        )

    return (
        make_loader(data.train, True),
        make_loader(data.validation, False),
        make_loader(data.test, False) if data.test is not None else None,
    )
