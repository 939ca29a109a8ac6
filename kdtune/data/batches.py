"""Batches for the training loop, gathered from arrays that hold whole splits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kdtune.data.transforms import augment_images
from kdtune.runtime.device import gpu_memory, gpu_memory_share

EVALUATION_BATCH_SIZE = 256
"""Images per batch where nothing is trained; fixed, so that metrics do not depend on it."""

CPU = torch.device("cpu")

Batch = tuple[Tensor, Tensor, dict[str, Tensor] | None]
"""(images, labels [B], the teacher's targets where they are cached)."""

TrainingBatches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""The batches of every epoch, or a function that returns those of an epoch, from 1."""


@dataclass(frozen=True)
class SeededBatchSampler:
    """Indices of the images of each batch, and a seed for their augmentation.

    Each iteration is one pass; torch's global random state gives its order and seed. A shuffled
    pass drops a last batch of a single image, since batch norm cannot be trained on it.
    """

    num_images: int
    batch_size: int
    shuffle: bool

    def __len__(self) -> int:
        drops_single = self.shuffle and self.num_images % self.batch_size == 1
        return -(-self.num_images // self.batch_size) - drops_single

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        order = torch.randperm if self.shuffle else torch.arange
        batches = torch.split(order(self.num_images), self.batch_size)
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
        augment_seed: seed for image 0, + i for image i, in every pass; None: anew in every pass.
        targets: the teacher's targets by name, [N, ...].
        device_tensors: keeps the arrays on the device for later runs.
    """

    pixels: np.ndarray
    labels: Sequence[int]
    batch_size: int = EVALUATION_BATCH_SIZE
    shuffle: bool = False
    augment: bool = False
    augment_seed: int | None = None
    targets: Mapping[str, np.ndarray] | None = None
    device: torch.device = CPU
    device_tensors: DeviceTensors = field(default_factory=DeviceTensors)

    def __post_init__(self) -> None:
        arrays = {"pixels": self.pixels, **(self.targets or {})}
        # Dozens of kernels would augment an image on a GPU, and round otherwise than those of the
        # CPU, which makes the cached views.
        device = CPU if self.augment else self.device
        self._targets = self.device_tensors.place(arrays, device)
        self._pixels = self._targets.pop("pixels")
        self._labels = torch.tensor(self.labels, dtype=torch.int64, device=self._pixels.device)
        self._sampler = SeededBatchSampler(len(self.labels), self.batch_size, self.shuffle)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches = (self._gather_batch(indices, seed) for indices, seed in self._sampler)
        return batches if self.device.type == "cpu" else prefetch(batches)

    def _gather_batch(self, indices: Tensor, seed: int) -> Batch:
        rows = indices.to(self._pixels.device)
        # Much faster on a CPU than array[rows].
        images, labels = (x.index_select(0, rows) for x in (self._pixels, self._labels))
        if self.augment:
            base_seed = seed if self.augment_seed is None else self.augment_seed
            images = augment_images(images, (indices + base_seed).tolist())
        targets = {k: self._move(x.index_select(0, rows)) for k, x in self._targets.items()}
        return (
            self._move(images),
            self._move(labels),
            targets if self.targets is not None else None,
        )

    def _move(self, rows: Tensor) -> Tensor:
        if self.device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()  # so that the copy does not wait for the computation
        return rows.to(self.device, non_blocking=True)


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Prepare each batch in a thread while the one before is computed on."""
    with ThreadPoolExecutor(1) as executor:
        next_batch = executor.submit(next, batches, None)
        while (batch := next_batch.result()) is not None:
            next_batch = executor.submit(next, batches, None)
            yield batch
