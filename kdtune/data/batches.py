"""The batches that the loop is fed with, gathered from arrays that hold whole splits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kdtune.data.transforms import augment_images
from kdtune.runtime.device import memory_of

EVALUATION_BATCH = 256
"""Images at once where nothing is trained; fixed, so that figures do not depend on it."""

Batch = tuple[Tensor, Tensor, dict[str, Tensor] | None]
"""(images, labels [B], the teacher's targets where they were computed before)."""

TrainingBatches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""The batches of any epoch, or a function that gives those of an epoch, from 1."""


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
        batch_size: int = EVALUATION_BATCH,
        shuffle: bool = False,
        augmented: bool = False,
        augment_seed: int | None = None,
        targets: Mapping[str, np.ndarray] | None = None,
        device: torch.device | None = None,
    ):
        self.device = device or torch.device("cpu")
        arrays = {"pixels": pixels, **(targets or {})}
        sources = place(arrays, self.device)
        self.pixels = sources.pop("pixels")
        self.targets = sources if targets is not None else None
        self.labels = torch.tensor(labels, dtype=torch.int64, device=self.pixels.device)
        self.order = Order(len(self.labels), batch_size, shuffle)
        self.augmented, self.augment_seed = augmented, augment_seed

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        batches = (self._gather(chosen, seed) for chosen, seed in self.order)
        return batches if self.device.type == "cpu" else prepared_ahead(batches)

    def _gather(self, chosen: Tensor, seed: int) -> Batch:
        where = chosen.to(self.pixels.device)
        images = self._rows(self.pixels, where)
        if self.augmented:
            first = seed if self.augment_seed is None else self.augment_seed
            images = augment_images(images, (chosen + first).tolist())
        targets = None
        if self.targets is not None:
            targets = {name: self._rows(array, where) for name, array in self.targets.items()}
        return images, self._rows(self.labels, where), targets

    def _rows(self, array: Tensor, where: Tensor) -> Tensor:
        part = array.index_select(0, where)  # on a CPU many times faster than array[where]
        if self.device.type == "cuda" and part.device.type == "cpu":
            part = part.pin_memory()  # so that the copy does not wait for the computation
        return part.to(self.device, non_blocking=True)


SHARE = 1 / 8
"""Part of a GPU's memory that a process may fill with arrays; several may share the GPU."""

_PLACED: dict[tuple[int, torch.device], tuple[np.ndarray, Tensor]] = {}
"""Arrays that this process has put on a device, by identity, which they keep unique."""


def place(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Make tensors of arrays: on a GPU, once a process, if they fit; else sharing their memory.

    They fit if they take at most an eighth of the GPU's memory and half of what is free; what was
    put there first makes room.
    """
    keys = {name: (id(array), device) for name, array in arrays.items()}
    size = sum(array.nbytes for array in arrays.values())
    if (gpu := memory_of(device)) is None:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    if not all(key in _PLACED for key in keys.values()):
        whole, free = gpu.total, gpu.total - gpu.used
        if size > min(SHARE * whole, free / 2):
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        for key in [key for key in _PLACED if key not in keys.values()]:
            if size + sum(array.nbytes for array, _ in _PLACED.values()) > SHARE * whole:
                del _PLACED[key]
    for name, array in arrays.items():
        if keys[name] not in _PLACED:
            _PLACED[keys[name]] = (array, torch.from_numpy(array).to(device))
    return {name: _PLACED[key][1] for name, key in keys.items()}


def prepared_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Prepare each batch in a thread while the one before is computed on."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = thread.submit(next, batches, None)
            yield batch
