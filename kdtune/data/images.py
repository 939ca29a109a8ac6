"""Find images and split them: image folders of either form, and the built-in digits.

Nothing is decoded here. A folder has `train/`, and may have `val/` and `test/`, each with a folder
a class; or it is one folder of classes, split 70/15/15. Hidden folders and files without an
image's suffix are passed over, as torchvision's ImageFolder does; links are followed, but not in
circles.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdtune.errors import UserError
from kdtune.files import shown

SPLIT_SEED = 0
"""Splits never depend on a run's seed: every run sees the same images."""

HELD_OUT = 0.15
"""Share of a class's images that is cut for validation, and for test."""

VALIDATION_NAMES = ("val", "valid", "validation")

GROUPS = "groups.csv"
"""File of a data folder that says which test images belong together."""

Image = Path | np.ndarray
"""A file, or pixels uint8 [H, W] or [H, W, 3]."""


@dataclass(frozen=True)
class Split:
    """The images of one split, undecoded."""

    images: Sequence[Image]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Changes when a file is added, removed, moved, or written again."""
        digest = hashlib.sha256()
        for image in self.images:
            if isinstance(image, Path):
                entry = f"{image.absolute()}\t{_size(image)}\t{_size(image, 'st_mtime_ns')}\n"
                digest.update(entry.encode(errors="surrogateescape"))
            else:
                digest.update(f"{image.shape}\n".encode() + image.tobytes())
        return digest.hexdigest()

    def without(self, indices: Collection[int]) -> "Split":
        """The same split without some images."""
        kept = [i for i in range(len(self)) if i not in indices]
        return Split([self.images[i] for i in kept], [self.labels[i] for i in kept])


def _size(path: Path, what: str = "st_size") -> int:
    """Size in bytes, or time of change; -1 of a link that leads nowhere."""
    try:
        return getattr(path.stat(), what)
    except OSError:
        return -1


@dataclass(frozen=True)
class ImageData:
    """A data set: its classes and its splits; `test` is None where there is none.

    Attributes:
        source: the folder, or the name of a built-in set.
        fingerprint: changes when a file of training or validation is added, removed, renamed,
            resized or moved between them; a file's content is represented by its size in bytes.
        test_fingerprint: the same of the test images; empty without any.
    """

    source: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    fingerprint: str
    test_fingerprint: str

    def summary(self) -> dict[str, object]:
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

    def without(self, bad: Mapping[str, Collection[int]]) -> "ImageData":
        """The same data without some images, given by their index in each split.

        Raises:
            UserError: no training image of a class is left, or no validation image.
        """
        splits: dict[str, Split] = {
            name: getattr(self, name).without(indices) for name, indices in bad.items()
        }
        data = replace(self, **splits)  # type: ignore[arg-type]
        for label, name in enumerate(self.classes):
            if label not in data.train.labels:
                raise UserError(f"No training image of the class '{shown(name)}' can be read.")
        if not len(data.validation):
            raise UserError("No validation image can be read.")
        return _fingerprinted(data, Path(self.source))


def find_images(data_dir: str) -> ImageData:
    """Find the images of a folder or of a built-in data set, and split them.

    Args:
        data_dir: a folder's path, or a key of `BUILT_IN` if no folder has that name.

    Raises:
        UserError: the folder is missing, a class is empty, or the splits' classes disagree.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        if data_dir in BUILT_IN:
            return BUILT_IN[data_dir]()
        raise UserError(
            f"There is no folder {data_dir}; give an ImageFolder, or one of the built-in sets: "
            f"{', '.join(BUILT_IN)}."
        )
    _check_names(root)
    if (root / "train").is_dir():
        classes, train = _scan(root / "train")
        validation = _scan_as(root / "val", classes) if (root / "val").is_dir() else None
        test = _scan_as(root / "test", classes) if (root / "test").is_dir() else None
        if validation is None:
            train, validation = _cut(train)
    else:
        classes, everything = _scan(root)
        everything, test = _cut(everything)
        train, validation = _cut(everything, HELD_OUT / (1 - HELD_OUT))
    return _fingerprinted(ImageData(str(root), classes, train, validation, test, "", ""), root)


def _check_names(root: Path) -> None:
    """Refuse folders that look like splits but would be taken for classes or passed over."""
    splits = {"train": "train", "test": "test", **dict.fromkeys(VALIDATION_NAMES, "val")}
    names = sorted(f.name for f in root.iterdir() if f.is_dir())
    for name in names:
        split = splits.get(name.lower())
        if split and (name != split or "train" not in names):
            raise UserError(
                f"{root / name} looks like a split: splits are folders named train, val and test "
                "(train at least), each with a folder a class."
            )


