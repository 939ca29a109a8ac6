"""ImageFolders: `train/`, `val/` and `test/` with a folder per class, or one folder of classes.

Splits may also be inside of the classes: `cat/train/`, `cat/test/`, ...
"""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from kdtune.data.image_files import is_hidden, list_folders, list_images, take_images
from kdtune.data.sources import SPLIT_NAMES, LabelledImages, NamedDataset, label_images
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits, by split, as far as a folder has them.

    Folders that are named like splits would else be taken for classes, or skipped.
    """
    splits: dict[str, Path] = {}
    for folder in list_folders(root):
        if (split := SPLIT_NAMES.get(folder.name.lower())) is None:
            continue
        if split in splits:
            shown = printable_path(splits[split])
            raise UserError(
                f"{shown} and {printable_path(folder.name)} both look like the {split} split; "
                "rename one of them."
            )
        splits[split] = folder
    if splits and "train" not in splits:
        folder = next(iter(splits.values()))
        raise UserError(
            f"{printable_path(folder)} looks like a split, but there is no folder train beside "
            "it: splits are folders named train, val and test, each with a folder per class."
        )
    return splits


def scan_image_folder(root: Path) -> NamedDataset:
    """Return the images of an ImageFolder; a class folder holds them at any depth."""
    splits, left_out = split_folders(root), Counter[str]()
    train_folder = splits.get("train", root)
    if (count := len(list_folders(train_folder))) < 2:
        loose = 0 if count else len(list_images(train_folder, left_out))
        raise UserError(
            f"{printable_path(train_folder)} must hold at least two folders, one per class; it "
            f"holds {count}{f', and {loose:,} images' if loose else ''}."
        )
    for folder in list_folders(root) if splits else ():
        if folder not in splits.values():
            left_out[f"the folder {printable_path(folder.name)}, which is not a split"] += 1
    folders = splits or {"train": root}
    scanned = {split: _scan_classes(folder, left_out) for split, folder in folders.items()}
    if not splits and (inner := _splits_inside_classes(root, scanned["train"])):
        scanned = inner
    names = sorted(f.name for f in list_folders(train_folder))
    dataset = label_images(str(root), root, scanned, left_out, names)
    return replace(dataset, cuts_test=False) if splits else dataset


def _splits_inside_classes(root: Path, images: LabelledImages) -> dict[str, LabelledImages]:
    """Return images by split if all lie in a folder of a split inside of a class; else none."""
    splits: dict[str, LabelledImages] = defaultdict(list)
    for image, label in images:
        assert isinstance(image, Path)
        parts = image.relative_to(root).parts[1:-1]
        if not parts or (split := SPLIT_NAMES.get(parts[0].lower())) is None:
            return {}
        splits[split].append((image, label))
    return splits if "train" in splits else {}


def _scan_classes(folder: Path, left_out: Counter[str]) -> LabelledImages:
    loose = [file.name for file in folder.iterdir() if file.is_file()]
    left_out["images outside of class folders"] += len(take_images(loose, Counter()))
    left_out["hidden folders"] += sum(f.is_dir() and is_hidden(f.name) for f in folder.iterdir())
    images: LabelledImages = []
    for class_folder in list_folders(folder):
        files = list_images(class_folder, left_out)
        if not files:
            left_out[f"the empty class folder {printable_path(class_folder)}"] += 1
        images += [(file, class_folder.name) for file in files]
    return images
