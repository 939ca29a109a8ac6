"""Tar shards as WebDataset writes them: members with one stem are an image and its label.

Images are read in place, as parts of their archive. A label is a `.cls` file, or a value in a
`.json` file; pickles (`.pyd`, `.pickle`) are never read.
"""

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdtune.data.columns import find_columns
from kdtune.data.image_files import describe_suffix, is_hidden
from kdtune.data.image_formats import is_image
from kdtune.data.sources import LabelledImages, NamedDataset, PackedImage, label_images
from kdtune.errors import UserError
from kdtune.runtime.console import printable_path


@dataclass(frozen=True)
class TarMember(PackedImage):
    """An image in a tar archive."""

    offset: int

    def read(self) -> bytes:
        """Return the encoded image."""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def load_tar_shards(
    source: str, shards: Mapping[str, Sequence[Path]], label_column: str | None
) -> NamedDataset:
    """Return the images of tar archives.

    Args:
        source: the data, for messages.
        shards: archives by split.
        label_column: key of the label in `.json` files; found by its usual names if not given.
    """
    left_out = Counter[str]()
    splits = {
        split: [image for file in files for image in _read_shard(file, label_column, left_out)]
        for split, files in shards.items()
    }
    return label_images(source, shards["train"][0].parent, splits, left_out)


def _read_shard(file: Path, label_column: str | None, left_out: Counter[str]) -> LabelledImages:
    shown = printable_path(file)
    try:
        # Without "r:" tarfile would unpack a compressed archive, whose parts cannot be read alone.
        with tarfile.open(file, "r:") as archive:
            return list(_read_samples(archive, file, label_column, left_out))
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shown} is not an uncompressed tar archive: {error}.") from None


def _read_samples(
    archive: tarfile.TarFile, path: Path, label_column: str | None, left_out: Counter[str]
) -> Iterator[tuple[TarMember, str]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
    for member in archive:
        name = PurePosixPath(member.name)
        if any(map(is_hidden, name.parts)):
            left_out["hidden images"] += is_image(member.name)
        elif member.isfile() and not member.issparse():
            stem, _, suffix = name.name.partition(".")
            samples[str(name.with_name(stem))][suffix.lower()] = member
    for sample in samples.values():
        images = [suffix for suffix in sample if is_image(f".{suffix}")]
        if len(images) > 1:
            names = " and ".join(printable_path(sample[suffix].name) for suffix in images)
            raise UserError(f"{printable_path(path)} has two images with one label: {names}.")
        label = _read_label(archive, path, sample, label_column)
        for suffix in sample.keys() - {*images, "cls", "json"}:
            left_out[describe_suffix(f".x.{suffix}")] += 1
        if not images or label is None:
            left_out["samples without a label" if images else "samples without an image"] += 1
            continue
        image = sample[images[0]]
        yield TarMember(path, image.name, image.size, image.offset_data), label


def _read_label(
    archive: tarfile.TarFile,
    path: Path,
    sample: Mapping[str, tarfile.TarInfo],
    label_column: str | None,
) -> str | None:
    """Return the label of a sample, as text; None if it has none."""
    suffix = "json" if label_column or "cls" not in sample else "cls"
    if (member := sample.get(suffix)) is None or (file := archive.extractfile(member)) is None:
        return None
    shown = f"{printable_path(path)}/{printable_path(member.name)}"
    try:
        text = file.read().decode()
        if suffix == "cls":
            return text.strip() or None
        values = json.loads(text)
        if not isinstance(values, dict):
            return str(values)
    except ValueError:
        raise UserError(f"The label {shown} is neither text nor JSON.") from None
    columns = find_columns(shown, ["image", *values], ["image"], [], (None, label_column))
    return None if values[columns.label] is None else str(values[columns.label])
