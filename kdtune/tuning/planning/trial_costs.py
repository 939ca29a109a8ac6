"""Measurement of the costs of a sweep's trials on this machine.

Trials train side by side in as many processes as the machine has slots, with the threads and
devices of a slot, since they slow each other down. They run the real loop on a sample of the
images, for some seconds per cell and with one point of its space. Nothing is left on the disk.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import psutil
import ray
import torch

from kdtune.config.train import DataSource, TrainConfig, file_stem
from kdtune.data.batches import EVALUATION_BATCH_SIZE, Batch, Batches, SeededBatchSampler
from kdtune.data.decoded import DecodedDataset
from kdtune.data.splits import ImageData, Split
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.device import has_gpu
from kdtune.runtime.process import ProcessState, keep_freed_memory
from kdtune.storage.array_cache import ArrayCache, CacheState
from kdtune.training.epoch_data import find_data, open_epoch_data
from kdtune.training.loop import EpochResult, fit
from kdtune.training.teacher import load_teacher
from kdtune.training.teacher_targets import TeacherTargets
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.driver.preflight import PreparedSweep
from kdtune.tuning.planning.simulation import SweepCosts
from kdtune.tuning.trials.trainable import TargetRequests, make_epoch_metrics
from kdtune.tuning.trials.trial_checkpoints import TrialCheckpoints

MAX_TRAIN_IMAGES, MAX_VALIDATION_IMAGES = 2048, 512
"""Maximum sizes of the sample."""

MAX_CELL_SECONDS, MAX_TOTAL_SECONDS = 2.0, 24.0
"""Maximum seconds of training of each cell and of all cells; each cell trains at least a step."""

MAX_BUSY_SECONDS = 600.0
"""Seconds for which the other slots train at most, while a proposal is measured."""


@dataclass(frozen=True)
class TrialSizes:
    """Memory and disk space of a trial, in bytes: those of the cell that needs most.

    Attributes:
        checkpoint_bytes: size of a checkpoint.
        memory_bytes: memory that only its process uses.
        device_memory_bytes: memory of its GPU; 0 without one.
    """

    checkpoint_bytes: float
    memory_bytes: float
    device_memory_bytes: float


@dataclass(frozen=True)
class _Measurement:
    """Costs of one cell's trials in one process."""

    start_seconds: float
    epoch_seconds: list[float]
    checkpoint_seconds: float
    checkpoint_bytes: float
    memory_bytes: float
    device_memory_bytes: float


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
        Costs without those of the driver but for a proposal, and sizes.
    """
    full, sweep = prepared.shared_inputs.decoded, prepared.sweep
    cache = ArrayCache(folder / "cache") if full.cache is not None else None
    decoded = DecodedDataset(_sample(full.data), full.image_size, cache)
    arrays = prepared.shared_inputs.warm_cache(lambda line: None, decoded)
    started_at = time.perf_counter()
    workers = _start_workers(prepared, slots, decoded, folder)
    process_start_seconds = time.perf_counter() - started_at

    def train(workers: list[Any], config: TrainConfig, limit: float) -> list[Any]:
        allocation = slots.smallest_allocation(config.model)
        threads = allocation.threads if allocation is not None else 1
        num_images = len(full.data.train), len(full.data.validation)
        return [worker.measure.remote(config, threads, limit, *num_images) for worker in workers]

    limit = min(MAX_CELL_SECONDS, MAX_TOTAL_SECONDS / len(sweep.cells()))
    configs: dict[str, TrainConfig] = {}
    cells: dict[str, list[_Measurement]] = {}
    for cell in sweep.cells():
        name, (_, settings) = "-".join(cell), prepared.spaces[cell[0]].probe_points()[0]
        configs[name] = prepared.configure_trial(cell, 0, settings)
        cells[name] = ray.get(train(workers, configs[name], limit))
    longest = max(cells, key=lambda name: fmean(cells[name][0].epoch_seconds))
    train(workers[1:], configs[longest], MAX_BUSY_SECONDS)
    proposal_seconds = measure_proposal()
    for worker in workers:
        ray.kill(worker)

    def mean(get: Callable[[_Measurement], float]) -> dict[str, float]:
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
    images_bytes = 0
    if cache is None:  # each process holds all images
        for split in ("train", "validation"):
            images_bytes += full.array_bytes(split) - decoded.array_bytes(split)
    return costs, TrialSizes(
        checkpoint_bytes=max(mean(lambda m: m.checkpoint_bytes).values()),
        memory_bytes=max(mean(lambda m: m.memory_bytes).values()) + images_bytes,
        device_memory_bytes=max(mean(lambda m: m.device_memory_bytes).values()),
    )


def _start_workers(
    prepared: PreparedSweep, slots: Slots, decoded: DecodedDataset, folder: Path
) -> list[Any]:
    """Start a process for each slot, and wait until all have opened their inputs."""
    allocations = [slots.smallest_allocation(model) for model in prepared.sweep.models]
    smallest = min((a for a in allocations if a is not None), key=lambda a: (a.gpus, a.cpus))
    worker_class = ray.remote(num_cpus=smallest.cpus, num_gpus=smallest.gpus)(_MeasuringWorker)
    sweep, target_requests = prepared.sweep, prepared.shared_inputs.target_requests
    workers = [
        worker_class.remote(
            pack_plugins(), decoded.data, decoded.cache, sweep.data_source, sweep.teacher,
            target_requests, folder / f"slot-{number}",
        )
        for number in range(slots.count)
    ]  # fmt: skip
    ray.get([worker.open_inputs.remote(decoded.image_size) for worker in workers])
    return workers


def _relative_sd(cells: Iterable[list[_Measurement]]) -> float:
    """Return the standard deviation of epoch times relative to their mean, of the median cell."""
    times = [[seconds for m in cell for seconds in m.epoch_seconds] for cell in cells]
    return median([stdev(cell) / fmean(cell) for cell in times if len(cell) > 2] or [0.0])


def _sample(data: ImageData) -> ImageData:
    """Return training and validation images that are spread evenly over `data`."""

    def sample(split: Split, max_images: int) -> Split:
        count = min(max_images, len(split))
        chosen = np.unique(np.linspace(0, len(split) - 1, count).astype(int))
        return Split([split.images[i] for i in chosen], [split.labels[i] for i in chosen])

    return replace(
        data.without_test(),
        train=sample(data.train, MAX_TRAIN_IMAGES),
        validation=sample(data.validation, MAX_VALIDATION_IMAGES),
    )


class _TimedPass:
    """Batches of a pass until its time is up.

    Args:
        batches: of the sample.
        total_batches: number of batches of a pass over all images.
        limit: seconds.
    """

    def __init__(self, batches: Batches, total_batches: int, limit: float):
        self.batches, self.total_batches, self.limit = batches, total_batches, limit
        self.skipped_seconds = 0.0
        """Estimated seconds of the batches that the latest pass left out."""

    def __iter__(self) -> Iterator[Batch]:
        started, count = time.perf_counter(), 0
        for batch in self.batches:
            yield batch
            count += 1
            if time.perf_counter() - started > self.limit:
                break
        if self.batches.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        self.skipped_seconds = seconds * (self.total_batches - count) / count if count else 0.0


class _MeasuringWorker:
    """Process that trains as a trial does."""

    def __init__(
        self,
        plugins: Sequence[Plugin],
        data: ImageData,
        cache: ArrayCache | None,
        source: DataSource,
        teacher_path: str | None,
        target_requests: TargetRequests,
        folder: Path,
    ):
        keep_freed_memory()
        PLUGINS.sync(plugins)
        self.data, self.cache, self.source, self.folder = data, cache, source, folder
        self.teacher_path, self.target_requests = teacher_path, target_requests
        self.process_state = ProcessState()

    def open_inputs(self, image_size: int) -> None:
        """Open the data and the teacher, which all trials of a process share."""
        find_data(self.source, False, 0, with_test=False)
        self.views = DecodedDataset(self.data, image_size, self.cache)
        self.teacher, self.teacher_targets = None, None
        if self.teacher_path is not None:
            self.teacher = load_teacher(self.teacher_path, self.data.classes, image_size)
            self.teacher_targets = TeacherTargets(self.teacher, image_size, self.target_requests)

    def measure(
        self, config: TrainConfig, threads: int, limit: float, num_train: int, num_validation: int
    ) -> _Measurement:
        """Train for some time, then write a checkpoint.

        Args:
            config: settings of the trial.
            threads: number of threads.
            limit: seconds.
            num_train: number of training images of the sweep.
            num_validation: number of its validation images.
        """
        self.process_state.restore(config.seed)
        torch.set_num_threads(threads)
        pass_batches = (
            len(SeededBatchSampler(num_train, config.batch_size, True)),
            -(-num_validation // EVALUATION_BATCH_SIZE),
        )
        started_at = time.perf_counter()
        epoch_data = open_epoch_data(config, self.views, self.teacher_targets)
        train = _TimedPass(epoch_data.train_batches(1), pass_batches[0], limit / 10)
        validation = _TimedPass(
            epoch_data.evaluation_batches("validation"), pass_batches[1], limit / 10
        )
        results = fit(
            config.model_copy(update={"epochs": 1_000_000}),
            train,
            validation,
            num_classes=len(self.data.classes),
            teacher=self.teacher if config.teacher_model is not None else None,
        )
        start_seconds = time.perf_counter() - started_at
        next(results)  # the first steps of a process are slower
        train.limit = validation.limit = limit
        started_at, epoch_seconds = time.perf_counter(), list[float]()
        while not epoch_seconds or time.perf_counter() - started_at < limit:
            result = next(results)
            skipped_seconds = train.skipped_seconds + validation.skipped_seconds
            epoch_seconds.append(result.seconds + skipped_seconds)
        checkpoint_seconds, checkpoint_bytes = self._save_checkpoint(config, result)
        return _Measurement(
            start_seconds=start_seconds,
            epoch_seconds=epoch_seconds,
            checkpoint_seconds=checkpoint_seconds,
            checkpoint_bytes=checkpoint_bytes,
            memory_bytes=psutil.Process().memory_full_info().uss,
            device_memory_bytes=torch.cuda.max_memory_reserved() if has_gpu() else 0,
        )

    def _save_checkpoint(self, config: TrainConfig, result: EpochResult) -> tuple[float, int]:
        """Save a checkpoint whose last epoch is not the best; return seconds and bytes."""
        folder = self.folder / file_stem(config.method, config.model)
        result.state["best_epoch"] = 0
        started_at = time.perf_counter()
        checkpoints = TrialCheckpoints(folder, config, self.data.classes)
        checkpoints.save(result, [make_epoch_metrics(result)])
        seconds = time.perf_counter() - started_at
        [path] = folder.glob("*.pth")
        return seconds, path.stat().st_size
