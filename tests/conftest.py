"""Fixtures that several rooms share. Slow tests run last."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from small_runs import small_config, write_digits

from kdtune.storage.array_cache import CACHE_FOLDER_VARIABLE
from kdtune.training.train_teacher import train_teacher

# A busy machine would make tests fail by the time of an example.
settings.register_profile("kdtune", deadline=None, max_examples=50)
settings.load_profile("kdtune")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def isolated_cache(tmp_path_factory):
    """Tests, and the processes they start, leave the user's cache alone."""
    os.environ[CACHE_FOLDER_VARIABLE] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def ray_session():
    """One session of Ray for all that can share it: starting one takes seconds."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",  # never a cluster that runs on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


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
