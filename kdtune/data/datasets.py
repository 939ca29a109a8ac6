"""Data sets by name: scikit-learn's digits, and torchvision's that have official splits.

torchvision runs nothing from their files: only CIFAR's are pickles, and it checks their MD5 sums
first. GTSRB is left out: a random split of its training images would put frames of one sign on
both sides.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torchvision import datasets

from kdtune.data.sources import ImageSource, NamedDataset, Samples
from kdtune.errors import UserError, last_line
from kdtune.plugins import Registry
from kdtune.storage.array_cache import cache_folder
from kdtune.storage.files import make_folder


def load_named_dataset(name: str, root: str | None = None) -> NamedDataset:
    """Open a data set, and download it if it is missing.

    Args:
        name: a key of `NAMED_DATASETS`.
        root: torchvision's `root`; None: a folder in the node's cache.
    """
    folder = Path(root).expanduser() if root else cache_folder() / "datasets"
    with NAMED_DATASETS.blame_provider(name):
        dataset: object = NAMED_DATASETS[name](name, folder)
        if not isinstance(dataset, NamedDataset):
            raise TypeError(f"it returns no NamedDataset, but a {type(dataset).__name__}")
        for images, labels in filter(None, (dataset.train, dataset.validation, dataset.test)):
            if len(images) != len(labels):
                raise ValueError(f"a split has {len(images)} images, but {len(labels)} labels")
            count = len(dataset.classes)
            if wrong := [label for label in labels if not 0 <= label < count]:
                raise ValueError(f"a label is {wrong[0]}, but there are {count} classes, from 0")
            for image in images:
                _check_image(image)
    return dataset


def _check_image(image: ImageSource) -> None:
    if not isinstance(image, np.ndarray):
        return
    is_colour = image.dtype == np.uint8 and image.shape[2:] in ((3,), (4,))
    is_grey = image.dtype in (np.uint8, np.uint16) and image.shape[2:] in ((), (1,))
    if not (is_colour or is_grey) or image.ndim < 2 or not image.size:
        raise ValueError(
            f"an image is {image.dtype} {list(image.shape)}; give uint8 [H, W], [H, W, 1], "
            "[H, W, 3] or [H, W, 4], or uint16 [H, W]"
        )


def samples_of(dataset: Any) -> Samples:
    """Return the samples of a data set like torchvision's, whose items are (image, label)."""
    pairs = [dataset[i] for i in range(len(dataset))]
    return [np.asarray(image) for image, _ in pairs], [int(label) for _, label in pairs]


