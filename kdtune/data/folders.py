"""Find images and split them: image folders of either form, and data sets by name.

Nothing is decoded here. A folder has `train/`, and may have `val/` and `test/`, each with a folder
a class; or it is one folder of classes, split 70/15/15. Hidden folders and files without an
image's suffix are passed over, as torchvision's ImageFolder does; links are followed, but not in
circles. Official splits stay as they are; what lacks is cut as it is for folders.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdtune.config.names import require_data
from kdtune.data.datasets import load_named_dataset
from kdtune.data.splits import SPLIT_SEED, ImageData, Split, with_fingerprints
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path

HELD_OUT_FRACTION = 0.15
"""Share of a class's images that is cut for validation, and for test."""

VALIDATION_FOLDER_NAMES = ("val", "valid", "validation")

GROUPS_FILE = "groups.csv"
"""File of a data folder that says which test images belong together."""


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
        data_root: where named data sets are; see `kdtune.data.datasets.load_named_dataset`.
        train_images, validation_images, test_images: so many of a split, see `Split.fewer`; all
            if None.

    Raises:
        UserError: the folder is missing, a class is empty, the splits' classes disagree, a data
            set cannot be had, or there are not so many images.
    """
    require_data(data_dir)
    root = Path(data_dir).expanduser()
    if root.is_dir():
        source, (classes, train, validation, test) = str(root), _find_folder_splits(root)
    else:
        dataset = load_named_dataset(data_dir, data_root)
        source, root, classes = data_dir, dataset.root, dataset.classes
        train = Split(*dataset.train)
        validation, test = (
            Split(*samples) if samples is not None else None
            for samples in (dataset.validation, dataset.test)
        )
        if test is None:
            train, validation, test = _hold_out_validation_and_test(train)
    if validation is None:
        train, validation = _hold_out(train)
    if test_images is not None and test is None:
        raise UserError(f"test_images is {test_images}, but {data_dir} has no test images.")
    return with_fingerprints(
        ImageData(
            source,
            root,
            classes,
            train.subset(train_images, "train"),
            validation.subset(validation_images, "validation"),
            test.subset(test_images, "test") if test is not None else None,
            "",
            "",
        )
    )


def _find_folder_splits(root: Path) -> tuple[tuple[str, ...], Split, Split | None, Split | None]:
    """Classes, training, validation and test images of a folder, as far as it has them."""
    _check_folder_names(root)
    if (root / "train").is_dir():
        classes, train = _scan_classes(root / "train")
        validation = _scan_images(root / "val", classes) if (root / "val").is_dir() else None
        test = _scan_images(root / "test", classes) if (root / "test").is_dir() else None
        return classes, train, validation, test
    classes, all_images = _scan_classes(root)
    return classes, *_hold_out_validation_and_test(all_images)


def _check_folder_names(root: Path) -> None:
    """Refuse folders that look like splits but would be taken for classes or passed over."""
    expected_names = {
        "train": "train",
        "test": "test",
        **dict.fromkeys(VALIDATION_FOLDER_NAMES, "val"),
    }
    names = sorted(f.name for f in root.iterdir() if f.is_dir())
    for name in names:
        split = expected_names.get(name.lower())
        if split and (name != split or "train" not in names):
            raise UserError(
                f"{root / name} looks like a split: splits are folders named train, val and test "
                "(train at least), each with a folder a class."
            )


def _scan_classes(folder: Path) -> tuple[tuple[str, ...], Split]:
    classes = tuple(
        sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    )
    if len(classes) < 2:
        raise UserError(
            f"{folder} must hold at least two folders, one a class; it holds {len(classes)}."
        )
    return classes, _scan_images(folder, classes)


def _scan_images(folder: Path, classes: tuple[str, ...]) -> Split:
    class_folders = {f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")}
    if unknown := sorted(class_folders - set(classes)):
        raise UserError(
            f"{folder} has the class '{unknown[0]}', which the training images lack; "
            "every class must be in train."
        )
    labels_by_class = {name: i for i, name in enumerate(classes) if name in class_folders}
    samples = [
        (path, label)
        for name, label in labels_by_class.items()
        for path in _list_image_files(folder / name)
    ]
    if empty := sorted(set(labels_by_class.values()) - {label for _, label in samples}):
        raise UserError(
            f"The class folder {printable_path(folder / classes[empty[0]])} holds no images "
            f"({', '.join(IMG_EXTENSIONS)}); fill it or remove it."
        )
    return Split([path for path, _ in samples], [label for _, label in samples])


def _list_image_files(folder: Path) -> Iterator[Path]:
    """All images in a class folder, at any depth, in order of their paths."""

    def raise_unreadable(error: OSError) -> None:
        raise UserError(
            f"The folder {printable_path(error.filename)} cannot be read: {error.strerror}."
        )

    files = []
    for directory, subdirectories, names in os.walk(
        folder, followlinks=True, onerror=raise_unreadable
    ):
        ancestors = {os.path.realpath(directory), *map(os.path.realpath, Path(directory).parents)}
        subdirectories[:] = [
            n
            for n in subdirectories
            if os.path.realpath(os.path.join(directory, n)) not in ancestors
        ]
        files += [
            (directory, name) for name in names if name.lower().endswith(tuple(IMG_EXTENSIONS))
        ]
    return (Path(directory, name) for directory, name in sorted(files))


def _hold_out(split: Split, fraction: float = HELD_OUT_FRACTION) -> tuple[Split, Split]:
    """Cut a share of each class, always the same images; every class keeps at least one.

    scikit-learn's stratified split is not used: it refuses classes of very few images.
    """
    labels = np.asarray(split.labels)
    rng = np.random.default_rng(SPLIT_SEED)
    is_held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_held_out[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
    if not is_held_out.any():
        raise UserError(
            f"{len(labels)} training images are too few to cut {fraction:.0%} of each class for "
            "validation; add images, or a val/ folder."
        )
    remaining, held_out = (
        split.select(map(int, np.flatnonzero(mask))) for mask in (~is_held_out, is_held_out)
    )
    return remaining, held_out


def _hold_out_validation_and_test(images: Split) -> tuple[Split, Split, Split]:
    """Training, validation and test images of data without splits."""
    images, test = _hold_out(images)
    return *_hold_out(images, HELD_OUT_FRACTION / (1 - HELD_OUT_FRACTION)), test


def load_test_groups(data: ImageData) -> list[str] | None:
    """Which test images belong together, since they show the same patient, scene or video.

    A folder may say it in `GROUPS`: a line ``file,group`` an image, with the file's path in
    the folder.

    Returns:
        The group of each test image; None where the data do not say.

    Raises:
        UserError: the file cannot be read, a test image is missing in it, or all are one group.
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
        raise UserError(f"{path} has one group for all test images; two are the least.")
    return groups
