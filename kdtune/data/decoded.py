"""A data set decoded once on a node, for all runs there: one uint8 array a split.

With augmentation, view k of the training images is the array in which each image was transformed
once more, by seeds that belong to the view: epochs take turns with a few of them, and every trial
of a sweep sees the same ones.
"""

import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from kdtune.data import transforms as pixels_module
from kdtune.data.splits import ImageData, Split
from kdtune.data.transforms import augment_images, decode_images, find_unreadable
from kdtune.errors import BadImagesError
from kdtune.runtime.console import printable_path
from kdtune.runtime.seeds import derive_seed
from kdtune.storage.array_cache import ArrayCache, CacheKey, CreateArray, OnCacheProgress

AUGMENT_CHUNK_IMAGES = 256
"""Images that are augmented at once."""


TRANSFORMS_SHA256 = hashlib.sha256(inspect.getsource(pixels_module).encode()).hexdigest()
"""Changes with the code that decodes and augments."""


def drop_unreadable(
    data: ImageData,
    cache: ArrayCache | None,
    workers: int | None = None,
    on_progress: OnCacheProgress = lambda progress: None,
) -> tuple[ImageData, list[dict[str, str]]]:
    """Leave out the images that cannot be read.

    Every image is decoded to find them; a cache remembers which they were.

    Args:
        data: the images, undecoded.
        cache: keeps what was found; None keeps nothing.
        workers: threads that decode; one a core if None.
        tell: told if images are decoded.

    Returns:
        The rest, and ``split``, ``file`` and ``reason`` of each that is left out.

    Raises:
        UserError: nothing of a class, or of validation, is left.
    """
    unreadable: dict[str, dict[int, str]] = {}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        if split is None:
            continue

        def compute_readable_mask(split: Split = split) -> np.ndarray:
            readable_mask = np.ones(len(split), np.uint8)
            readable_mask[list(find_unreadable(split, workers))] = 0
            return readable_mask

        if cache is None:
            readable_mask = compute_readable_mask()
        else:
            key = {"kind": "readable", "files": split.digest, "code": TRANSFORMS_SHA256}
            key |= {"pillow": PIL.__version__, "kdtune": version("kdtune")}

            def build(names: Any, make: CreateArray, split: Split = split) -> None:
                make("sound", (len(split),), np.dtype(np.uint8))[:] = compute_readable_mask(split)

            label = f"which of {len(split):,} {name} images of {data.source} can be read"
            readable_mask = cache.open_arrays(label, key, {"sound": {}}, build, on_progress)[
                "sound"
            ]
        indices = np.flatnonzero(readable_mask == 0).tolist()
        unreadable_reasons = find_unreadable(
            Split([split.images[i] for i in indices], [0] * len(indices)), workers
        )
        unreadable[name] = {indices[n]: reason for n, reason in unreadable_reasons.items()}
    dropped = [
        {"split": name, "file": printable_path(getattr(data, name).images[i]), "reason": reason}
        for name, reasons in unreadable.items()
        for i, reason in reasons.items()
    ]
    return (data.without(unreadable) if dropped else data), dropped


def view_seed(view: int, seed: int) -> int:
    """The seed with which a view's first image is augmented; `seed` fixes all views."""
    return derive_seed(seed, "view", view)


