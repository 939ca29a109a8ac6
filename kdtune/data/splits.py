"""Splits of an image data set: training, validation and test, with their fingerprints."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdtune.data.datasets import ImageSource
from kdtune.errors import UserError

SPLIT_SEED = 0
"""Seed of all random splits; it is not the run's, so every run sees the same images."""


@dataclass(frozen=True)
class Split:
    """The images of one split, undecoded, and their class indices."""

    images: Sequence[ImageSource]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Hash that changes when a file is added, removed, moved or written again."""
        digest = hashlib.sha256()
        for image in self.images:
            if isinstance(image, Path):
                size, modified = _size_and_time(image)
                entry = f"{image.absolute()}\t{size}\t{modified}\n"
                digest.update(entry.encode(errors="surrogateescape"))
            else:
                digest.update(f"{image.shape}\n".encode() + image.tobytes())
        return digest.hexdigest()

    def without(self, indices: Collection[int]) -> "Split":
        """Return the split without some images."""
        return self.select(i for i in range(len(self)) if i not in indices)

    def select(self, indices: Iterable[int]) -> "Split":
        """Return some images of the split, in the order of the indices."""
        chosen = list(indices)
        return Split([self.images[i] for i in chosen], [self.labels[i] for i in chosen])

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


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return bytes and time of change in ns of a file; -1 of a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ImageData:
    """An image data set; in its fingerprints, paths are relative to `root`."""

    source: str  # the folder, or the name of a data set
    root: Path
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        splits = {"train": self.train, "validation": self.validation}
        return splits | ({"test": self.test} if self.test is not None else {})

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
                if isinstance(image, Path):
                    size, _ = _size_and_time(image)
                    entry = f"{image.relative_to(self.root)}\t{size}\t{label}\n"
                    digest.update(entry.encode(errors="surrogateescape"))
                else:
                    digest.update(image.tobytes() + bytes([label]))
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return counts and fingerprints as plain values, for the log."""
        return {
            "classes": list(self.classes),
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": len(self.test) if self.test else 0,
            "fingerprint": self.fingerprint,
            "test_fingerprint": self.test_fingerprint,
            "train_class_counts": self._class_counts(self.train),
            "validation_class_counts": self._class_counts(self.validation),
        }

    def _class_counts(self, split: Split) -> list[int]:
        counts: list[int] = np.bincount(split.labels, minlength=len(self.classes)).tolist()
        return counts

    def without_test(self) -> "ImageData":
        """Return the data without the test images."""
        return replace(self, test=None)
