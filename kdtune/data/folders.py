"""Image folders and data sets by name: finds their images and splits them.

A folder has `train/`, and may have `val/` and `test/`, each with one folder per class; or it is
one folder of classes, which is split 70/15/15. Links are followed, but not in circles.
"""

import csv
import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdtune.config.names import require_data
from kdtune.data.datasets import load_named_dataset
from kdtune.data.splits import SPLIT_SEED, ImageData, Split
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path

GROUPS_FILE = "groups.csv"
"""File of a data folder that assigns test images to groups."""


def find_images(
    data_dir: str,
    data_root: str | None = None,
    train_images: int | None = None,
    validation_images: int | None = None,
    test_images: int | None = None,
) -> ImageData:
    """Find the images of a folder or of a named data set, and split them.

    Args:
        data_dir: a folder's path, or a key of `DATASET_NAMES` if no folder has that name.
        data_root: folder of named data sets; None: one in the node's cache.
        train_images: number of training images, see `Split.subset`; all if None.
        validation_images: number of validation images.
        test_images: number of test images.
    """
    require_data(data_dir)
    root = Path(data_dir).expanduser()
    if root.is_dir():
        source, (classes, train, validation, test) = str(root), _find_folder_splits(root)
        lacks_test = not (root / "train").is_dir()
    else:
        dataset = load_named_dataset(data_dir, data_root)
        source, root, classes = data_dir, dataset.root, dataset.classes
        train = Split(*dataset.train)
        validation = Split(*dataset.validation) if dataset.validation is not None else None
        test = Split(*dataset.test) if dataset.test is not None else None
        lacks_test = test is None
    fraction = 0.15
    if lacks_test:
        train, test = _hold_out(train, fraction)
        fraction /= 1 - fraction  # the same number for validation
    if validation is None:
        train, validation = _hold_out(train, fraction)
    if test_images is not None and test is None:
        raise UserError(f"test_images is {test_images}, but {data_dir} has no test images.")
    train = train.subset(train_images, "train")
    validation = validation.subset(validation_images, "validation")
    test = test.subset(test_images, "test") if test is not None else None
    return ImageData(source, root, classes, train, validation, test)


def _find_folder_splits(root: Path) -> tuple[tuple[str, ...], Split, Split | None, Split | None]:
    """Return classes, training, validation and test images, as far as a folder has them."""
    names = sorted(f.name for f in root.iterdir() if f.is_dir())
    splits = "train", "val", "test"
    for name in names:  # else it would be taken for a class, or skipped
        looks_like_split = name.lower() in (*splits, "valid", "validation")
        if looks_like_split and (name not in splits or "train" not in names):
            raise UserError(
                f"{root / name} looks like a split: splits are folders named train, val and test "
                "(train at least), each with a folder a class."
            )
    train_folder = root / "train" if "train" in names else root
    classes = _class_folders(train_folder)
    if (count := len(classes)) < 2:
        raise UserError(
            f"{train_folder} must hold at least two folders, one a class; it holds {count}."
        )
    train = _scan_images(train_folder, classes)
    validation = _scan_images(root / "val", classes) if "val" in names else None
    test = _scan_images(root / "test", classes) if "test" in names else None
    return classes, train, validation, test


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != "."))


def _scan_images(folder: Path, classes: tuple[str, ...]) -> Split:
    class_folders = _class_folders(folder)
    if unknown := [name for name in class_folders if name not in classes]:
        raise UserError(
            f"{folder} has the class '{unknown[0]}', which the training images lack; "
            "every class must be in train."
        )
    images: list[Path] = []
    labels: list[int] = []
    for name in class_folders:
        files = _list_image_files(folder / name)
        if not files:
            raise UserError(
                f"The class folder {printable_path(folder / name)} holds no images "
                f"({', '.join(IMG_EXTENSIONS)}); fill it or remove it."
            )
        images += files
        labels += [classes.index(name)] * len(files)
    return Split(images, labels)


def _list_image_files(folder: Path) -> list[Path]:
    """Return all images in a class folder, at any depth, in order of their paths."""

    def raise_unreadable(error: OSError) -> None:
        raise UserError(
            f"The folder {printable_path(error.filename)} cannot be read: {error.strerror}."
        )

    files = []
    tree = os.walk(folder, followlinks=True, onerror=raise_unreadable)
    for directory, subfolders, names in tree:
        ancestors = {os.path.realpath(p) for p in (Path(directory), *Path(directory).parents)}
        targets = {name: os.path.realpath(os.path.join(directory, name)) for name in subfolders}
        subfolders[:] = [name for name in subfolders if targets[name] not in ancestors]
        files += [(directory, name) for name in names if name.lower().endswith(IMG_EXTENSIONS)]
    return [Path(directory, name) for directory, name in sorted(files)]


def _hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Split off a fixed share of each class; every class keeps at least one image.

    scikit-learn's stratified split is not used: it refuses classes of very few images.
    """
    labels, rng = np.asarray(split.labels), np.random.default_rng(SPLIT_SEED)
    held_out: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label)).tolist()
        held_out += members[: min(round(fraction * len(members)), len(members) - 1)]
    if not held_out:
        raise UserError(
            f"{len(labels)} training images are too few to cut {fraction:.0%} of each class for "
            "validation; add images, or a val/ folder."
        )
    return split.without(set(held_out)), split.select(sorted(held_out))


def load_test_groups(data: ImageData) -> list[str] | None:
    """Read the group of each test image, such as a patient, scene or video, if there are groups.

    `GROUPS_FILE` of a data folder has the columns ``file``, a path in the folder, and ``group``.
    """
    root = Path(data.source)
    path = root / GROUPS_FILE
    if data.test is None or not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            group_by_file = {row["file"]: row["group"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} must be a CSV file with the columns file and group.") from None
    names = [str(image.relative_to(root)) for image in data.test.images if isinstance(image, Path)]
    for name in names:
        if not group_by_file.get(name):
            raise UserError(f"{path} has no group for the test image {printable_path(name)}.")
    groups = [group_by_file[name] for name in names]
    if len(set(groups)) < 2:
        raise UserError(f"{path} has one group for all test images; there must be at least two.")
    return groups
