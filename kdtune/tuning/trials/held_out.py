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
from kdtune.models.costs import measure_network_costs
from kdtune.plugins import PLUGINS, Plugin
from kdtune.training.epoch_data import EpochData, find_data, open_decoded_dataset
from kdtune.training.loop import predict
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Allocation, Slots
from kdtune.tuning.trials.trainable import hide_unassigned_gpus


def predict_test_images(
    weights_and_configs: list[tuple[Path, TrainConfig]], slots: Slots
) -> Iterator[np.ndarray]:
    """Have networks classify the test images, each where a trial would run.

    Args:
        networks: files, and the settings of their runs.
        slots: what trials have.

    Yields:
        Of each network the classes, int64 [N].
    """
    pending = []
    for path, config in weights_and_configs:
        allocation = _find_allocation(config, slots)
        task = _make_task(_predict_test_images, allocation, slots)
        weights = path.read_bytes()  # other nodes lack the file
        pending.append(task.remote(pack_plugins(), weights, config, allocation.threads))
    yield from map(ray.get, pending)


def profile_student(config: TrainConfig, num_classes: int, slots: Slots) -> dict[str, Any]:
    """What a student costs where a trial would run: see `kdtune.models.costs.measure_network_costs`."""
    allocation = _find_allocation(config, slots)
    task = _make_task(_profile_student, allocation, slots)
    costs: dict[str, Any] = ray.get(
        task.remote(pack_plugins(), config, num_classes, allocation.threads)
    )
    return costs


def _find_allocation(config: TrainConfig, slots: Slots) -> Allocation:
    """What a trial of a student has."""
    allocation = slots.smallest_allocation(config.model)
    if allocation is None:
        raise RunError(f"No node has room for {config.model} any more.")
    return allocation


def _make_task(function: Any, allocation: Allocation, slots: Slots) -> Any:
    """A task with what a trial has, on a node that may get trials."""
    node_ids = ",".join(node.name for node in slots.nodes())
    label_selector = {"ray.io/node-id": f"in({node_ids})"}
    return ray.remote(
        num_cpus=allocation.cpus, num_gpus=allocation.gpus, label_selector=label_selector
    )(function)


def _profile_student(
    plugins: Sequence[Plugin], config: TrainConfig, num_classes: int, threads: int
) -> dict[str, Any]:
    hide_unassigned_gpus()
    PLUGINS.sync(plugins)
    torch.set_num_threads(threads)
    return measure_network_costs(config, num_classes)


def _predict_test_images(
    plugins: Sequence[Plugin], weights: bytes, config: TrainConfig, threads: int
) -> np.ndarray:
    hide_unassigned_gpus()
    PLUGINS.sync(plugins)
    torch.set_num_threads(threads)
    data, _ = find_data(config.data_source, config.skip_bad_images, config.cache_gb)
    decoded = open_decoded_dataset(data, config.image_size, config.cache_gb)
    batches = EpochData(config, decoded, None, {}, lambda event: None).evaluation_batches("test")
    with tempfile.TemporaryDirectory(prefix="kdtune-") as folder:
        path = Path(folder) / "network.pth"
        path.write_bytes(weights)
        return predict(load_model(path)["model"], batches, config).numpy()
