"""Measurement of the costs of a sweep's trials on this machine.

Trials train side by side in as many processes as the machine has slots, since they slow each other
down. They run the real loop on a sample of the images, with one point of each cell's space.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import ray

from kdtune.config.train import TrainConfig
from kdtune.data.augmented_views import count_processes
from kdtune.data.batches import EVALUATION_BATCH_SIZE, SeededBatchSampler
from kdtune.data.decoded import DecodedDataset
from kdtune.data.splits import ImageData, Split
from kdtune.storage.array_cache import ArrayCache, CacheState
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.driver.preflight import PreparedSweep
from kdtune.tuning.planning import driver_costs
from kdtune.tuning.planning.simulation import SweepCosts
from kdtune.tuning.planning.training_worker import TrainingWorker, TrialCosts
from kdtune.tuning.trials.trial_process import ProcessMemory

MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 2048, 512
"""Maximum sizes of the sample."""

MAX_CELL_SECONDS, MAX_TOTAL_SECONDS = 2.0, 24.0
"""Maximum seconds of training of each cell and of all cells; each cell trains at least a step."""

MAX_BUSY_SECONDS = 600.0
"""Seconds for which the other slots train at most, while a proposal is measured."""


def measure_trial_costs(
    prepared: PreparedSweep, slots: Slots, folder: Path, history: int
) -> tuple[SweepCosts, TrialCosts]:
    """Return the measured costs of a sweep, and the maximum costs of its trials.

    Args:
        prepared: the sweep.
        slots: number and resources of trials on this machine.
        folder: for files that are needed meanwhile.
        history: number of ended trials before a proposal.
    """
    full = prepared.shared_inputs.decoded
    configs = {"-".join(cell): prepared.example_config(cell) for cell in prepared.sweep.cells()}
    cache = ArrayCache(folder / "cache") if full.cache is not None else None
    decoded = DecodedDataset(_sample(full.data), full.image_size, cache)
    arrays = prepared.shared_inputs.warm_cache(slots, lambda line: None, decoded)
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
    longest = max(cells, key=lambda name: cells[name][0][0].epoch_seconds)
    train(workers[1:], configs[longest], MAX_BUSY_SECONDS)
    proposal_seconds = driver_costs.measure_proposal_seconds(prepared, history)
    for worker in workers:
        ray.kill(worker)
    means = {
        name: TrialCosts(*map(fmean, zip(*(costs for costs, _ in measured), strict=True)))
        for name, measured in cells.items()
    }
    times = [[seconds for _, epochs in cell for seconds in epochs] for cell in cells.values()]
    deviations = [stdev(cell) / fmean(cell) for cell in times if len(cell) > 2]
    scale = len(full.data.train) / len(decoded.data.train)
    built = [array for array in arrays if array.state is CacheState.BUILT]
    views = [array for array in built if ", view " in array.label]
    # The view of the sample is too small for the processes that make the whole one.
    processes = count_processes(len(full.data.train), full.image_size) or 1
    saved = (1 - 1 / processes) * sum(a.seconds for a in views if a.content == "pixels")
    costs = SweepCosts(
        epoch_seconds={name: mean.epoch_seconds for name, mean in means.items()},
        epoch_relative_sd=median(deviations or [0.0]),
        process_start_seconds=process_start_seconds,
        trial_start_seconds={name: mean.start_seconds for name, mean in means.items()},
        checkpoint_seconds={name: mean.checkpoint_seconds for name, mean in means.items()},
        report_seconds=driver_costs.REPORT_SECONDS,
        prepare_seconds=scale * (sum(array.seconds for array in built) - saved),
        view_seconds=scale * (sum(array.seconds for array in views) - saved),
        num_views=prepared.shared_inputs.cache_plan.augment_views if views else 0,
        event_seconds=driver_costs.EVENT_SECONDS,
        trial_seconds=driver_costs.TRIAL_SECONDS,
        proposal_seconds=proposal_seconds,
        startup_trials=driver_costs.count_startup_trials(prepared),
        tables_seconds=driver_costs.TABLES_SECONDS,
    )
    largest = TrialCosts(*map(max, zip(*means.values(), strict=True)))
    if cache is None:  # each process holds all images
        missing = [full.array_bytes(s) - decoded.array_bytes(s) for s in ("train", "validation")]
        largest = largest._replace(memory_bytes=largest.memory_bytes + sum(missing))
    return costs, largest


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


def _sample(data: ImageData) -> ImageData:
    """Return training and validation images that are spread evenly over `data`."""

    def sample(split: Split, max_images: int) -> Split:
        positions = np.linspace(0, len(split) - 1, min(max_images, len(split)))
        return split.select(np.unique(positions.astype(int)).tolist())

    train = sample(data.train, MAX_TRAIN_IMAGES)
    validation = sample(data.validation, MAX_VALIDATION_IMAGES)
    return replace(data.without_test(), train=train, validation=validation)
