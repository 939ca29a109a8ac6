"""Data sets by name: the digits, and those of torchvision that have official splits.

torchvision looks for its files in a folder, and downloads what is missing. Nothing that lies there
is run: CIFAR's files, the only pickles among them, are opened by torchvision after their MD5 sums
have proved them to be the published ones; all others are images, numbers and text. Sets of files
stay files, which are decoded like any image folder's; small pictures are read at once. Left out
are sets without official splits (SUN397, Caltech101, EuroSAT, ...), and GTSRB: its 30 frames of
each sign would lie on both sides of a cut at random between training and validation. Users add
theirs in plug-ins.

Of many sets torchvision only asks whether their folder is there. A mark beside it says that a
download has begun and not ended; one that somebody else did not finish is not seen.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from sklearn.datasets import load_digits
from torchvision import datasets

from kdtune.errors import UserError, last_line
from kdtune.plugins import Registry
from kdtune.storage.array_cache import cache_folder
from kdtune.storage.files import make_folder

ImageSource = Path | np.ndarray
"""A file, or pixels uint8 [H, W] or [H, W, 3]."""

Samples = tuple[Sequence[ImageSource], Sequence[int]]
"""Images, undecoded, and their labels."""


@dataclass(frozen=True)
class NamedDataset:
    """What a name stands for; splits that it does not have are None.

    Attributes:
        classes: in the order of the labels.
        root: folder that holds the files, if the images are files.
    """

    classes: tuple[str, ...]
    root: Path
    train: Samples
    validation: Samples | None = None
    test: Samples | None = None


def default_data_root() -> Path:
    """Where named data sets lie on this machine, if nothing else is said."""
    return cache_folder() / "datasets"


def load_named_dataset(name: str, root: str | None = None) -> NamedDataset:
    """Open a data set, and download it if it is not there.

    Args:
        name: a key of `NAMED`.
        root: the folder that torchvision would be given; `default_root` if None.

    Raises:
        UserError: it is not there, and cannot be downloaded.
    """
    with NAMED_DATASETS.blame_provider(name):
        dataset = NAMED_DATASETS[name](
            name, Path(root).expanduser() if root else default_data_root()
        )
        if not isinstance(dataset, NamedDataset):
            raise TypeError(f"it gives no NamedData, but a {type(dataset).__name__}")
    return dataset


def samples_of(dataset: Any) -> Samples:
    """Samples of a data set like torchvision's, which gives pairs of a picture and its label."""
    pairs = [dataset[i] for i in range(len(dataset))]
    return [np.asarray(image) for image, _ in pairs], [int(label) for _, label in pairs]


def _load_digits(name: str, root: Path) -> NamedDataset:
    """1,797 handwritten digits, 8×8 grey (scikit-learn's copy of the UCI set, CC BY 4.0)."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    samples = list(pixels), [int(x) for x in digits.target]
    return NamedDataset(tuple(str(name) for name in digits.target_names), root, samples)


def _read_arrays(dataset: Any) -> Samples:
    """Pictures that torchvision holds in memory, channels first or last."""
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    return list(pixels), dataset.targets if hasattr(dataset, "targets") else dataset.labels


def _read_listed_files(images_attribute: str, labels_attribute: str, dataset: Any) -> Samples:
    """Files of the sets that cannot be asked for them: they decode whatever they give."""
    return list(map(Path, getattr(dataset, images_attribute))), getattr(dataset, labels_attribute)


def _read_files(dataset: Any) -> Samples:
    """Files of a set whose loader is `Path`, so that it decodes nothing."""
    files, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return files, labels


SplitArguments = Mapping[str, Mapping[str, Any]]

TRAIN_FLAG_SPLITS: SplitArguments = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST_SPLITS: SplitArguments = {"train": {"split": "train"}, "test": {"split": "test"}}
TRAIN_VAL_TEST_SPLITS: SplitArguments = {**TRAIN_TEST_SPLITS, "validation": {"split": "val"}}
"""How torchvision's classes are asked for a split, by our names of these."""


def _load_official_splits(
    dataset_class: type,
    split_arguments: SplitArguments,
    read: Callable[[Any], Samples],
    options: Mapping[str, Any],
    name: str,
    root: Path,
) -> NamedDataset:
    datasets_by_split = {
        split: _open_or_download(name, dataset_class, root, {**options, **arguments})
        for split, arguments in split_arguments.items()
    }
    samples = {split: read(dataset) for split, dataset in datasets_by_split.items()}
    labels = {split: [int(label) for label in labels] for split, (_, labels) in samples.items()}
    names = getattr(datasets_by_split["train"], "classes", range(1 + max(labels["train"])))
    return NamedDataset(
        # Imagenette has several names for a class.
        tuple(words[0] if isinstance(words, tuple) else str(words) for words in names),
        root,
        **{split: (images, labels[split]) for split, (images, _) in samples.items()},
    )


