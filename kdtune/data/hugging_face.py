"""Data sets of Hugging Face's `datasets`: of the Hub, of its cache, or in a local folder.

The package prepares a data set as Arrow files, in which images are read in place. Version 4 and
later run no code of a data set.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdtune.config.data_forms import HUGGING_FACE_PREFIX
from kdtune.data.columns import GivenColumns, find_columns
from kdtune.data.sources import (
    SPLIT_NAMES,
    ImageSource,
    LabelledImages,
    NamedDataset,
    PackedImage,
    label_images,
)
from kdtune.data.tables import image_bytes
from kdtune.errors import UserError, last_line
from kdtune.runtime.optional_imports import import_optional


@dataclass(frozen=True)
class ArrowImage(PackedImage):
    """An image in a column of an Arrow file, which is memory-mapped."""

    column: str
    row: int

    def read(self) -> bytes:
        """Return the encoded image."""
        return image_bytes(_open_column(self.file, self.column)[self.row].as_py())


@lru_cache(maxsize=1024)
def _open_column(file: Path, column: str) -> pa.ChunkedArray:
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()[column]


def load_hugging_face(source: str, given: GivenColumns) -> NamedDataset:
    """Return the images of a data set of Hugging Face's.

    Args:
        source: ``hf:NAME``, ``hf:NAME:CONFIG``, or a folder in place of the name.
        given: columns that the user named; others are found by type and usual names.
    """
    loaded, left_out = _load(source), Counter[str]()
    only = next(iter(loaded)) if len(loaded) == 1 else None
    splits: dict[str, LabelledImages] = {}
    classes: list[str] = []
    for name, part in loaded.items():
        if (split := "train" if only else SPLIT_NAMES.get(name.lower())) is None:
            left_out[f"images of the split '{name}'"] += len(part)
            continue
        features = {key: type(feature).__name__ for key, feature in part.features.items()}
        images = [key for key, kind in features.items() if kind == "Image"]
        labels = [key for key, kind in features.items() if kind == "ClassLabel"]
        columns = find_columns(f"{source}, {name},", list(features), images, labels, given)
        if columns.image not in images:
            raise UserError(f"{source}: the column {columns.image} holds no images.")
        names = part.features[columns.label].names if columns.label in labels else None
        values = part.data[columns.label].to_pylist()
        text = [_label_text(value, names) for value in values]
        pairs = zip(_images(source, part, columns.image), text, strict=True)
        splits[split] = [(image, label) for image, label in pairs if label is not None]
        left_out["images without a label"] += text.count(None)
        classes += names or []
    if "train" not in splits:
        raise UserError(f"{source} has no split for training; it has {', '.join(loaded)}.")
    splits = {split: images for split, images in splits.items() if images or split == "train"}
    return label_images(source, _name(source)[0], splits, left_out, dict.fromkeys(classes))


def _name(source: str) -> tuple[Path, str]:
    """Return the name of a data set, as the path that it is if it is local, and its config."""
    name, _, config = source.removeprefix(HUGGING_FACE_PREFIX).partition(":")
    path = Path(name).expanduser()
    return path.absolute() if path.is_dir() else path, config


def _load(source: str) -> dict[str, Any]:
    """Return the splits of a data set by name."""
    datasets = import_optional("datasets", "huggingface")
    path, config = _name(source)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path), config or None)
    except Exception as error:  # network, file and format errors of many packages
        reason = last_line(error).rstrip(".")
        raise UserError(
            f"Hugging Face's datasets cannot load {path}: {reason}. Check the name; without a "
            "network, load it once where there is one, or give a local folder."
        ) from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _label_text(value: Any, names: list[str] | None) -> str | None:
    if value is None or (names is not None and value == -1):  # -1: the label is not published
        return None
    return names[value] if names is not None else str(value)


def _images(source: str, part: Any, column: str) -> list[ImageSource]:
    files = [Path(file["filename"]) for file in part.cache_files]
    images: list[ImageSource] = []
    for file in files:
        cells = _open_column(file, column)
        sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        paths = pc.struct_field(cells, "path").to_pylist()
        for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
            packed = ArrowImage(file, f"row {row}", size or 0, column, row)
            images.append(packed if size is not None or path is None else Path(path))
    if len(images) != len(part):
        raise UserError(
            f"{source} is not stored in files as it is: save it with save_to_disk, or leave "
            "HF_DATASETS_IN_MEMORY_MAX_SIZE unset."
        )
    return images
