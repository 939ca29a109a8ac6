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
from kdtune.data.transforms import augment_images, decode, readable
from kdtune.errors import BadImagesError
from kdtune.runtime.console import shown
from kdtune.runtime.seeds import derive_seed
from kdtune.storage.array_cache import Cache, Facts, Make, Tell

CHUNK = 256
"""Images that are augmented at once."""


CODE = hashlib.sha256(inspect.getsource(pixels_module).encode()).hexdigest()
"""Changes with the code that decodes and augments."""


def leave_bad_out(
    data: ImageData,
    cache: Cache | None,
    workers: int | None = None,
    tell: Tell = lambda event: None,
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
    bad: dict[str, dict[int, str]] = {}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        if split is None:
            continue

        def judge(split: Split = split) -> np.ndarray:
            sound = np.ones(len(split), np.uint8)
            sound[list(readable(split, workers))] = 0
            return sound

        if cache is None:
            sound = judge()
        else:
            facts = {"kind": "readable", "files": split.digest, "code": CODE}
            facts |= {"pillow": PIL.__version__, "kdtune": version("kdtune")}

            def build(names: Any, make: Make, split: Split = split) -> None:
                make("sound", (len(split),), np.dtype(np.uint8))[:] = judge(split)

            what = f"which of {len(split):,} {name} images of {data.source} can be read"
            sound = cache.open(what, facts, {"sound": {}}, build, tell)["sound"]
        indices = np.flatnonzero(sound == 0).tolist()
        again = readable(Split([split.images[i] for i in indices], [0] * len(indices)), workers)
        bad[name] = {indices[n]: reason for n, reason in again.items()}
    listed = [
        {"split": name, "file": shown(getattr(data, name).images[i]), "reason": reason}
        for name, reasons in bad.items()
        for i, reason in reasons.items()
    ]
    return (data.without(bad) if listed else data), listed


def first_seed(view: int, seed: int) -> int:
    """The seed with which a view's first image is augmented; `seed` fixes all views."""
    return derive_seed(seed, "view", view)


class Views:
    """The pixels of a data set at one size.

    Args:
        data: the images, undecoded.
        image_size: height and width, in pixels.
        cache: where arrays are kept; without one they are decoded in memory, for this process.
        workers: threads that decode; one a core if None.
    """

    def __init__(
        self, data: ImageData, image_size: int, cache: Cache | None, workers: int | None = None
    ):
        self.data, self.image_size, self.cache, self.workers = data, image_size, cache, workers
        self._decoded: dict[str, np.ndarray] = {}

    def pixels(self, name: str, tell: Tell = lambda event: None) -> np.ndarray:
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
                self._decoded[name] = decode(split, self.image_size, self.workers)
            return self._decoded[name]
        return self._open(
            self.describe(name),
            self.facts(name),
            split,
            lambda pixels: decode(split, self.image_size, self.workers, out=pixels),
            tell,
        )

    def check(self, tell: Tell = lambda event: None) -> None:
        """Decode the images of training and validation, unless that was done before.

        Raises:
            BadImagesError: files of either are no readable images; all of them are named.
        """
        bad = []
        for name in ("validation", "train"):
            try:
                self.pixels(name, tell)
            except BadImagesError as error:
                bad += error.bad
        if bad:
            raise BadImagesError(bad)

    def augmented(self, view: int, seed: int, tell: Tell = lambda event: None) -> np.ndarray:
        """View `view` of the training images, from 0; it needs a cache. Otherwise as `pixels`.

        Image i is what `augment_images` makes of it with the seed `first_seed(view, seed)` + i.
        """
        plain = self.pixels("train", tell)
        first = first_seed(view, seed)

        def build(pixels: np.ndarray) -> None:
            for start in range(0, len(plain), CHUNK):
                images = torch.from_numpy(plain[start : start + CHUNK])
                seeds = range(first + start, first + start + len(images))
                pixels[start : start + CHUNK] = augment_images(images, seeds).numpy()

        what = self.describe("train", view)
        return self._open(what, self.facts("train", view, seed), self.data.train, build, tell)

    def _open(
        self,
        what: str,
        facts: Facts,
        split: Split,
        fill: Callable[[np.ndarray], object],
        tell: Tell,
    ) -> np.ndarray:
        def build(names: Any, make: Make) -> None:
            fill(make("pixels", self._shape(split), np.dtype(np.uint8)))

        assert self.cache is not None
        return self.cache.open(what, facts, {"pixels": {}}, build, tell)["pixels"]

    def facts(self, name: str, view: int | None = None, seed: int = 0) -> dict[str, Any]:
        """All that makes an array of pixels; without a view, of the images as they are."""
        facts = {
            "kind": "pixels",
            "files": self.split(name).digest,
            "image_size": self.image_size,
            "pillow": PIL.__version__,
            "kdtune": version("kdtune"),
            "code": CODE,
        }
        if view is None:
            return facts
        made_by = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        return {**facts, "view": view, "seed": seed, **made_by}

    def describe(self, name: str, view: int | None = None) -> str:
        """Which pixels these are, for people."""
        augmented = f", view {view + 1}" if view is not None else ""
        images = f"{len(self.split(name)):,} {name} images of {self.data.source}"
        return f"{images} at {self.image_size} px{augmented}"

    def split(self, name: str) -> Split:
        """A split of the data by its name; the data must have it."""
        split = getattr(self.data, name)
        assert isinstance(split, Split)
        return split

    def _shape(self, split: Split) -> tuple[int, int, int, int]:
        return (len(split), 3, self.image_size, self.image_size)

    def bytes(self, name: str) -> int:
        """Size of a split's array."""
        return int(np.prod(self._shape(self.split(name))))
