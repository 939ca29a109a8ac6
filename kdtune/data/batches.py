"""The batches that the loop is fed with, gathered from arrays that hold whole splits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kdtune.data.transforms import augment_images
from kdtune.runtime.device import gpu_memory

EVALUATION_BATCH_SIZE = 256
"""Images at once where nothing is trained; fixed, so that figures do not depend on it."""

Batch = tuple[Tensor, Tensor, dict[str, Tensor] | None]
"""(images, labels [B], the teacher's targets where they were computed before)."""

TrainingBatches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""The batches of any epoch, or a function that gives those of an epoch, from 1."""


class SeededBatchSampler:
    """Which images make up which batch; every `for` is one pass.

    The order of a shuffled pass, and the seed of its augmentation, are drawn from torch's global
    random state, which the loop seeds for each epoch.

    Args:
        count: N, the number of images.
        batch_size: images a batch; a last batch of a single image is left out when shuffling,
            since batch norm cannot be trained on it.
        shuffle: True for training.
    """

    def __init__(self, num_images: int, batch_size: int, shuffle: bool):
        self.num_images, self.batch_size, self.shuffle = num_images, batch_size, shuffle

    def __len__(self) -> int:
        drops_single = self.shuffle and self.num_images % self.batch_size == 1
        return -(-self.num_images // self.batch_size) - drops_single

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        permutation = (
            torch.randperm(self.num_images) if self.shuffle else torch.arange(self.num_images)
        )
        seed = int(torch.randint(2**62, ())) if self.shuffle else 0
        for indices in permutation.split(self.batch_size)[: len(self)]:
            yield indices, seed


class Batches:
    """The batches of one split; every `for` is one pass over it.

    Args:
        pixels: uint8 [N, 3, H, W].
        labels: class indices, N of them.
        batch_size: images a batch, see `Order`.
        shuffle: True for training.
        augmented: transform each image at random, anew in every pass.
        augment_seed: transform image i in every pass as the seed `augment_seed` + i says; it goes
            with `augmented`.
        targets: the teacher's, by name, [N, ...].
        device: where batches are wanted. On a GPU the arrays are put there if they fit, see
            `place`; else the next batch is prepared while it computes on the last.
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
    ):
        self.device = device or torch.device("cpu")
        arrays = {"pixels": pixels, **(targets or {})}
        tensors = place_on_device(arrays, self.device)
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
        device_indices = indices.to(self.pixels.device)
        images = self._take_rows(self.pixels, device_indices)
        if self.augment:
            base_seed = seed if self.augment_seed is None else self.augment_seed
            images = augment_images(images, (indices + base_seed).tolist())
        targets = None
        if self.targets is not None:
            targets = {
                name: self._take_rows(array, device_indices)
                for name, array in self.targets.items()
            }
        return images, self._take_rows(self.labels, device_indices), targets

    def _take_rows(self, array: Tensor, indices: Tensor) -> Tensor:
        rows = array.index_select(0, indices)  # on a CPU many times faster than array[where]
        if self.device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()  # so that the copy does not wait for the computation
        return rows.to(self.device, non_blocking=True)


MAX_GPU_MEMORY_SHARE = 1 / 8
"""Part of a GPU's memory that a process may fill with arrays; several may share the GPU."""

_TENSORS_ON_DEVICE: dict[tuple[int, torch.device], tuple[np.ndarray, Tensor]] = {}
"""Arrays that this process has put on a device, by identity, which they keep unique."""


def place_on_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Make tensors of arrays: on a GPU, once a process, if they fit; else sharing their memory.

    They fit if they take at most an eighth of the GPU's memory and half of what is free; what was
    put there first makes room.
    """
    keys = {name: (id(array), device) for name, array in arrays.items()}
    num_bytes = sum(array.nbytes for array in arrays.values())
    if (gpu := gpu_memory(device)) is None:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    if not all(key in _TENSORS_ON_DEVICE for key in keys.values()):
        total_bytes, free_bytes = gpu.total, gpu.total - gpu.used
        if num_bytes > min(MAX_GPU_MEMORY_SHARE * total_bytes, free_bytes / 2):
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        for key in [key for key in _TENSORS_ON_DEVICE if key not in keys.values()]:
            if (
                num_bytes + sum(array.nbytes for array, _ in _TENSORS_ON_DEVICE.values())
                > MAX_GPU_MEMORY_SHARE * total_bytes
            ):
                del _TENSORS_ON_DEVICE[key]
    for name, array in arrays.items():
        if keys[name] not in _TENSORS_ON_DEVICE:
            _TENSORS_ON_DEVICE[keys[name]] = (array, torch.from_numpy(array).to(device))
    return {name: _TENSORS_ON_DEVICE[key][1] for name, key in keys.items()}


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Prepare each batch in a thread while the one before is computed on."""
    with ThreadPoolExecutor(1) as executor:
        next_batch = executor.submit(next, batches, None)
        while (batch := next_batch.result()) is not None:
            next_batch = executor.submit(next, batches, None)
            yield batch
