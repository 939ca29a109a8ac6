"""Splits of an image data set: training, validation and test, with their fingerprints."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdtune.data.sources import ImageSource, PackedImage, describe_left_out
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path

SPLIT_SEED = 0
"""Seed of all random splits; it is not the run's, so every run sees the same images."""


class Rendering(NamedTuple):
    """Rules by which images that are not opaque RGB of 8 bits become so.

    Attributes:
        background: colour on which transparent images are laid.
        bit_depth: bits of 16-bit images that are used; their largest number becomes white.
    """

    background: str = "white"
    bit_depth: int = 16


@dataclass(frozen=True)
class Split:
    """The images of one split, undecoded, and their class indices."""

    images: Sequence[ImageSource]
    labels: Sequence[int]
    rendering: Rendering = Rendering()

    def __len__(self) -> int:
        return len(self.labels)

    def class_counts(self, num_classes: int) -> list[int]:
        """Return the number of images of each class."""
        counts: list[int] = np.bincount(self.labels, minlength=num_classes).tolist()
        return counts

    @cached_property
    def digest(self) -> str:
        """Hash that changes when a file is added, removed, moved or written again."""
        digest = hashlib.sha256(f"{self.rendering}\n".encode())
        for image in self.images:
            if isinstance(image, np.ndarray):
                digest.update(f"{image.dtype} {image.shape}\n".encode() + image.tobytes())
                continue
            file = image.file if isinstance(image, PackedImage) else image
            name = f"{image.name}\t{image.size}" if isinstance(image, PackedImage) else ""
            size, modified = _size_and_time(file)
            entry = f"{os.path.abspath(file)}\t{size}\t{modified}\t{name}\n"
            digest.update(entry.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def name_of(self, index: int) -> str:
        """Return the file of an image, or its number if it is an array."""
        image = self.images[index]
        return f"image {index}" if isinstance(image, np.ndarray) else printable_path(str(image))

    def without(self, indices: Collection[int]) -> "Split":
        """Return the split without some images."""
        return self.select(i for i in range(len(self)) if i not in indices)

    def select(self, indices: Iterable[int]) -> "Split":
        """Return some images of the split, in the order of the indices."""
        chosen = list(indices)
        images = [self.images[i] for i in chosen]
        return replace(self, images=images, labels=[self.labels[i] for i in chosen])

    def subset(self, count: int | None, name: str) -> "Split":
        """Return a fixed stratified subset, with at least one image of each class.

        A smaller subset is a part of every larger one.

        Args:
            count: number of images; None returns all.
            name: the split's name, for messages.
        """
        if count is None:
            return self
        labels, rng = np.asarray(self.labels), np.random.default_rng(SPLIT_SEED)
        rank = np.empty(len(labels))
        classes = np.unique(labels)
        for label in classes:
            members = rng.permutation(np.flatnonzero(labels == label))
            rank[members] = (np.arange(len(members)) + 0.5) / len(members)
            rank[members[0]] = -1  # the first of each class come before all others
        if not len(classes) <= count <= len(labels):
            raise UserError(
                f"{name}_images cannot be {count}: there are {len(labels):,} {name} images of "
                f"{len(classes)} classes; give a number between these."
            )
        return self.select(np.sort(np.argsort(rank, kind="stable")[:count]).tolist())


def _label_bytes(label: int) -> bytes:
    number = int(label)  # a plug-in's may be NumPy's
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "little")


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return bytes and time of change in ns of a file; -1 of a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ImageData:
    """An image data set; in its fingerprints, paths are relative to `root`.

    Attributes:
        source: the data as the user named them.
        left_out: what is left out, with counts.
        cut_splits: splits that were cut from the training images.
    """

    source: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    left_out: Mapping[str, int] = field(default_factory=dict)
    cut_splits: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        splits = {"train": self.train, "validation": self.validation}
        return splits | ({"test": self.test} if self.test is not None else {})

    @property
    def rendering(self) -> Rendering:
        """The rules by which the images of all splits are decoded."""
        return self.train.rendering

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names, sizes and labels of the files of training and validation."""
        return self._hash_splits(self.train, self.validation)

    @cached_property
    def test_fingerprint(self) -> str:
        """Hash of the names, sizes and labels of the test files; empty if there are none."""
        return self._hash_splits(self.test) if self.test else ""

    def _hash_splits(self, *splits: Split) -> str:
        digest = hashlib.sha256()
        for split in splits:
            digest.update(b"split\n")
            for image, label in zip(split.images, split.labels, strict=True):
                if isinstance(image, np.ndarray):
                    digest.update(image.tobytes() + _label_bytes(label))
                    continue
                size = image.size if isinstance(image, PackedImage) else _size_and_time(image)[0]
                entry = f"{self.relative_name(image)}\t{size}\t{label}\n"
                digest.update(entry.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def relative_name(self, image: Path | PackedImage) -> str:
        """Return a name of an image that does not depend on where the data are."""
        if isinstance(image, PackedImage):
            return f"{image.file.name}/{image.name}"
        if image.is_relative_to(self.root):
            return str(image.relative_to(self.root))
        return os.path.relpath(image, self.root)

    def summary(self) -> dict[str, Any]:
        """Return counts and fingerprints as plain values, for the log."""
        return {
            "classes": list(self.classes),
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": len(self.test) if self.test else 0,
            "fingerprint": self.fingerprint,
            "test_fingerprint": self.test_fingerprint,
            "train_class_counts": self.train.class_counts(len(self.classes)),
            "validation_class_counts": self.validation.class_counts(len(self.classes)),
        }

    def without_test(self) -> "ImageData":
        """Return the data without the test images."""
        return replace(self, test=None)

    def with_rendering(self, rendering: Rendering) -> "ImageData":
        """Return the data with images that are decoded in a certain way."""
        splits = self.train, self.validation, self.test
        train, validation, test = (s and replace(s, rendering=rendering) for s in splits)
        assert train is not None and validation is not None
        return replace(self, train=train, validation=validation, test=test)

    def describe(self) -> Iterator[str]:
        """Yield at most three lines: images by split, the largest class, what is left out."""
        total = sum(map(len, self.splits.values()))
        counts = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        cut = " and ".join(self.cut_splits)
        origin = f"; {cut} cut from train" if cut else ""
        missing = "; there are no test images" if self.test is None else ""
        yield (
            f"{printable_path(self.source)}: {total:,} images of {len(self.classes)} classes: "
            f"{counts}{origin}{missing}"
        )
        class_counts = self.train.class_counts(len(self.classes))
        ranked = sorted(zip(class_counts, self.classes, strict=True))
        (fewest, smallest), (most, largest) = ranked[0], ranked[-1]
        share = f"{100 * most / len(self.train):.1f} % of the train images"
        rest = f"{printable_path(smallest)} has the fewest ({fewest:,})"
        yield f"the largest class, {printable_path(largest)}, has {share}; {rest}"
        if any(self.left_out.values()):
            yield describe_left_out(self.left_out)
