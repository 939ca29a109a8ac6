"""Splits of an image data set: training, validation and test, with a fingerprint of each."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdtune.data.datasets import ImageSource
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path

SPLIT_SEED = 0
"""Splits never depend on a run's seed: every run sees the same images."""


@dataclass(frozen=True)
class Split:
    """The images of one split, undecoded."""

    images: Sequence[ImageSource]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Changes when a file is added, removed, moved, or written again."""
        digest = hashlib.sha256()
        for image in self.images:
            if isinstance(image, Path):
                entry = f"{image.absolute()}\t{_file_stat(image)}\t{_file_stat(image, 'st_mtime_ns')}\n"
                digest.update(entry.encode(errors="surrogateescape"))
            else:
                digest.update(f"{image.shape}\n".encode() + image.tobytes())
        return digest.hexdigest()

    def without(self, indices: Collection[int]) -> "Split":
        """The same split without some images."""
        remaining = [i for i in range(len(self)) if i not in indices]
        return self.select(remaining)

    def select(self, indices: Iterable[int]) -> "Split":
        """Some images of the split, in the order given."""
        chosen = list(indices)
        return Split([self.images[i] for i in chosen], [self.labels[i] for i in chosen])

    def subset(self, count: int | None, name: str) -> "Split":
        """So many images, of each class its share and one at least; always the same ones, and
        those of a smaller count among those of a larger; all if `count` is None.

        Raises:
            UserError: the split, which a message calls `name`, has not so many, or more classes.
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
        return self.select(int(i) for i in np.sort(np.argsort(rank, kind="stable")[:count]))


def _file_stat(path: Path, attribute: str = "st_size") -> int:
    """Size in bytes, or time of change; -1 of a link that leads nowhere."""
    try:
        return getattr(path.stat(), attribute)
    except OSError:
        return -1


@dataclass(frozen=True)
class ImageData:
    """A data set: its classes and its splits; `test` is None where there is none.

    Attributes:
        source: the folder, or the name of a data set.
        root: the folder from which files are named.
        fingerprint: changes when a file of training or validation is added, removed, renamed,
            resized or moved between them; a file's content is represented by its size in bytes.
        test_fingerprint: the same of the test images; empty without any.
    """

    source: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    fingerprint: str
    test_fingerprint: str

    def summary(self) -> dict[str, Any]:
        """Counts and fingerprint as plain values, for the log."""
        return {
            "classes": list(self.classes),
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": len(self.test) if self.test else 0,
            "fingerprint": self.fingerprint,
            "test_fingerprint": self.test_fingerprint,
        }

    def without_test(self) -> "ImageData":
        """The same data for those who may not see the test images."""
        return replace(self, test=None, test_fingerprint="")

    def without(self, indices_by_split: Mapping[str, Collection[int]]) -> "ImageData":
        """The same data without some images, given by their index in each split.

        Raises:
            UserError: no training image of a class is left, or no validation image.
        """
        splits: dict[str, Split] = {
            name: getattr(self, name).without(indices)
            for name, indices in indices_by_split.items()
        }
        data = replace(self, **splits)  # type: ignore[arg-type]
        for label, name in enumerate(self.classes):
            if label not in data.train.labels:
                raise UserError(
                    f"No training image of the class '{printable_path(name)}' can be read."
                )
        if not len(data.validation):
            raise UserError("No validation image can be read.")
        return with_fingerprints(data)


def with_fingerprints(data: ImageData) -> ImageData:
    return replace(
        data,
        fingerprint=_compute_fingerprint(data.root, data.train, data.validation),
        test_fingerprint=_compute_fingerprint(data.root, data.test) if data.test else "",
    )


def _compute_fingerprint(root: Path, *splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(b"split\n")
        for image, label in zip(split.images, split.labels, strict=True):
            if isinstance(image, Path):
                entry = f"{image.relative_to(root)}\t{_file_stat(image)}\t{label}\n"
                digest.update(entry.encode(errors="surrogateescape"))
            else:
                digest.update(image.tobytes() + bytes([label]))
    return digest.hexdigest()
