"""Batches for the training loop, gathered from arrays that hold whole splits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kdtune.data.mixing import Mixing
from kdtune.data.transforms import augment_images
from kdtune.runtime.device import gpu_memory, gpu_memory_share

EVALUATION_BATCH_SIZE = 256
"""Images per batch where nothing is trained; fixed, so that metrics do not depend on it."""

CPU = torch.device("cpu")

T = TypeVar("T")

Batch = tuple[Tensor, Tensor, dict[str, Tensor] | None]
"""(images, labels, the teacher's targets where they are cached).

Labels are class indices [B] or, of mixed images, the share of each class, float [B, K].
"""

TrainingBatches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""The batches of every epoch, or a function that returns those of an epoch, from 1."""


def is_tiny_batch(count: int, batch_size: int) -> bool:
    """Return True if there is no training step on a last batch.

    Batch norm makes the gradients of a few images up to thousands of times as large as those of a
    batch, and cannot be trained on a single image at all.

    Args:
        count: images in the last batch; 0 if there is none.
        batch_size: images in the others.
    """
    return count == 1 or 0 < count < batch_size / 4


def describe_left_out(num_images: int, batch_sizes: Iterable[int]) -> list[str]:
    """Return a line about the images that an epoch leaves out, if it leaves any out.

    Args:
        num_images: for training.
        batch_sizes: of the runs.
    """
    samplers = [SeededBatchSampler(num_images, size, True) for size in sorted({*batch_sizes})]
    counts = {s.batch_size: num_images % s.batch_size for s in samplers if s.drops_last}
    if not counts:
        return []
    lists = [", ".join(map(str, values)) for values in (counts.values(), counts)]
    return [
        f"each epoch leaves out {lists[0]} of {num_images:,} training images: the last batch "
        f"would have fewer than a quarter of batch_size {lists[1]}"
    ]


@dataclass(frozen=True)
class SeededBatchSampler:
    """Indices of the images of each batch, and a seed for their augmentation.

    Each iteration is one pass; torch's global random state gives its order and seed. A shuffled
    pass drops a last batch that `is_tiny_batch`. The indices of a pass go to the device in one
    copy.

    Attributes:
        weights: draw the images with replacement in proportion to these, [num_images], as torch's
            `WeightedRandomSampler`.
    """

    num_images: int
    batch_size: int
    shuffle: bool
    device: torch.device = CPU
    weights: Tensor | None = None

    @property
    def drops_last(self) -> bool:
        """True if a pass leaves its last batch out."""
        rest = self.num_images % self.batch_size
        return self.shuffle and is_tiny_batch(rest, min(self.batch_size, self.num_images))

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size) - self.drops_last

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        if self.weights is not None:
            order = torch.multinomial(self.weights, self.num_images, replacement=True)
        else:
            order = (torch.randperm if self.shuffle else torch.arange)(self.num_images)
        batches = torch.split(order.to(self.device), self.batch_size)
        seed = int(torch.randint(2**62, ())) if self.shuffle else 0
        for indices in batches[: len(self)]:
            yield indices, seed


