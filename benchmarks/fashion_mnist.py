"""Write a part of Fashion-MNIST as image folders: few images for students, more for their teacher.

    python benchmarks/fashion_mnist.py usr/share/datasets/fashion-mnist OUT

reads the gzipped IDX files of the Debian package dataset-fashion-mnist (MIT licence) and writes
``OUT/student`` (1,000 training images, 2,000 for validation) and ``OUT/teacher`` (7,000 training
images, those of the students among them, 1,000 for validation), as PNG of 28 px, the first
images of each class in the order of the files.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip

SPLITS = {
    "student/train": [(0, 100)],
    "student/val": [(100, 300)],
    "teacher/train": [(0, 100), (300, 900)],
    "teacher/val": [(900, 1000)],
}
"""Ranges of a class's images that go into each folder."""


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes."""
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_folders(source: Path, out: Path) -> None:
    """Write all folders of `SPLITS`."""
    images = read_idx(source / "train-images-idx3-ubyte.gz")
    labels = read_idx(source / "train-labels-idx1-ubyte.gz")
    for split, ranges in SPLITS.items():
        for label, name in enumerate(CLASSES):
            folder = out / split / name
            folder.mkdir(parents=True)
            chosen = np.flatnonzero(labels == label)
            for first, last in ranges:
                for index in chosen[first:last]:
                    Image.fromarray(images[index]).save(folder / f"{index:05d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("source", type=Path, help="folder of the IDX files")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    write_folders(arguments.source, arguments.out)
