"""The one place where networks of a sweep are judged by test images, after they were chosen."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from kdtune.config.train import TrainConfig
from kdtune.errors import RunError
from kdtune.models.checkpoints import load_model
from kdtune.models.costs import costs_of
from kdtune.plugins import Plugin, have_only, loaded
from kdtune.training.inputs import Inputs, find_data, open_views
from kdtune.training.loop import predict
from kdtune.tuning.cluster.placement import Place, Slots
from kdtune.tuning.trials.trainable import hide_gpus_of_others


def predict_test(networks: list[tuple[Path, TrainConfig]], slots: Slots) -> Iterator[np.ndarray]:
    """Have networks classify the test images, each where a trial would run.

    Args:
        networks: files, and the settings of their runs.
        slots: what trials have.

    Yields:
        Of each network the classes, int64 [N].
    """
    found = []
    for path, config in networks:
        place = _place(config, slots)
        task = _remote(_predict, place, slots)
        network = path.read_bytes()  # other nodes lack the file
        found.append(task.remote(loaded(), network, config, place.threads))
    yield from map(ray.get, found)


def measure(config: TrainConfig, num_classes: int, slots: Slots) -> dict[str, Any]:
    """What a student costs where a trial would run: see `kdtune.models.costs.costs_of`."""
    place = _place(config, slots)
    task = _remote(_measure, place, slots)
    costs: dict[str, Any] = ray.get(task.remote(loaded(), config, num_classes, place.threads))
    return costs


def _place(config: TrainConfig, slots: Slots) -> Place:
    """What a trial of a student has."""
    place = slots.place(config.model)
    if place is None:
        raise RunError(f"No node has room for {config.model} any more.")
    return place


def _remote(function: Any, place: Place, slots: Slots) -> Any:
    """A task with what a trial has, on a node that may get trials."""
    names = ",".join(node.name for node in slots.nodes())
    there = {"ray.io/node-id": f"in({names})"}
    return ray.remote(num_cpus=place.cpus, num_gpus=place.gpus, label_selector=there)(function)


def _measure(
    plugins: Sequence[Plugin], config: TrainConfig, num_classes: int, threads: int
) -> dict[str, Any]:
    hide_gpus_of_others()
    have_only(plugins)
    torch.set_num_threads(threads)
    return costs_of(config, num_classes)


def _predict(
    plugins: Sequence[Plugin], network: bytes, config: TrainConfig, threads: int
) -> np.ndarray:
    hide_gpus_of_others()
    have_only(plugins)
    torch.set_num_threads(threads)
    data, _ = find_data(config.source, config.skip_bad_images, config.cache_gb)
    views = open_views(data, config.image_size, config.cache_gb)
    batches = Inputs(config, views, None, {}, lambda event: None).evaluation("test")
    with tempfile.TemporaryDirectory(prefix="kdtune-") as folder:
        path = Path(folder) / "network.pth"
        path.write_bytes(network)
        return predict(load_model(path)["model"], batches, config).numpy()