class DeviceTensors:
    """Tensors of arrays: copied to a GPU once if they fit, else sharing the arrays' memory."""

    def __init__(self) -> None:
        # By the identity of the array, which stays unique while the array is kept beside it.
        self._on_gpu: dict[tuple[int, torch.device], tuple[np.ndarray, Tensor]] = {}

    def place(self, arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
        """Return tensors of arrays, all on the device or all on the CPU.

        They fit if they take at most a quarter of this process's share of a GPU's memory, and half
        of what is free. The arrays that were placed last make room: epochs cycle through views, so
        without those that were placed first no view would be found again.

        Args:
            arrays: arrays by name.
            device: where they are wanted.
        """
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if (gpu := gpu_memory(device)) is None:
            return tensors
        keys = {name: (id(array), device) for name, array in arrays.items()}
        if not self._on_gpu.keys() >= set(keys.values()):
            num_bytes = sum(array.nbytes for array in arrays.values())
            max_bytes = gpu.total * gpu_memory_share(device) / 4
            if num_bytes > min(max_bytes, (gpu.total - gpu.used) / 2):
                return tensors
            others = [key for key in self._on_gpu if key not in keys.values()]
            while num_bytes + sum(self._on_gpu[key][0].nbytes for key in others) > max_bytes:
                del self._on_gpu[others.pop()]
        for name, key in keys.items():
            if key not in self._on_gpu:
                self._on_gpu[key] = arrays[name], tensors[name].to(device)
        return {name: self._on_gpu[key][1] for name, key in keys.items()}


@dataclass(eq=False)
class Batches:
    """The batches of one split; each iteration is one pass over it.

    Attributes:
        pixels: uint8 [N, 3, H, W].
        balanced: draw images with replacement, all classes alike.
        augment: ``none``, or one of `kdtune.data.transforms.AUGMENTATIONS`.
        augment_seed: seed for image 0, + i for image i, in every pass; None: anew in every pass.
        mixing: pairs of images that are mixed in the pixels; labels are then shares [B, K].
        num_classes: K, for mixed labels.
        targets: the teacher's targets by name, [N, ...].
        device_tensors: keeps the arrays on the device for later runs.
    """

    pixels: np.ndarray
    labels: Sequence[int]
    batch_size: int = EVALUATION_BATCH_SIZE
    shuffle: bool = False
    balanced: bool = False
    augment: str = "none"
    augment_seed: int | None = None
    mixing: Mixing | None = None
    num_classes: int = 0
    targets: Mapping[str, np.ndarray] | None = None
    device: torch.device = CPU
    device_tensors: DeviceTensors = field(default_factory=DeviceTensors)

    def __post_init__(self) -> None:
        arrays = {"pixels": self.pixels, **(self.targets or {})}
        # Dozens of kernels would augment an image on a GPU, and round otherwise than those of the
        # CPU, which makes the cached views.
        device = CPU if self.augment != "none" else self.device
        self._targets = self.device_tensors.place(arrays, device)
        self._pixels = self._targets.pop("pixels")
        self._labels = torch.tensor(self.labels, dtype=torch.int64, device=self._pixels.device)
        if self.mixing is not None:
            device = self._pixels.device
            self._partner_labels = self._labels[torch.from_numpy(self.mixing.partners).to(device)]
            self._ratios = torch.from_numpy(self.mixing.ratios).to(device)
        weights = None
        if self.balanced:
            labels = torch.tensor(self.labels)
            weights = 1 / torch.bincount(labels).float()[labels]
        self._sampler = SeededBatchSampler(
            len(self.labels), self.batch_size, self.shuffle, self._pixels.device, weights
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches = (self._gather_batch(indices, seed) for indices, seed in self._sampler)
        is_placed = self._pixels.device == self.device
        return batches if is_placed else _copy_ahead(batches, self.device)

    def _gather_batch(self, indices: Tensor, seed: int) -> Batch:
        images, labels = self._select(self._pixels, indices), self._select_labels(indices)
        if self.augment != "none":
            base_seed = seed if self.augment_seed is None else self.augment_seed
            images = augment_images(images, (indices + base_seed).tolist(), self.augment)
        if self.targets is None:
            return images, labels, None
        targets = {name: self._select(rows, indices) for name, rows in self._targets.items()}
        return images, labels, targets

    def _select_labels(self, indices: Tensor) -> Tensor:
        labels = self._select(self._labels, indices)
        if self.mixing is None:
            return labels
        ratios = self._ratios[indices].unsqueeze(1)
        shares = torch.zeros(len(labels), self.num_classes, device=labels.device)
        shares.scatter_(1, labels.unsqueeze(1), ratios)
        partner_labels = self._partner_labels[indices].unsqueeze(1)
        return shares.scatter_add_(1, partner_labels, 1 - ratios)

    def _select(self, rows: Tensor, indices: Tensor) -> Tensor:
        """Return the rows of indices, in pinned memory if they are to be copied to a GPU."""
        shape = len(indices), *rows.shape[1:]
        pin = self.device.type == "cuda" != rows.device.type
        out = torch.empty(shape, dtype=rows.dtype, device=rows.device, pin_memory=pin)
        return torch.index_select(rows, 0, indices, out=out)  # much faster than rows[indices]


def _copy_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Prepare each batch in a thread, and copy it to a device, while the one before is used.

    On a GPU the copies have a stream of their own, so they overlap with the computation; the
    batches are then in pinned memory.
    """
    if device.type != "cuda":
        yield from prefetch(move_batch(batch, device) for batch in batches)
        return
    # Streams are handed out in turns: one of the usual priority would once be that on which a
    # CUDA graph is recorded, and the copies would become a part of the graph.
    stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def start_copies() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.stream(stream):
                copy = move_batch(batch, device)
            yield copy, stream.record_event()

    for (images, labels, targets), is_copied in prefetch(start_copies()):
        current = torch.cuda.current_stream(device)
        current.wait_event(is_copied)
        for value in (images, labels, *(targets or {}).values()):
            value.record_stream(current)  # its memory is free when this stream is done with it
        yield images, labels, targets


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device, without waiting if it is in pinned memory.

    Args:
        batch: on any device.
        device: where it goes.
    """
    images, labels, targets = batch
    if targets is not None:
        targets = {name: value.to(device, non_blocking=True) for name, value in targets.items()}
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True), targets


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Prepare each item in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as executor:
        next_item = executor.submit(next, items, None)
        while (item := next_item.result()) is not None:
            next_item = executor.submit(next, items, None)
            yield item
