"""Fixtures that several rooms share. Slow tests run last."""

import os
from pathlib import Path

import pytest
import ray
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdtune.cache import VARIABLE
from kdtune.config import TrainConfig
from kdtune.data.views import Views
from kdtune.inputs import Inputs
from kdtune.run import train_teacher

SIZE = 8
"""Image size of the small runs, in pixels: the digits' own."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests, and the processes they start, leave the user's cache alone."""
    os.environ[VARIABLE] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def ray_session():
    """One session of Ray for all that can share it: starting one takes seconds."""
    ray.init(
        address="local",  # never a cluster that runs on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


def inputs_of(config, data) -> Inputs:
    """A run's batches, decoded in memory, without targets."""
    return Inputs(config, Views(data, config.image_size, None, 1), None, {}, print)


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


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """200 real digits as one folder of classes."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits", 20)


@pytest.fixture(scope="session")
def teacher_file(folder, tmp_path_factory) -> Path:
    """A teacher for `folder`: a MultiBranchNet of two epochs."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    train_teacher(small_config(folder, method="student", epochs=2, lr=0.05), path)
    return path


def small_config(folder, **settings) -> TrainConfig:
    """Settings of a run that takes a second or two."""
    small = {"data_dir": str(folder), "image_size": SIZE, "epochs": 2, "batch_size": 16}
    return TrainConfig.check({**small, **settings})
