"""Image data of all forms: finds the images and splits them."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from kdtune.config.data import DataSource
from kdtune.config.data_forms import SHARD_SUFFIX, TABLE_SUFFIXES, data_form, expand_shards
from kdtune.data.columns import GivenColumns, split_of
from kdtune.data.datasets import load_named_dataset
from kdtune.data.decoding import measure_bit_depth
from kdtune.data.hugging_face import load_hugging_face
from kdtune.data.image_files import is_hidden, list_folders
from kdtune.data.image_folders import scan_image_folder, split_folders
from kdtune.data.image_formats import is_image
from kdtune.data.sources import SPLIT_NAMES, NamedDataset
from kdtune.data.splits import SPLIT_SEED, ImageData, Rendering, Split
from kdtune.data.tables import labels_of_files, load_tables
from kdtune.data.tar_shards import load_tar_shards
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path

GROUPS_FILE = "groups.csv"
"""File of a data folder that assigns test images to groups."""

DATA_SUFFIXES = (*TABLE_SUFFIXES, SHARD_SUFFIX)


def find_images(source: DataSource | str) -> ImageData:
    """Find and split the images of a data set of any form; a name or path alone means all."""
    given = DataSource(source) if isinstance(source, str) else source
    dataset = _load_dataset(given)
    train = Split(*dataset.train)
    validation = Split(*dataset.validation) if dataset.validation is not None else None
    test = Split(*dataset.test) if dataset.test is not None else None
    if given.test_images is not None and test is None and not dataset.cuts_test:
        problem = f"but {given.data_dir} has no test images"
        raise UserError(f"test_images is {given.test_images}, {problem}.")
    fraction, cut = 0.15, []
    if test is None and dataset.cuts_test:
        train, test = _hold_out(train, fraction)
        fraction /= 1 - fraction  # the same number for validation
        cut.append("test")
    if validation is None:
        train, validation = _hold_out(train, fraction)
        cut.insert(0, "validation")
    rendering = Rendering(given.background, given.bit_depth or measure_bit_depth(train))
    data = ImageData(
        given.data_dir,
        dataset.root,
        dataset.classes,
        train.subset(given.train_images, "train"),
        validation.subset(given.validation_images, "validation"),
        test.subset(given.test_images, "test") if test is not None else None,
        dataset.left_out,
        tuple(cut),
    )
    return data.with_rendering(rendering)


def _load_dataset(source: DataSource) -> NamedDataset:
    data, columns = source.data_dir, (source.image_column, source.label_column)
    match data_form(data):
        case "folder":
            return _load_folder(data, _unwrap(Path(data).expanduser()), columns)
        case "table":
            path = Path(data).expanduser()
            return load_tables(data, path.parent, {"train": [path]}, columns)
        case "shards":
            shards = expand_shards(data)
            return load_tar_shards(data, _by_split(shards, shards[0].parent), columns[1])
        case "hugging_face":
            return load_hugging_face(data, columns)
        case "name":
            return load_named_dataset(data, source.data_root)


def _unwrap(folder: Path) -> Path:
    """Return the folder itself, or the one inside if that is all it holds, as archives have it."""
    for _ in range(3):
        folders = list_folders(folder)
        files = [file for file in folder.iterdir() if file.is_file()]
        holds_data = any(is_image(f.name) or f.suffix.lower() in DATA_SUFFIXES for f in files)
        is_wrapped = len(folders) == 1 and folders[0].name.lower() not in SPLIT_NAMES
        if not is_wrapped or holds_data:
            break
        if not list_folders(folders[0]) and not _files(folders[0], DATA_SUFFIXES):
            break
        folder = folders[0]
    return folder


def _files(folder: Path, suffixes: tuple[str, ...], pattern: str = "*") -> list[Path]:
    found = (f for f in sorted(folder.glob(pattern)) if f.suffix.lower() in suffixes)
    return [file for file in found if not is_hidden(file.name) and file.is_file()]


def _load_folder(source: str, root: Path, columns: GivenColumns) -> NamedDataset:
    """Load an ImageFolder, or what the tables or the shards in a folder name."""
    tables = [
        file
        for file in _files(root, TABLE_SUFFIXES) + _files(root, (".parquet",), "*/*")
        if file.name != GROUPS_FILE and "submission" not in file.name.lower()
    ]
    if _has_class_folders(root):
        if not split_folders(root):
            _refuse_other_classes(root, tables)
        return scan_image_folder(root)
    if tables:
        return load_tables(source, root, _by_split(tables, root), columns)
    if shards := _files(root, (SHARD_SUFFIX,)) + _files(root, (SHARD_SUFFIX,), "*/*"):
        return load_tar_shards(source, _by_split(shards, root), columns[1])
    return scan_image_folder(root)  # which says what is missing


def _has_class_folders(root: Path) -> bool:
    folders = list_folders(root)
    for folder in folders:
        if SPLIT_NAMES.get(folder.name.lower()) == "train":
            return len(list_folders(folder)) > 1
    return sum(split_of([folder.name]) is None for folder in folders) > 1


def _refuse_other_classes(root: Path, tables: list[Path]) -> None:
    classes = {folder.name for folder in list_folders(root)}
    for table in tables:
        if not classes >= labels_of_files(table, root):
            shown = printable_path(table)
            raise UserError(
                f"{printable_path(root)} has folders, and {shown} has other labels for the images "
                f"in them: give --data {shown}, or take the table out of the folder."
            )


def _by_split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    """Return files by the split that their names begin with; all are for training if none does."""
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        splits[split_of(file.relative_to(root).parts)].append(file)
    unnamed = splits.pop(None, [])
    are_parts = all(file.suffix.lower() in (".parquet", SHARD_SUFFIX) for file in unnamed)
    if not splits and (len(unnamed) == 1 or are_parts):
        return {"train": unnamed}
    if unnamed or "train" not in splits:
        names = ", ".join(printable_path(file.name) for file in files[:6])
        raise UserError(
            f"{printable_path(root)} has {names}: name those for training, or one table, with "
            "--data, or let all names begin with train, val or test."
        )
    return {split: found for split, found in splits.items() if split is not None}


def _hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Split off a fixed share of each class; unlike scikit-learn, accept classes of one image."""
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
    path = data.root / GROUPS_FILE
    if data.test is None or not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            group_by_file = {row["file"]: row["group"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} must be a CSV file with the columns file and group.") from None
    images = (image for image in data.test.images if not isinstance(image, np.ndarray))
    names = [data.relative_name(image) for image in images]
    for name in names:
        if not group_by_file.get(name):
            raise UserError(f"{path} has no group for the test image {printable_path(name)}.")
    groups = [group_by_file[name] for name in names]
    if len(set(groups)) < 2:
        raise UserError(f"{path} has one group for all test images; there must be at least two.")
    return groups
