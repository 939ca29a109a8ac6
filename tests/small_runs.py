"""Real images and settings of runs that take a second or two."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from kdtune.config.train import TrainConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.training.epoch_data import EpochData, open_epoch_data

IMAGE_SIZE = 8
"""Image size of the small runs, in pixels: the digits' own."""


def make_epoch_data(config, data) -> EpochData:
    """A run's batches, decoded in memory, without targets."""
    return open_epoch_data(config, DecodedDataset(data, config.image_size, None, 1))


def write_digits(root: Path, per_class: int, first: int = 0) -> Path:
    """Write real digits as PNG, `per_class` of each class, as one folder of classes."""
    digits = load_digits()
    counts = dict.fromkeys(range(10), -first)
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if 0 <= counts[label] < per_class:
            folder = root / f"digit-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(folder / f"{i:04d}.png")
        counts[label] += 1
    return root


def small_config(folder, **settings) -> TrainConfig:
    """Settings of a run that takes a second or two."""
    defaults = {"data_dir": str(folder), "image_size": IMAGE_SIZE, "epochs": 2, "batch_size": 16}
    return TrainConfig.parse({**defaults, **settings})
