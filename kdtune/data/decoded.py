"""Data sets that are decoded once per node: one uint8 array for each split.

With augmentation, a view of the training images is an array with each image transformed once.
Epochs cycle through a few views, which all trials share.
"""

import hashlib
import inspect
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
import torchvision

from kdtune.data import augmented_views, decoding, mixing, transforms
from kdtune.data.augmented_views import FillView, fill_in_processes, fill_view
from kdtune.data.batches import DeviceTensors
from kdtune.data.decoding import decode_images, find_unreadable
from kdtune.data.image_formats import heif_version
from kdtune.data.mixing import Mixing, draw_mixing, mix_in_place
from kdtune.data.splits import ImageData, Split
from kdtune.errors import BadImagesError, UserError
from kdtune.runtime.console import printable_path
from kdtune.runtime.seeds import derive_seed
from kdtune.storage.array_cache import ArrayCache, CreateArray, OnCacheProgress

DECODING_SHA256, TRANSFORMS_SHA256, MIXING_SHA256 = (
    hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    for module in (decoding, transforms, mixing)
)
"""Hashes of the code that decodes, of the code that augments, and of the code that mixes."""


def drop_unreadable(
    data: ImageData, cache: ArrayCache | None
) -> tuple[ImageData, list[dict[str, str]]]:
    """Drop the images that cannot be read, after decoding all of them.

    Args:
        data: the images, undecoded.
        cache: remembers which images cannot be read; None remembers nothing.

    Returns:
        The rest, and ``split``, ``file`` and ``reason`` of each image that was dropped.
    """
    rest: dict[str, Split] = {}
    dropped = []
    for name, split in data.splits.items():
        suspects = list(range(len(split)))
        if cache is not None:
            label = f"which of {len(split):,} {name} images of {data.source} can be read"
            suspects = _open_suspects(split, cache, label)
        reasons = find_unreadable(split.select(suspects))
        rest[name] = split.without({suspects[n] for n in reasons})
        for n, reason in reasons.items():
            file = split.name_of(suspects[n])
            dropped.append({"split": name, "file": file, "reason": reason})
    if not dropped:
        return data, []
    train, validation = rest["train"], rest["validation"]
    if lost := set(range(len(data.classes))) - set(train.labels):
        name = printable_path(data.classes[min(lost)])
        raise UserError(f"No training image of the class '{name}' can be read.")
    if not len(validation):
        raise UserError("No validation image can be read.")
    return replace(data, train=train, validation=validation, test=rest.get("test")), dropped


def _open_suspects(split: Split, cache: ArrayCache, label: str) -> list[int]:
    """Return the indices of images that could not be read when the cache was filled."""

    def build(names: object, create: CreateArray) -> None:
        mask = create("readable", (len(split),), np.dtype(np.uint8))
        mask[:] = 1
        mask[list(find_unreadable(split))] = 0

    key = {"kind": "readable", **_decoding_key(split)}
    mask = cache.open_arrays(label, key, {"readable": {}}, build)["readable"]
    return np.flatnonzero(mask == 0).tolist()


def _decoding_key(split: Split) -> dict[str, Any]:
    versions = {"pillow": PIL.__version__, "kdtune": version("kdtune")}
    versions |= heif_version(image for image in split.images if isinstance(image, Path))
    return {"files": split.digest, "code": DECODING_SHA256, **versions}


def view_seed(view: int, seed: int) -> int:
    """Return the seed that augments a view's first image.

    Args:
        view: number of the view, from 0.
        seed: fixes all views.
    """
    return derive_seed(seed, "view", view)


class View(NamedTuple):
    """The training images of some epochs, each augmented and mixed once.

    Attributes:
        number: from 0.
        seed: fixes all views; image i is augmented with the seed `view_seed(number, seed)` + i.
        augment: ``none``, or one of `kdtune.data.transforms.AUGMENTATIONS`.
        mix: ``none``, or a name for `kdtune.data.mixing.draw_mixing`.
    """

    number: int
    seed: int
    augment: str = "standard"
    mix: str = "none"

    @property
    def base_seed(self) -> int:
        return view_seed(self.number, self.seed)


