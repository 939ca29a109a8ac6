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

Image = Path | np.ndarray
"""A file, or pixels uint8 [H, W] or [H, W, 3]."""

Samples = tuple[Sequence[Image], Sequence[int]]
"""Images, undecoded, and their labels."""


@dataclass(frozen=True)
class NamedData:
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


def default_root() -> Path:
    """Where named data sets lie on this machine, if nothing else is said."""
    return cache_folder() / "datasets"


def load_named(name: str, root: str | None = None) -> NamedData:
    """Open a data set, and download it if it is not there.

    Args:
        name: a key of `NAMED`.
        root: the folder that torchvision would be given; `default_root` if None.

    Raises:
        UserError: it is not there, and cannot be downloaded.
    """
    with NAMED.blamed(name):
        found = NAMED[name](name, Path(root).expanduser() if root else default_root())
        if not isinstance(found, NamedData):
            raise TypeError(f"it gives no NamedData, but a {type(found).__name__}")
    return found


def pictures(dataset: Any) -> Samples:
    """Samples of a data set like torchvision's, which gives pairs of a picture and its label."""
    pairs = [dataset[i] for i in range(len(dataset))]
    return [np.asarray(image) for image, _ in pairs], [int(label) for _, label in pairs]


def _digits(name: str, root: Path) -> NamedData:
    """1,797 handwritten digits, 8×8 grey (scikit-learn's copy of the UCI set, CC BY 4.0)."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    samples = list(pixels), [int(x) for x in digits.target]
    return NamedData(tuple(str(name) for name in digits.target_names), root, samples)


def _arrays(dataset: Any) -> Samples:
    """Pictures that torchvision holds in memory, channels first or last."""
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    return list(pixels), dataset.targets if hasattr(dataset, "targets") else dataset.labels


def _listed(images: str, labels: str, dataset: Any) -> Samples:
    """Files of the sets that cannot be asked for them: they decode whatever they give."""
    return list(map(Path, getattr(dataset, images))), getattr(dataset, labels)


def _files(dataset: Any) -> Samples:
    """Files of a set whose loader is `Path`, so that it decodes nothing."""
    files, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return files, labels


Splits = Mapping[str, Mapping[str, Any]]

FLAGS: Splits = {"train": {"train": True}, "test": {"train": False}}
TWO: Splits = {"train": {"split": "train"}, "test": {"split": "test"}}
THREE: Splits = {**TWO, "validation": {"split": "val"}}
"""How torchvision's classes are asked for a split, by our names of these."""


def _official(
    dataset: type,
    splits: Splits,
    read: Callable[[Any], Samples],
    options: Mapping[str, Any],
    name: str,
    root: Path,
) -> NamedData:
    opened = {
        split: _open(name, dataset, root, {**options, **which}) for split, which in splits.items()
    }
    samples = {split: read(part) for split, part in opened.items()}
    labels = {split: [int(label) for label in labels] for split, (_, labels) in samples.items()}
    names = getattr(opened["train"], "classes", range(1 + max(labels["train"])))
    return NamedData(
        # Imagenette has several names for a class.
        tuple(words[0] if isinstance(words, tuple) else str(words) for words in names),
        root,
        **{split: (images, labels[split]) for split, (images, _) in samples.items()},
    )


def _open(name: str, dataset: type, root: Path, which: Mapping[str, Any]) -> Any:
    """One split, as torchvision has it."""
    mark = root / f".{name}.unfinished"
    # What torchvision says on the way is no result of ours.
    with ExitStack() as alone, redirect_stdout(sys.stderr):
        with suppress(OSError):  # where nobody may write, nobody downloads
            alone.enter_context(FileLock(root / f".{name}.lock"))
        if mark.exists():
            raise UserError(
                f"A download of the data set {name} to {root} was not finished: remove what it "
                f"left there, and {mark}, then try again."
            )
        try:
            return dataset(root, **which)
        except Exception:  # not there, or in pieces: each set says so in its own way
            make_folder(root)
        try:
            return _download(mark, dataset, root, which)
        except Exception as error:  # no network, no room, broken files: each in its own way
            reason = last_line(error).strip("<>.")
            raise UserError(
                f"The data set {name} is not in {root}, or is damaged there, and cannot be "
                f"downloaded ({reason}): put its files there as torchvision's "
                f"{dataset.__name__} has them, or name the folder that has them with --data-root."
            ) from None


def _download(mark: Path, dataset: type, root: Path, which: Mapping[str, Any]) -> Any:
    """Download a set and open it; the mark stays if there may be a part of it."""

    def there() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    mark.touch()
    before = there()
    try:
        opened = dataset(root, download=True, **which)
    except Exception:
        if there() == before:
            mark.unlink()
        raise
    mark.unlink()
    return opened


def _set(
    dataset: type, splits: Splits, read: Callable[[Any], Samples], **options: Any
) -> Callable[[str, Path], NamedData]:
    if read is _files:
        options["loader"] = Path
    return partial(_official, dataset, splits, read, options)


NAMED: Registry[Callable[[str, Path], NamedData]] = Registry(
    "data set",
    "DATA",
    {
        "digits": _digits,
        "mnist": _set(datasets.MNIST, FLAGS, _arrays),
        "fashion-mnist": _set(datasets.FashionMNIST, FLAGS, _arrays),
        "kmnist": _set(datasets.KMNIST, FLAGS, _arrays),
        "emnist": _set(datasets.EMNIST, FLAGS, _arrays, split="balanced"),
        "usps": _set(datasets.USPS, FLAGS, _arrays),
        "svhn": _set(datasets.SVHN, TWO, _arrays),
        "cifar10": _set(datasets.CIFAR10, FLAGS, _arrays),
        "cifar100": _set(datasets.CIFAR100, FLAGS, _arrays),
        "stl10": _set(datasets.STL10, TWO, _arrays),
        "flowers102": _set(datasets.Flowers102, THREE, _files),
        "oxford-iiit-pet": _set(
            datasets.OxfordIIITPet,
            {"train": {"split": "trainval"}, "test": {"split": "test"}},
            partial(_listed, "_images", "_labels"),
        ),
        "food101": _set(datasets.Food101, TWO, _files),
        "dtd": _set(datasets.DTD, THREE, _files),
        "fgvc-aircraft": _set(datasets.FGVCAircraft, THREE, _files),
        "country211": _set(datasets.Country211, {**TWO, "validation": {"split": "valid"}}, _files),
        "rendered-sst2": _set(datasets.RenderedSST2, THREE, _files),
        "imagenette": _set(
            datasets.Imagenette,
            {"train": {"split": "train"}, "test": {"split": "val"}},
            _files,
            size="320px",
        ),
    },
    "a function of the name and the folder of named data sets",
)
"""Data sets by name: each is opened from its name and the folder of named data sets."""
