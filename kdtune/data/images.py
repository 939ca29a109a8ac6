"""Find images and split them: image folders of either form, and data sets by name.

Nothing is decoded here. A folder has `train/`, and may have `val/` and `test/`, each with a folder
a class; or it is one folder of classes, split 70/15/15. Hidden folders and files without an
image's suffix are passed over, as torchvision's ImageFolder does; links are followed, but not in
circles. Official splits stay as they are; what lacks is cut as it is for folders.
"""

import csv
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdtune.data.named import NAMED, Image, load_named
from kdtune.errors import UserError
from kdtune.files import shown

SPLIT_SEED = 0
"""Splits never depend on a run's seed: every run sees the same images."""

HELD_OUT = 0.15
"""Share of a class's images that is cut for validation, and for test."""

VALIDATION_NAMES = ("val", "valid", "validation")

GROUPS = "groups.csv"
"""File of a data folder that says which test images belong together."""


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
        return self.part(kept)

    def part(self, indices: Iterable[int]) -> "Split":
        """Some images of the split, in the order given."""
        chosen = list(indices)
        return Split([self.images[i] for i in chosen], [self.labels[i] for i in chosen])

    def fewer(self, count: int | None, name: str) -> "Split":
        """So many images, of each class its share and one at least; always the same ones, and
        those of a smaller count among those of a larger; all if `count` is None.

        Raises:
            UserError: the split, which a message calls `name`, has not so many, or more classes.
        """
        if count is None:
            return self
        labels, random = np.asarray(self.labels), np.random.default_rng(SPLIT_SEED)
        turn = np.empty(len(labels))
        classes = np.unique(labels)
        for label in classes:
            members = random.permutation(np.flatnonzero(labels == label))
            turn[members] = (np.arange(len(members)) + 0.5) / len(members)
            turn[members[0]] = -1  # the first of each class come before all others
        if not len(classes) <= count <= len(labels):
            raise UserError(
                f"{name}_images cannot be {count}: there are {len(labels):,} {name} images of "
                f"{len(classes)} classes; give a number between these."
            )
        return self.part(int(i) for i in np.sort(np.argsort(turn, kind="stable")[:count]))


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
        return _fingerprinted(data)


def find_images(
    data_dir: str,
    data_root: str | None = None,
    train_images: int | None = None,
    validation_images: int | None = None,
    test_images: int | None = None,
) -> ImageData:
    """Find the images of a folder or of a named data set, and split them.

    Args:
        data_dir: a folder's path, or a key of `NAMED` if no folder has that name.
        data_root: where named data sets are; see `kdtune.data.named.load_named`.
        train_images, validation_images, test_images: so many of a split, see `Split.fewer`; all
            if None.

    Raises:
        UserError: the folder is missing, a class is empty, the splits' classes disagree, a data
            set cannot be had, or there are not so many images.
    """
    root = Path(data_dir).expanduser()
    if root.is_dir():
        source, (classes, train, validation, test) = str(root), _folder(root)
    elif data_dir in NAMED:
        named = load_named(data_dir, data_root)
        source, root, classes = data_dir, named.root, named.classes
        train = Split(*named.train)
        validation, test = (
            Split(*samples) if samples is not None else None
            for samples in (named.validation, named.test)
        )
        if test is None:
            train, validation, test = _cut_both(train)
    else:
        raise UserError(
            f"There is no folder {data_dir}; give an ImageFolder, or one of the data sets that "
            f"have names: {', '.join(NAMED)}."
        )
    if validation is None:
        train, validation = _cut(train)
    if test_images is not None and test is None:
        raise UserError(f"test_images is {test_images}, but {data_dir} has no test images.")
    return _fingerprinted(
        ImageData(
            source,
            root,
            classes,
            train.fewer(train_images, "train"),
            validation.fewer(validation_images, "validation"),
            test.fewer(test_images, "test") if test is not None else None,
            "",
            "",
        )
    )


def _folder(root: Path) -> tuple[tuple[str, ...], Split, Split | None, Split | None]:
    """Classes, training, validation and test images of a folder, as far as it has them."""
    _check_names(root)
    if (root / "train").is_dir():
        classes, train = _scan(root / "train")
        validation = _scan_as(root / "val", classes) if (root / "val").is_dir() else None
        test = _scan_as(root / "test", classes) if (root / "test").is_dir() else None
        return classes, train, validation, test
    classes, everything = _scan(root)
    return classes, *_cut_both(everything)


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
    kept, cut = (split.part(map(int, np.flatnonzero(mask))) for mask in (~taken, taken))
    return kept, cut


def _cut_both(everything: Split) -> tuple[Split, Split, Split]:
    """Training, validation and test images of data without splits."""
    everything, test = _cut(everything)
    return *_cut(everything, HELD_OUT / (1 - HELD_OUT)), test


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


def _fingerprinted(data: ImageData) -> ImageData:
    return replace(
        data,
        fingerprint=_fingerprint(data.root, data.train, data.validation),
        test_fingerprint=_fingerprint(data.root, data.test) if data.test else "",
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
