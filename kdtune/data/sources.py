"""Images as data sets have them, not decoded: files, parts of files, arrays; with their labels."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdtune.errors import UserError
from kdtune.runtime.console import printable_path


@dataclass(frozen=True)
class PackedImage:
    """An encoded image inside a file, such as a tar archive or a table.

    Attributes:
        file: contains the image.
        name: of the image in the file.
        size: bytes of the image, or of the part of the file that contains it.
    """

    file: Path
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    @abstractmethod
    def read(self) -> bytes:
        """Return the encoded image."""


ImageSource = Path | PackedImage | np.ndarray
"""An image: encoded, or pixels uint8 [H, W] or [H, W, C] with C of 1, 3 or 4 (RGBA)."""

Samples = tuple[Sequence[ImageSource], Sequence[int]]
"""Images, undecoded, and their labels."""

LabelledImages = list[tuple[ImageSource, str]]
"""Images with the names of their classes."""


@dataclass(frozen=True)
class NamedDataset:
    """A data set with the splits that it has; `root` holds the images, if they are files.

    Attributes:
        left_out: what is left out, such as files of a kind, with counts.
        cuts_test: cut a test split from train if there is none.
    """

    classes: tuple[str, ...]
    root: Path
    train: Samples
    validation: Samples | None = None
    test: Samples | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    cuts_test: bool = True


SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Usual names of splits."""


def label_images(
    source: str,
    root: Path,
    splits: Mapping[str, LabelledImages],
    left_out: Counter[str],
    classes: Iterable[str] = (),
) -> NamedDataset:
    """Return a data set of images with class names.

    Args:
        source: the data, for messages.
        root: folder of the images.
        splits: images by split; a single one counts as data that have no splits.
        left_out: what is left out, with counts.
        classes: their order; those of training images alone count. Sorted if not given.
    """
    trained = {label for _, label in splits["train"]}
    names = [name for name in classes if name in trained] or _sort_labels(trained)
    if len(names) < 2:
        raise UserError(
            f"{source} must have training images of at least two classes; it has "
            f"{f'only {printable_path(names[0])}' if names else 'none'}."
        )
    numbers = {name: i for i, name in enumerate(names)}
    samples: dict[str, Samples] = {}
    for split, images in splits.items():
        if unknown := sorted({label for _, label in images} - trained):
            raise UserError(
                f"{source}: {split} has the class '{printable_path(unknown[0])}', which the "
                "training images lack; every class must be in train."
            )
        if images:
            samples[split] = [i for i, _ in images], [numbers[label] for _, label in images]
    validation, test = samples.get("validation"), samples.get("test")
    return NamedDataset(
        tuple(names), root, samples["train"], validation, test, +left_out, len(splits) == 1
    )


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return in words what is left out of a data set.

    >>> describe_left_out({"files ending in .txt": 1200, "hidden folders": 1})
    'left out: files ending in .txt (1,200), hidden folders (1)'
    """
    kinds = [f"{kind} ({count:,})" for kind, count in left_out.items() if count]
    return f"left out: {', '.join(kinds) or 'nothing'}"


def _sort_labels(labels: Iterable[str]) -> list[str]:
    """Sort labels as numbers if all of them are.

    >>> _sort_labels(["10", "9"]), _sort_labels(["b", "10"])
    (['9', '10'], ['10', 'b'])
    """
    ordered = sorted(labels)
    return sorted(ordered, key=int) if all(label.isdecimal() for label in ordered) else ordered
