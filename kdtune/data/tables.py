"""Tables with a row per image: CSV and Parquet that name files, and Parquet that contains images.

An image is named by its path, its file name, or its file name without the suffix, as on Kaggle.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdtune.data.columns import Columns, GivenColumns, find_columns, split_of
from kdtune.data.image_files import list_images
from kdtune.data.sources import (
    SPLIT_NAMES,
    LabelledImages,
    NamedDataset,
    PackedImage,
    describe_left_out,
    label_images,
)
from kdtune.errors import UserError, first_line
from kdtune.runtime.console import printable, printable_path

_LOCK = Lock()


@dataclass(frozen=True)
class ParquetImage(PackedImage):
    """An image in a column of a Parquet file."""

    column: str
    row_group: int
    row: int

    def read(self) -> bytes:
        """Return the encoded image."""
        with _LOCK:  # several threads decode; each would read the whole row group
            images = _read_row_group(self.file, self.row_group, self.column)
        return image_bytes(images[self.row].as_py())


@lru_cache(maxsize=4)
def _read_row_group(file: Path, row_group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(row_group, [column])[column]


def image_bytes(value: Any) -> bytes:
    """Return the encoded image of a cell, bytes or a struct of Hugging Face's."""
    content = value["bytes"] if isinstance(value, dict) else value
    if not content:
        raise OSError("it is empty")
    return bytes(content)


