"""The one place where networks of a sweep are judged by test images, after they were chosen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from kdtune.checkpoints import load_model
from kdtune.config import TrainConfig
from kdtune.costs import costs_of
from kdtune.inputs import Inputs, find_data, open_views
from kdtune.training import predict
from kdtune.tuning.launch import Slots


def predict_test(networks: list[tuple[Path, TrainConfig]], slots: Slots) -> Iterator[np.ndarray]:
    """Have networks classify the test images, each where a trial would run.

    Args:
        networks: files, and the settings of their runs.
        slots: how many at once.

    Yields:
        Of each network the classes, int64 [N].
    """
    task = _remote(_predict, slots)
    found = [task.remote(path.absolute(), config, slots.cpus) for path, config in networks]
    yield from map(ray.get, found)


def measure(config: TrainConfig, num_classes: int, slots: Slots) -> dict[str, Any]:
    """What a student costs where a trial would run: see `kdtune.costs.costs_of`."""
    costs: dict[str, Any] = ray.get(
        _remote(_measure, slots).remote(config, num_classes, slots.cpus)
    )
    return costs


def _remote(function: Any, slots: Slots) -> Any:
    return ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(function)


def _measure(config: TrainConfig, num_classes: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return costs_of(config, num_classes)


def _predict(network: Path, config: TrainConfig, threads: int) -> np.ndarray:
    torch.set_num_threads(threads)
    data, _ = find_data(config.source, config.skip_bad_images, config.cache_gb)
    views = open_views(data, config.image_size, config.cache_gb)
    batches = Inputs(config, views, None, {}, lambda event: None).evaluation("test")
    return predict(load_model(network)["model"], batches, config).numpy()