class DecodedDataset:
    """The pixels of a data set at one size.

    Args:
        data: the images, undecoded.
        image_size: height and width, in pixels.
        cache: where arrays are kept; without one they are decoded in memory, for this process.
        workers: threads that decode; one a core if None.
    """

    def __init__(
        self,
        data: ImageData,
        image_size: int,
        cache: ArrayCache | None,
        workers: int | None = None,
    ):
        self.data, self.image_size, self.cache, self.workers = data, image_size, cache, workers
        self._decoded: dict[str, np.ndarray] = {}

    def pixels(
        self, name: str, on_progress: OnCacheProgress = lambda progress: None
    ) -> np.ndarray:
        """The images of a split as they are.

        Args:
            name: ``train``, ``validation`` or ``test``.
            tell: told if they are built.

        Returns:
            uint8 [N, 3, image_size, image_size].

        Raises:
            BadImagesError: files are no readable images; all of the split are named.
            UserError: the cache cannot be written.
        """
        split = self.split(name)
        if self.cache is None:
            if name not in self._decoded:
                self._decoded[name] = decode_images(split, self.image_size, self.workers)
            return self._decoded[name]
        return self._open_array(
            self.describe_array(name),
            self.cache_key(name),
            split,
            lambda pixels: decode_images(split, self.image_size, self.workers, out=pixels),
            on_progress,
        )

    def decode_train_validation(
        self, on_progress: OnCacheProgress = lambda progress: None
    ) -> None:
        """Decode the images of training and validation, unless that was done before.

        Raises:
            BadImagesError: files of either are no readable images; all of them are named.
        """
        failures = []
        for name in ("validation", "train"):
            try:
                self.pixels(name, on_progress)
            except BadImagesError as error:
                failures += error.failures
        if failures:
            raise BadImagesError(failures)

    def augmented_view(
        self, view: int, seed: int, on_progress: OnCacheProgress = lambda progress: None
    ) -> np.ndarray:
        """View `view` of the training images, from 0; it needs a cache. Otherwise as `pixels`.

        Image i is what `augment_images` makes of it with the seed `first_seed(view, seed)` + i.
        """
        unaugmented = self.pixels("train", on_progress)
        base_seed = view_seed(view, seed)

        def build(pixels: np.ndarray) -> None:
            for start in range(0, len(unaugmented), AUGMENT_CHUNK_IMAGES):
                images = torch.from_numpy(unaugmented[start : start + AUGMENT_CHUNK_IMAGES])
                seeds = range(base_seed + start, base_seed + start + len(images))
                pixels[start : start + AUGMENT_CHUNK_IMAGES] = augment_images(
                    images, seeds
                ).numpy()

        label = self.describe_array("train", view)
        return self._open_array(
            label, self.cache_key("train", view, seed), self.data.train, build, on_progress
        )

    def _open_array(
        self,
        label: str,
        key: CacheKey,
        split: Split,
        fill: Callable[[np.ndarray], object],
        on_progress: OnCacheProgress,
    ) -> np.ndarray:
        def build(names: Any, make: CreateArray) -> None:
            fill(make("pixels", self._shape(split), np.dtype(np.uint8)))

        assert self.cache is not None
        return self.cache.open_arrays(label, key, {"pixels": {}}, build, on_progress)["pixels"]

    def cache_key(self, name: str, view: int | None = None, seed: int = 0) -> dict[str, Any]:
        """All that makes an array of pixels; without a view, of the images as they are."""
        key = {
            "kind": "pixels",
            "files": self.split(name).digest,
            "image_size": self.image_size,
            "pillow": PIL.__version__,
            "kdtune": version("kdtune"),
            "code": TRANSFORMS_SHA256,
        }
        if view is None:
            return key
        library_versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        return {**key, "view": view, "seed": seed, **library_versions}

    def describe_array(self, name: str, view: int | None = None) -> str:
        """Which pixels these are, for people."""
        view_suffix = f", view {view + 1}" if view is not None else ""
        images_text = f"{len(self.split(name)):,} {name} images of {self.data.source}"
        return f"{images_text} at {self.image_size} px{view_suffix}"

    def split(self, name: str) -> Split:
        """A split of the data by its name; the data must have it."""
        split = getattr(self.data, name)
        assert isinstance(split, Split)
        return split

    def _shape(self, split: Split) -> tuple[int, int, int, int]:
        return (len(split), 3, self.image_size, self.image_size)

    def array_bytes(self, name: str) -> int:
        """Size of a split's array."""
        return int(np.prod(self._shape(self.split(name))))