def _open_or_download(
    name: str, dataset_class: type, root: Path, arguments: Mapping[str, Any]
) -> Any:
    """One split, as torchvision has it."""
    unfinished_marker = root / f".{name}.unfinished"
    # What torchvision says on the way is no result of ours.
    with ExitStack() as lock_stack, redirect_stdout(sys.stderr):
        with suppress(OSError):  # where nobody may write, nobody downloads
            lock_stack.enter_context(FileLock(root / f".{name}.lock"))
        if unfinished_marker.exists():
            raise UserError(
                f"A download of the data set {name} to {root} was not finished: remove what it "
                f"left there, and {unfinished_marker}, then try again."
            )
        try:
            return dataset_class(root, **arguments)
        except Exception:  # not there, or in pieces: each set says so in its own way
            make_folder(root)
        try:
            return _download_split(unfinished_marker, dataset_class, root, arguments)
        except Exception as error:  # no network, no room, broken files: each in its own way
            reason = last_line(error).strip("<>.")
            raise UserError(
                f"The data set {name} is not in {root}, or is damaged there, and cannot be "
                f"downloaded ({reason}): put its files there as torchvision's "
                f"{dataset_class.__name__} has them, or name the folder that has them with --data-root."
            ) from None


def _download_split(
    unfinished_marker: Path, dataset_class: type, root: Path, arguments: Mapping[str, Any]
) -> Any:
    """Download a set and open it; the mark stays if there may be a part of it."""

    def file_times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    unfinished_marker.touch()
    times_before = file_times()
    try:
        dataset = dataset_class(root, download=True, **arguments)
    except Exception:
        if file_times() == times_before:
            unfinished_marker.unlink()
        raise
    unfinished_marker.unlink()
    return dataset


def _torchvision_loader(
    dataset_class: type,
    split_arguments: SplitArguments,
    read: Callable[[Any], Samples],
    **options: Any,
) -> Callable[[str, Path], NamedDataset]:
    if read is _read_files:
        options["loader"] = Path
    return partial(_load_official_splits, dataset_class, split_arguments, read, options)


NAMED_DATASETS: Registry[Callable[[str, Path], NamedDataset]] = Registry(
    "data set",
    "DATA",
    {
        "digits": _load_digits,
        "mnist": _torchvision_loader(datasets.MNIST, TRAIN_FLAG_SPLITS, _read_arrays),
        "fashion-mnist": _torchvision_loader(
            datasets.FashionMNIST, TRAIN_FLAG_SPLITS, _read_arrays
        ),
        "kmnist": _torchvision_loader(datasets.KMNIST, TRAIN_FLAG_SPLITS, _read_arrays),
        "emnist": _torchvision_loader(
            datasets.EMNIST, TRAIN_FLAG_SPLITS, _read_arrays, split="balanced"
        ),
        "usps": _torchvision_loader(datasets.USPS, TRAIN_FLAG_SPLITS, _read_arrays),
        "svhn": _torchvision_loader(datasets.SVHN, TRAIN_TEST_SPLITS, _read_arrays),
        "cifar10": _torchvision_loader(datasets.CIFAR10, TRAIN_FLAG_SPLITS, _read_arrays),
        "cifar100": _torchvision_loader(datasets.CIFAR100, TRAIN_FLAG_SPLITS, _read_arrays),
        "stl10": _torchvision_loader(datasets.STL10, TRAIN_TEST_SPLITS, _read_arrays),
        "flowers102": _torchvision_loader(datasets.Flowers102, TRAIN_VAL_TEST_SPLITS, _read_files),
        "oxford-iiit-pet": _torchvision_loader(
            datasets.OxfordIIITPet,
            {"train": {"split": "trainval"}, "test": {"split": "test"}},
            partial(_read_listed_files, "_images", "_labels"),
        ),
        "food101": _torchvision_loader(datasets.Food101, TRAIN_TEST_SPLITS, _read_files),
        "dtd": _torchvision_loader(datasets.DTD, TRAIN_VAL_TEST_SPLITS, _read_files),
        "fgvc-aircraft": _torchvision_loader(
            datasets.FGVCAircraft, TRAIN_VAL_TEST_SPLITS, _read_files
        ),
        "country211": _torchvision_loader(
            datasets.Country211,
            {**TRAIN_TEST_SPLITS, "validation": {"split": "valid"}},
            _read_files,
        ),
        "rendered-sst2": _torchvision_loader(
            datasets.RenderedSST2, TRAIN_VAL_TEST_SPLITS, _read_files
        ),
        "imagenette": _torchvision_loader(
            datasets.Imagenette,
            {"train": {"split": "train"}, "test": {"split": "val"}},
            _read_files,
            size="320px",
        ),
    },
    "a function of the name and the folder of named data sets",
)
"""Data sets by name: each is opened from its name and the folder of named data sets."""
