"""Measurement of the costs of a sweep's trials on this machine.

Trials train side by side in as many processes as the machine has slots, with the threads and
devices of a slot, since they slow each other down. They run the real loop on a sample of the
images, for some seconds per cell and with one point of its space. Nothing is left on the disk.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import ray

from kdtune.config.train import TrainConfig
from kdtune.data.batches import EVALUATION_BATCH_SIZE, SeededBatchSampler
from kdtune.data.decoded import DecodedDataset
from kdtune.data.splits import ImageData, Split
from kdtune.storage.array_cache import ArrayCache, CacheState
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.driver.preflight import PreparedSweep
from kdtune.tuning.planning.simulation import SweepCosts
from kdtune.tuning.planning.training_worker import TrainingWorker, TrialMeasurement, TrialSizes
from kdtune.tuning.trials.trainable import ProcessMemory

MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 2048, 512
"""Maximum sizes of the sample."""

MAX_CELL_SECONDS, MAX_TOTAL_SECONDS = 2.0, 24.0
"""Maximum seconds of training of each cell and of all cells; each cell trains at least a step."""

MAX_BUSY_SECONDS = 600.0
"""Seconds for which the other slots train at most, while a proposal is measured."""


def measure_trial_costs(
    prepared: PreparedSweep, slots: Slots, folder: Path, measure_proposal: Callable[[], float]
) -> tuple[SweepCosts, TrialSizes]:
    """Measure trials of every cell.

    Args:
        prepared: the sweep.
        slots: number and resources of trials on this machine.
        folder: for files that are needed meanwhile.
        measure_proposal: returns the seconds of a proposal; called while all slots but one train.

    Returns:
        Costs without those of the driver but for a proposal; maximum sizes of all cells.
    """
    full, configs = prepared.shared_inputs.decoded, dict[str, TrainConfig]()
    for cell in prepared.sweep.cells():
        _, settings = prepared.spaces[cell[0]].probe_points()[0]
        configs["-".join(cell)] = prepared.configure_trial(cell, 0, settings)
    cache = ArrayCache(folder / "cache") if full.cache is not None else None
    decoded = DecodedDataset(_sample(full.data), full.image_size, cache)
    arrays = prepared.shared_inputs.with_decoded(decoded).warm_cache(lambda line: None)
    started_at = time.perf_counter()
    workers = _start_workers(prepared, slots, decoded, configs.values())
    process_start_seconds = time.perf_counter() - started_at

    def train(workers: list[Any], config: TrainConfig, limit: float) -> list[Any]:
        allocation = slots.smallest_allocation(config.model)
        threads = allocation.threads if allocation is not None else 1
        train_batches = SeededBatchSampler(len(full.data.train), config.batch_size, shuffle=True)
        steps = len(train_batches), -(-len(full.data.validation) // EVALUATION_BATCH_SIZE)
        arguments = config, threads, limit, steps, folder
        return [worker.measure_costs.remote(*arguments) for worker in workers]

    limit, cells = min(MAX_CELL_SECONDS, MAX_TOTAL_SECONDS / len(configs)), {}
    for name, config in configs.items():
        cells[name] = ray.get(train(workers, config, limit))
    longest = max(cells, key=lambda name: fmean(cells[name][0].epoch_seconds))
    train(workers[1:], configs[longest], MAX_BUSY_SECONDS)
    proposal_seconds = measure_proposal()
    for worker in workers:
        ray.kill(worker)

    def mean(get: Callable[[TrialMeasurement], float]) -> dict[str, float]:
        return {name: fmean(map(get, measured)) for name, measured in cells.items()}

    scale = len(full.data.train) / len(decoded.data.train)
    built = [array for array in arrays if array.state is CacheState.BUILT]
    costs = SweepCosts(
        epoch_seconds=mean(lambda m: fmean(m.epoch_seconds)),
        epoch_relative_sd=_relative_sd(cells.values()),
        process_start_seconds=process_start_seconds,
        trial_start_seconds=mean(lambda m: m.start_seconds),
        checkpoint_seconds=mean(lambda m: m.checkpoint_seconds),
        proposal_seconds=proposal_seconds,
        prepare_seconds=scale * sum(array.seconds for array in built),
        view_seconds=scale * sum(a.seconds for a in built if ", view " in a.label),
    )
    means = [map(fmean, zip(*(m.sizes for m in cell), strict=True)) for cell in cells.values()]
    sizes = TrialSizes(*map(max, zip(*means, strict=True)))
    if cache is None:  # each process holds all images
        missing = [full.array_bytes(s) - decoded.array_bytes(s) for s in ("train", "validation")]
        sizes = sizes._replace(memory=sizes.memory + sum(missing))
    return costs, sizes


def _start_workers(
    prepared: PreparedSweep, slots: Slots, decoded: DecodedDataset, configs: Iterable[TrainConfig]
) -> list[Any]:
    """Start a process for each slot, and wait until all have opened their inputs."""
    allocations = [slots.smallest_allocation(model) for model in prepared.sweep.models]
    smallest = min((a for a in allocations if a is not None), key=lambda a: (a.gpus, a.cpus))
    worker_class = ray.remote(num_cpus=smallest.cpus, num_gpus=smallest.gpus)(TrainingWorker)
    memory = ProcessMemory(prepared.shared_inputs.target_requests, decoded)
    plugins = pack_plugins()
    workers = [worker_class.remote(plugins, memory) for _ in range(slots.count)]
    config = max(configs, key=lambda config: config.teacher_model is not None)
    ray.get([worker.open_inputs.remote(config) for worker in workers])
    return workers


def _relative_sd(cells: Iterable[list[TrialMeasurement]]) -> float:
    """Return the standard deviation of epoch times relative to their mean, of the median cell."""
    times = [[seconds for m in cell for seconds in m.epoch_seconds] for cell in cells]
    return median([stdev(cell) / fmean(cell) for cell in times if len(cell) > 2] or [0.0])


def _sample(data: ImageData) -> ImageData:
    """Return training and validation images that are spread evenly over `data`."""

    def sample(split: Split, max_images: int) -> Split:
        positions = np.linspace(0, len(split) - 1, min(max_images, len(split)))
        chosen = np.unique(positions.astype(int))
        return Split([split.images[i] for i in chosen], [split.labels[i] for i in chosen])

    train = sample(data.train, MAX_TRAIN_IMAGES)
    validation = sample(data.validation, MAX_VALIDATION_IMAGES)
    return replace(data.without_test(), train=train, validation=validation)
