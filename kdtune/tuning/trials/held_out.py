"""Evaluation of chosen networks on the test set, which nothing else reads; model costs."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
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
from kdtune.training.epoch import predict
from kdtune.training.epoch_data import EpochData, find_data, open_decoded_dataset
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.trials.trial_process import hide_unassigned_gpus


def predict_test_images(
    weights_and_configs: list[tuple[Path, TrainConfig]], slots: Slots
) -> Iterator[np.ndarray]:
    """Yield the classes, int64 [N], that each network predicts for the test images.

    Args:
        weights_and_configs: weights files, and the settings of their runs.
        slots: give each network the resources of a trial.
    """
    pending = []
    for path, config in weights_and_configs:  # other nodes lack the files
        pending.append(_submit(_predict_test_images, slots, config, path.read_bytes()))
    yield from map(ray.get, pending)


def profile_student(config: TrainConfig, num_classes: int, slots: Slots) -> dict[str, Any]:
    """Return the costs of a student: see `kdtune.models.costs.measure_network_costs`.

    Args:
        config: settings of a run.
        num_classes: number of classes of the data.
        slots: give the student the resources of a trial.
    """
    return dict(ray.get(_submit(measure_network_costs, slots, config, num_classes)))


def _submit(
    function: Callable[..., object], slots: Slots, config: TrainConfig, argument: object
) -> Any:
    """Return a Ray task that calls a function with the resources of a trial."""
    allocation = slots.smallest_allocation(config.model)
    if allocation is None:
        raise RunError(f"No node has room for {config.model} any more.")
    task = ray.remote(
        num_cpus=allocation.cpus,
        num_gpus=allocation.gpus,
        label_selector={"ray.io/node-id": f"in({','.join(n.name for n in slots.nodes())})"},
    )(_call_as_trial)
    return task.remote(pack_plugins(), allocation.threads, function, config, argument)


def _call_as_trial(
    plugins: Sequence[Plugin], threads: int, function: Callable[..., object], *arguments: object
) -> object:
    hide_unassigned_gpus()
    PLUGINS.sync(plugins)
    torch.set_num_threads(threads)
    return function(*arguments)


def _predict_test_images(config: TrainConfig, weights: bytes) -> np.ndarray:
    data, _ = find_data(config)
    decoded = open_decoded_dataset(data, config.image_size, config.cache_gb)
    batches = EpochData(config, decoded, None, {}, lambda event: None).evaluation_batches("test")
    with tempfile.TemporaryDirectory(prefix="kdtune-") as folder:
        path = Path(folder) / "network.pth"
        path.write_bytes(weights)
        return predict(load_model(path)["model"], batches, config).numpy()