def is_image_type(kind: pa.DataType) -> bool:
    """Return True for the types of columns that contain images: bytes, or structs with them."""
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(has_bytes or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class _Table:
    """A CSV or Parquet file; values are text, empty where there is none."""

    def __init__(self, path: Path):
        self.path, self.shown = path, printable_path(path)
        self.class_names: dict[str, list[str]] = {}
        self.image_columns: list[str] = []
        self._columns: dict[str, list[str]] = {}
        try:
            self._read_parquet() if path.suffix.lower() == ".parquet" else self._read_csv()
        except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
            raise UserError(f"{self.shown} cannot be read: {first_line(error)}.") from None

    def _read_csv(self) -> None:
        with open(self.path, newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            header = file.readline()
            file.seek(0)
            separator = max(",;\t", key=header.count)
            rows = [row for row in csv.reader(file, delimiter=separator) if row]
        if not rows:
            raise ValueError("it is empty")
        columns = (
            [value.strip() for value in column]
            for column in zip_longest(*rows, fillvalue="")  # short rows are filled up
        )
        self._columns = {name: values for name, *values in columns if name}
        self.names = list(self._columns)

    def _read_parquet(self) -> None:
        with pq.ParquetFile(self.path) as parquet:
            schema = parquet.schema_arrow
            self.row_groups = [
                (group.num_rows, group.total_byte_size)
                for group in map(parquet.metadata.row_group, range(parquet.num_row_groups))
            ]
        self.names = schema.names
        self.image_columns = [field.name for field in schema if is_image_type(field.type)]
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for name, feature in metadata.get("info", {}).get("features", {}).items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                self.class_names[name] = [str(label) for label in feature["names"]]

    def find_columns(self, given: GivenColumns = (None, None)) -> Columns:
        labels = list(self.class_names)
        return find_columns(self.shown, self.names, self.image_columns, labels, given)

    def column(self, name: str) -> list[str]:
        """Return a column as text; class numbers become names."""
        if name not in self._columns:
            values = pq.read_table(self.path, columns=[name])[name].to_pylist()
            if (classes := self.class_names.get(name)) is not None:
                # -1 is Hugging Face's label of images without one.
                text = ["" if value in (None, -1) else classes[value] for value in values]
            else:
                whole = (int(v) if isinstance(v, float) and v.is_integer() else v for v in values)
                text = ["" if value is None else str(value).strip() for value in whole]
            self._columns[name] = text
        return self._columns[name]

    def packed_images(self, column: str) -> Iterator[ParquetImage]:
        start = 0
        for group, (num_rows, num_bytes) in enumerate(self.row_groups):
            for row in range(num_rows):
                name = f"row {start + row}"
                yield ParquetImage(self.path, name, num_bytes, column, group, row)
            start += num_rows


def load_tables(
    source: str, root: Path, tables: Mapping[str, Sequence[Path]], given: GivenColumns
) -> NamedDataset:
    """Return the images that tables name or contain.

    Args:
        source: the data, for messages.
        root: folder of the tables, below which the images are.
        tables: files by split; a single file may have a column of splits.
        given: columns that the user named; others are found by their usual names.
    """
    left_out, files = Counter[str](), _FileIndex(root)
    splits: dict[str, LabelledImages] = defaultdict(list)
    classes: dict[str, None] = {}
    for table_split, paths in tables.items():
        for table in map(_Table, paths):
            try:
                columns = table.find_columns(given)
            except UserError:
                if table_split != "test":
                    raise
                left_out[f"the table {printable_path(table.path.name)}, without labels"] += 1
                continue
            for split, image, label in _read_rows(table, columns, table_split, files, left_out):
                splits[split].append((image, label))
            classes |= dict.fromkeys(table.class_names.get(columns.label, ()))
    named = {image for images in splits.values() for image, _ in images}
    left_out["images that no row names"] = sum(file not in named for file in files.listed)
    if not splits["train"]:
        raise UserError(f"{source} has no images for training; {describe_left_out(left_out)}.")
    return label_images(source, root, splits, left_out, classes)


def labels_of_files(table: Path, root: Path) -> set[str]:
    """Return the labels of a table; none if it is no table of the images below a folder.

    Args:
        table: its file.
        root: folder of the images.
    """
    with suppress(UserError):
        opened, files = _Table(table), _FileIndex(root)
        columns = opened.find_columns()
        labels = {label for label in opened.column(columns.label) if label}
        if columns.image in opened.image_columns:
            return labels
        names = opened.column(columns.image)[:20]
        if 2 * sum(files.find(name, "train") is not None for name in names) >= len(names):
            return labels
    return set()


def _read_rows(
    table: _Table, columns: Columns, table_split: str, files: "_FileIndex", left_out: Counter[str]
) -> Iterator[tuple[str, ParquetImage | Path, str]]:
    """Yield split, image and label of each row that has them."""
    labels = table.column(columns.label)
    words = table.column(columns.split) if columns.split else [table_split] * len(labels)
    is_packed = columns.image in table.image_columns
    images: Any = table.packed_images(columns.image) if is_packed else table.column(columns.image)
    for image, label, word in zip(images, labels, words, strict=True):
        split = SPLIT_NAMES.get(word.lower())
        if not label:
            left_out["rows without a label"] += 1
        elif split is None:
            left_out[f"rows of the split '{printable(word)}'"] += 1
        elif is_packed:
            yield split, image, label
        elif (file := files.find(image, split)) is None:
            left_out["rows whose file is missing"] += 1
        elif (known := files.labels.get(file)) is None:
            files.labels[file] = label
            yield split, file, label
        elif known == label:
            left_out["rows that name an image again"] += 1
        else:
            raise UserError(
                f"{printable_path(file)} has two labels, {known} and {label} in {table.shown}; an "
                "image can have only one."
            )


class _FileIndex:
    """The image files below a folder, by name and stem; listed when a table gives no paths."""

    def __init__(self, root: Path):
        self.root = root
        self.listed: list[Path] = []
        self.labels: dict[Path, str] = {}  # of the files that the tables named so far

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        self.listed = list_images(self.root, Counter())
        files: dict[str, list[Path]] = defaultdict(list)
        for path in self.listed:
            for key in {path.name, path.stem}:
                files[key].append(path)
        return files

    def find(self, name: str, split: str) -> Path | None:
        """Return the file that a row of a split names; None if there is none."""
        path = self.root / name  # an absolute path stays
        if path.suffix and path.is_file():
            return path
        found = self._files.get(path.name, [])
        if len(found) > 1:
            parts = Path(name).parts
            found = [file for file in found if file.parts[-len(parts) :] == parts] or found
        if len(found) > 1:
            splits = {file: split_of(file.relative_to(self.root).parts[:-1]) for file in found}
            found = [file for file in found if splits[file] == split] or found
        if len(found) > 1:
            shown = " and ".join(printable_path(file) for file in found[:2])
            raise UserError(f"'{printable_path(name)}' may be {shown}; give paths in the table.")
        return found[0] if found else None