def _load_digits(name: str, root: Path) -> NamedDataset:
    """Load 1,797 handwritten digits, 8×8 grey (scikit-learn's copy of UCI's, CC BY 4.0)."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to load

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    samples = list(pixels), [int(x) for x in digits.target]
    return NamedDataset(tuple(map(str, digits.target_names)), root, samples)


LoadDataset = Callable[[str, Path], NamedDataset]
"""Loads a data set from its name and the folder of named data sets."""


def _torchvision(dataset_class: type, *official: str | bool, **options: Any) -> LoadDataset:
    """Return a loader, given `split` or `train` of training, test and validation images."""
    splits = {
        split: {**options, "train" if isinstance(value, bool) else "split": value}
        for split, value in zip(("train", "test", "validation"), official, strict=False)
    }
    return partial(_load_official_splits, dataset_class, splits)


def _load_official_splits(
    dataset_class: type, splits: dict[str, dict[str, Any]], name: str, root: Path
) -> NamedDataset:
    opened, samples = {}, {}
    for split, options in splits.items():
        opened[split] = _open_or_download(name, dataset_class, root, options)
        samples[split] = _read_samples(opened[split], options)
    names = getattr(opened["train"], "classes", range(1 + max(samples["train"][1])))
    # Imagenette has several names for a class.
    classes = tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)
    validation, test = samples.get("validation"), samples.get("test")
    return NamedDataset(classes, root, samples["train"], validation, test)


def _read_samples(dataset: Any, options: dict[str, Any]) -> Samples:
    if isinstance(dataset, datasets.OxfordIIITPet):  # decodes its files and takes no loader
        folder = Path(dataset.root) / "oxford-iiit-pet"
        lines = (folder / "annotations" / f"{options['split']}.txt").read_text().splitlines()
        rows = [line.split() for line in lines]  # name, class from 1, species, breed
        files = [folder / "images" / f"{row[0]}.jpg" for row in rows]
        return files, [int(row[1]) - 1 for row in rows]
    if not hasattr(dataset, "data"):
        items = [dataset[i] for i in range(len(dataset))]
        return [path for path, _ in items], [int(label) for _, label in items]
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:  # channels first
        pixels = pixels.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return list(pixels), list(map(int, labels))


def _open_or_download(name: str, dataset_class: type, root: Path, options: dict[str, Any]) -> Any:
    # Of many sets torchvision checks only whether their folder exists. The marker says that
    # kdtune has started a download and not finished it.
    unfinished_marker = root / f".{name}.unfinished"

    def file_times() -> dict[Path, int]:
        files = (p for p in root.rglob("*") if p.is_file() and p != unfinished_marker)
        return {path: path.stat().st_mtime_ns for path in files}

    # What torchvision prints is no result of ours.
    with ExitStack() as stack, redirect_stdout(sys.stderr):
        with suppress(OSError):  # a process that cannot write there cannot download, either
            stack.enter_context(FileLock(root / f".{name}.lock"))
        if unfinished_marker.exists():
            raise UserError(
                f"A download of the data set {name} to {root} was not finished: remove what it "
                f"left there, and {unfinished_marker}, then try again."
            )
        with suppress(Exception):  # missing or damaged: each set raises something else
            return dataset_class(root, **options)
        make_folder(root)
        times_before = file_times()
        try:
            unfinished_marker.touch()
            dataset = dataset_class(root, download=True, **options)
        except Exception as error:  # no network, a full disk, broken files: again anything
            if unfinished_marker.exists() and file_times() == times_before:
                unfinished_marker.unlink()
            raise UserError(
                f"The data set {name} is not in {root}, or is damaged there, and cannot be "
                f"downloaded ({last_line(error).strip('<>.')}): put its files there as "
                f"torchvision's {dataset_class.__name__} has them, or name the folder that has "
                "them with --data-root."
            ) from None
        unfinished_marker.unlink()
        return dataset


NAMED_DATASETS: Registry[LoadDataset] = Registry(
    "data set",
    "DATA",
    {
        "digits": _load_digits,
        "mnist": _torchvision(datasets.MNIST, True, False),
        "fashion-mnist": _torchvision(datasets.FashionMNIST, True, False),
        "kmnist": _torchvision(datasets.KMNIST, True, False),
        "emnist": _torchvision(datasets.EMNIST, True, False, split="balanced"),
        "usps": _torchvision(datasets.USPS, True, False),
        "svhn": _torchvision(datasets.SVHN, "train", "test"),
        "cifar10": _torchvision(datasets.CIFAR10, True, False),
        "cifar100": _torchvision(datasets.CIFAR100, True, False),
        "stl10": _torchvision(datasets.STL10, "train", "test"),
        "flowers102": _torchvision(datasets.Flowers102, "train", "test", "val", loader=Path),
        "oxford-iiit-pet": _torchvision(datasets.OxfordIIITPet, "trainval", "test"),
        "food101": _torchvision(datasets.Food101, "train", "test", loader=Path),
        "dtd": _torchvision(datasets.DTD, "train", "test", "val", loader=Path),
        "fgvc-aircraft": _torchvision(datasets.FGVCAircraft, "train", "test", "val", loader=Path),
        "country211": _torchvision(datasets.Country211, "train", "test", "valid", loader=Path),
        "rendered-sst2": _torchvision(datasets.RenderedSST2, "train", "test", "val", loader=Path),
        "imagenette": _torchvision(datasets.Imagenette, "train", "val", size="320px", loader=Path),
    },
    "a function of the name and the folder of named data sets",
)
"""Data sets by name; with `loader=Path` torchvision returns an image's file instead of pixels."""