@dataclass(frozen=True, eq=False)
class DecodedDataset:
    """The pixels of a data set at one size; without a cache, in memory for this process."""

    data: ImageData
    image_size: int
    cache: ArrayCache | None
    workers: int | None = None
    device_tensors: DeviceTensors = field(default_factory=DeviceTensors, init=False)
    _decoded: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    _background: list[threading.Thread] = field(default_factory=list, init=False)

    def pixels(
        self, name: str, on_progress: OnCacheProgress = lambda progress: None
    ) -> np.ndarray:
        """Return the images of a split, not augmented: uint8 [N, 3, image_size, image_size].

        Args:
            name: ``train``, ``validation`` or ``test``.
            on_progress: called when the array is built or waited for.
        """
        if self.cache is not None:
            return self._open_array(name, on_progress)
        if name not in self._decoded:
            split = self.data.splits[name]
            self._decoded[name] = decode_images(split, self.image_size, self.workers)
        return self._decoded[name]

    def decode_train_validation(self, on_progress: OnCacheProgress) -> None:
        """Decode training and validation images; name those of both that cannot be read."""
        failures = []
        for name in ("validation", "train"):
            try:
                self.pixels(name, on_progress)
            except BadImagesError as error:
                failures += error.failures
        if failures:
            raise BadImagesError(failures)

    def augmented_view(self, view: View, on_progress: OnCacheProgress) -> np.ndarray:
        """Return a view of the training images; it needs a cache.

        Args:
            view: the view.
            on_progress: called when the array is built or waited for.
        """
        self.pixels("train", on_progress)
        return self._open_array("train", on_progress, view)

    def build_view_ahead(self, view: View) -> None:
        """Build a large view in the background at low priority, if it is missing and cores idle.

        Whoever needs the view waits for it, or builds it if this failed. At most one view is built
        at a time. A process that ends drops it.
        """
        assert self.cache is not None
        _, key = self.identify_array("train", view)
        is_large = augmented_views.count_processes(len(self.data.train), self.image_size) > 0
        is_busy = any(thread.is_alive() for thread in self._background)
        if not is_large or is_busy or self.cache.contains(key):
            return
        # Opened anew: the arrays of a cache are for one thread.
        cache = ArrayCache(self.cache.folder, self.cache.max_bytes)
        fresh = DecodedDataset(self.data, self.image_size, cache, self.workers)
        build = fresh._build_on_idle_cores
        self._background[:] = [threading.Thread(target=build, args=(view,), daemon=True)]
        self._background[0].start()

    def _build_on_idle_cores(self, view: View) -> None:
        if processes := augmented_views.count_idle_cores():
            niceness = augmented_views.BACKGROUND_NICENESS
            fill = partial(fill_in_processes, processes=processes, niceness=niceness)
            with suppress(Exception):  # it happens again in the epoch that needs the view
                self._open_array("train", lambda progress: None, view, fill)

    def _open_array(
        self,
        name: str,
        on_progress: OnCacheProgress,
        view: View | None = None,
        fill: FillView = fill_view,
    ) -> np.ndarray:
        split = self.data.splits[name]
        label, key = self.identify_array(name, view)

        def build(names: object, create: CreateArray) -> None:
            shape = len(split), 3, self.image_size, self.image_size
            pixels = create("pixels", shape, np.dtype(np.uint8))
            if view is None:
                decode_images(split, self.image_size, self.workers, out=pixels)
            else:
                self._fill_view(pixels, view, fill)

        assert self.cache is not None
        return self.cache.open_arrays(label, key, {"pixels": {}}, build, on_progress)["pixels"]

    def _fill_view(self, pixels: np.ndarray, view: View, fill: FillView) -> None:
        images = self.pixels("train")
        if view.augment == "none":
            pixels[:] = images
        else:
            fill(images, pixels, view.base_seed, view.augment)
        if (pairs := self.mixing(view)) is not None:
            mix_in_place(pixels, pairs)

    def mixing(self, view: View | None) -> Mixing | None:
        """Return the pairs of a view; None if its images are not mixed."""
        if view is None or view.mix == "none":
            return None
        return draw_mixing(view.mix, len(self.data.train), self.image_size, view.base_seed)

    def identify_array(self, name: str, view: View | None = None) -> tuple[str, dict[str, Any]]:
        """Return a label for an array of pixels, and its cache key: all that determines it.

        Args:
            name: name of the split.
            view: of the training images; None: not augmented.
        """
        split = self.data.splits[name]
        label = f"{len(split):,} {name} images of {self.data.source} at {self.image_size} px"
        key = {"kind": "pixels", "image_size": self.image_size, **_decoding_key(split)}
        if view is None:
            return label, key
        key |= {"view": view._asdict(), "augmentation": TRANSFORMS_SHA256, "mixing": MIXING_SHA256}
        key |= {"torch": torch.__version__, "torchvision": torchvision.__version__}
        names = ", ".join(name for name in (view.augment, view.mix) if name != "none")
        return f"{label}, view {view.number + 1}, {names}", key

    def array_bytes(self, name: str) -> int:
        """Return the size of a split's array."""
        return len(self.data.splits[name]) * 3 * self.image_size**2
