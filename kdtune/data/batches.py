"""Batches for the training loop, gathered from arrays that hold whole splits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdtune.data.transforms import augment_images
from kdtune.runtime.device import gpu_memory

EVALUATION_BATCH_SIZE = 256
"""Images per batch where nothing is trained; fixed, so that metrics do not depend on it."""

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

        They fit if they take at most an eighth of a GPU's memory, which several processes may
        share, and half of its free memory. The arrays that were placed first make room.

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
            max_bytes = gpu.total / 8
            if num_bytes > min(max_bytes, (gpu.total - gpu.used) / 2):
                return tensors
            for key in [key for key in self._on_gpu if key not in keys.values()]:
                placed_bytes = sum(array.nbytes for array, _ in self._on_gpu.values())
                if num_bytes + placed_bytes > max_bytes:
                    del self._on_gpu[key]
        for name, key in keys.items():
            if key not in self._on_gpu:
                self._on_gpu[key] = arrays[name], tensors[name].to(device)
        return {name: self._on_gpu[key][1] for name, key in keys.items()}


class Batches:
    """The batches of one split; each iteration is one pass over it.

    Args:
        pixels: uint8 [N, 3, H, W].
        labels: class indices [N].
        batch_size: images per batch, see `SeededBatchSampler`.
        shuffle: True for training.
        augment: transform each image at random.
        augment_seed: seed for image 0, + i for image i, in every pass; None: anew in every pass.
        targets: the teacher's targets by name, [N, ...].
        device: device of the batches; the CPU if None.
        device_tensors: keeps the arrays on the device for later runs; None keeps none.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: Sequence[int],
        batch_size: int = EVALUATION_BATCH_SIZE,
        shuffle: bool = False,
        augment: bool = False,
        augment_seed: int | None = None,
        targets: Mapping[str, np.ndarray] | None = None,
        device: torch.device | None = None,
        device_tensors: DeviceTensors | None = None,
    ):
        self.device = device or torch.device("cpu")
        arrays = {"pixels": pixels, **(targets or {})}
        tensors = (device_tensors or DeviceTensors()).place(arrays, self.device)
        self.pixels = tensors.pop("pixels")
        self.targets = tensors if targets is not None else None
        self.labels = torch.tensor(labels, dtype=torch.int64, device=self.pixels.device)
        self.sampler = SeededBatchSampler(len(self.labels), batch_size, shuffle)
        self.augment, self.augment_seed = augment, augment_seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches = (self._gather_batch(indices, seed) for indices, seed in self.sampler)
        return batches if self.device.type == "cpu" else prefetch(batches)

    def _gather_batch(self, indices: Tensor, seed: int) -> Batch:
        rows = indices.to(self.pixels.device)
        images = self._take_rows(self.pixels, rows)
        if self.augment:
            base_seed = seed if self.augment_seed is None else self.augment_seed
            images = augment_images(images, (indices + base_seed).tolist())
        targets = None
        if self.targets is not None:
            targets = {name: self._take_rows(array, rows) for name, array in self.targets.items()}
        return images, self._take_rows(self.labels, rows), targets

    def _take_rows(self, array: Tensor, indices: Tensor) -> Tensor:
        rows = array.index_select(0, indices)  # much faster on a CPU than array[indices]
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