def _scan(folder: Path) -> tuple[tuple[str, ...], Split]:
    classes = tuple(
        sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    )
    if len(classes) < 2:
        raise UserError(
            f"{folder} must hold at least two folders, one a class; it holds {len(classes)}."
        )
    return classes, _scan_as(folder, classes)


def _scan_as(folder: Path, classes: tuple[str, ...]) -> Split:
    found = {f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")}
    if unknown := sorted(found - set(classes)):
        raise UserError(
            f"{folder} has the class '{unknown[0]}', which the training images lack; "
            "every class must be in train."
        )
    index = {name: i for i, name in enumerate(classes) if name in found}
    samples = [
        (path, label) for name, label in index.items() for path in _image_files(folder / name)
    ]
    if empty := sorted(set(index.values()) - {label for _, label in samples}):
        raise UserError(
            f"The class folder {shown(folder / classes[empty[0]])} holds no images "
            f"({', '.join(IMG_EXTENSIONS)}); fill it or remove it."
        )
    return Split([path for path, _ in samples], [label for _, label in samples])


def _image_files(folder: Path) -> Iterator[Path]:
    """All images in a class folder, at any depth, in order of their paths."""

    def refuse(error: OSError) -> None:
        raise UserError(f"The folder {shown(error.filename)} cannot be read: {error.strerror}.")

    found = []
    for place, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        above = {os.path.realpath(place), *map(os.path.realpath, Path(place).parents)}
        below[:] = [n for n in below if os.path.realpath(os.path.join(place, n)) not in above]
        found += [(place, name) for name in names if name.lower().endswith(tuple(IMG_EXTENSIONS))]
    return (Path(place, name) for place, name in sorted(found))


def _cut(split: Split, share: float = HELD_OUT) -> tuple[Split, Split]:
    """Cut a share of each class, always the same images; every class keeps at least one.

    scikit-learn's stratified split is not used: it refuses classes of very few images.
    """
    labels = np.asarray(split.labels)
    random = np.random.default_rng(SPLIT_SEED)
    taken = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        taken[members[: min(round(share * len(members)), len(members) - 1)]] = True
    if not taken.any():
        raise UserError(
            f"{len(labels)} training images are too few to cut {share:.0%} of each class for "
            "validation; add images, or a val/ folder."
        )

    def pick(mask: np.ndarray) -> Split:
        return Split(
            [split.images[int(i)] for i in np.flatnonzero(mask)], [int(x) for x in labels[mask]]
        )

    return pick(~taken), pick(taken)


def groups_of_test(data: ImageData) -> list[str] | None:
    """Which test images belong together, since they show the same patient, scene or video.

    A folder may say it in `GROUPS`: a line ``file,group`` an image, with the file's path in
    the folder.

    Returns:
        The group of each test image; None where the data do not say.

    Raises:
        UserError: the file cannot be read, a test image is missing in it, or all are one group.
    """
    root = Path(data.source)
    path = root / GROUPS
    if data.test is None or not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            known = {row["file"]: row["group"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} must be a CSV file with the columns file and group.") from None
    names = [str(image.relative_to(root)) for image in data.test.images if isinstance(image, Path)]
    for name in names:
        if not known.get(name):
            raise UserError(f"{path} has no group for the test image {shown(name)}.")
    groups = [known[name] for name in names]
    if len(set(groups)) < 2:
        raise UserError(f"{path} has one group for all test images; two are the least.")
    return groups


def _fingerprinted(data: ImageData, root: Path) -> ImageData:
    return replace(
        data,
        fingerprint=_fingerprint(root, data.train, data.validation),
        test_fingerprint=_fingerprint(root, data.test) if data.test else "",
    )


def _fingerprint(root: Path, *splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(b"split\n")
        for image, label in zip(split.images, split.labels, strict=True):
            if isinstance(image, Path):
                entry = f"{image.relative_to(root)}\t{_size(image)}\t{label}\n"
                digest.update(entry.encode(errors="surrogateescape"))
            else:
                digest.update(image.tobytes() + bytes([label]))
    return digest.hexdigest()


def _digits() -> ImageData:
    """1,797 handwritten digits, 8×8 grey (scikit-learn's copy of the UCI set, CC BY 4.0)."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    everything, test = _cut(Split(list(pixels), [int(x) for x in digits.target]))
    train, validation = _cut(everything, HELD_OUT / (1 - HELD_OUT))
    classes = tuple(str(name) for name in digits.target_names)
    return _fingerprinted(ImageData("digits", classes, train, validation, test, "", ""), Path())


BUILT_IN: dict[str, Callable[[], ImageData]] = {"digits": _digits}
"""Data sets that need no folder."""
