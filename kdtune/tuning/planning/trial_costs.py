"""What a sweep costs on this machine, measured in about a minute, for `kdtune plan`.

Trials are measured as they would run: in so many processes side by side, each with the threads and
devices of a slot, since they slow each other down; with the real loop and real batches, of some of
the images at most. What is measured of them is scaled to all. Each cell is measured with one point
of its space, and all processes train the same cell at a time; a space in which settings such as
the batch size are searched makes epochs of more than one length, which a plan does not know of.
Nothing is left on the disk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
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
from kdtune.runtime.process import ProcessState, keep_freed_memory
from kdtune.storage.array_cache import ArrayCache, CacheState
from kdtune.training.epoch_data import find_data, open_epoch_data
from kdtune.training.loop import EpochResult, fit
from kdtune.training.teacher import load_teacher
from kdtune.training.teacher_targets import TeacherTargets
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.driver.preflight import PreparedSweep
from kdtune.tuning.trials.trainable import TargetRequests, make_epoch_metrics
from kdtune.tuning.trials.trial_checkpoints import TrialCheckpoints

MAX_SAMPLE_IMAGES = {"train": 2048, "validation": 512}
"""Images of each split that are used, at most."""

MAX_CELL_SECONDS, MAX_TOTAL_SECONDS = 2.0, 24.0
"""Seconds of training of a cell, and of all cells together, at most: at least one step each."""


@dataclass(frozen=True)
class TrialCosts:
    """What trials cost; all but the last four by cell, as ``method-model``.

    Attributes:
        epoch: seconds of an epoch, validation included.
        begin: seconds of a trial before its first epoch.
        checkpoint: seconds to write one.
        checkpoint_bytes: its size.
        memory: bytes that a process has to itself.
        device_memory: bytes of its GPU; 0 without one.
        scatter: standard deviation of an epoch's seconds, as a share of them.
        opening: seconds in which a process opens data and teacher.
        prepare: seconds in which a node builds its views.
        view: seconds for one more augmented view.
    """

    epoch_seconds: dict[str, float]
    trial_start_seconds: dict[str, float]
    checkpoint_seconds: dict[str, float]
    checkpoint_bytes: dict[str, float]
    memory_bytes: dict[str, float]
    device_memory_bytes: dict[str, float]
    epoch_relative_sd: float
    open_seconds: float
    prepare_seconds: float
    view_seconds: float


def measure_trial_costs(
    prepared: PreparedSweep, slots: Slots, folder: Path, while_training: Callable[[], object]
) -> TrialCosts:
    """Measure trials of every cell.

    Args:
        checked: the sweep.
        slots: what a trial gets, and how many run at once, here.
        folder: for what is built meanwhile.
        beside: called while all slots but one train, as they do while one waits for a proposal.
    """
    shared_inputs, sweep = prepared.shared_inputs, prepared.sweep
    full_data = shared_inputs.decoded.data
    data = replace(
        full_data.without_test(),
        train=_subsample(full_data.train, MAX_SAMPLE_IMAGES["train"]),
        validation=_subsample(full_data.validation, MAX_SAMPLE_IMAGES["validation"]),
    )
    sample_factor = len(full_data.train) / len(data.train)
    cache = ArrayCache(folder / "cache") if shared_inputs.decoded.cache is not None else None
    views = DecodedDataset(data, shared_inputs.decoded.image_size, cache)
    prepared_arrays = shared_inputs.with_decoded(views).warm_cache(lambda line: None)
    built = [arrays for arrays in prepared_arrays if arrays.state is CacheState.BUILT]
    extra_views = [arrays for arrays in built if ", view " in arrays.label]
    configs = {
        cell: prepared.configure_trial(cell, 0, prepared.spaces[cell[0]].probe_points()[0][1])
        for cell in sweep.cells()
    }
    allocations = {
        model: slots.smallest_allocation(model) for model in dict.fromkeys(sweep.models)
    }
    threads = {
        model: allocation.threads if allocation else 1 for model, allocation in allocations.items()
    }
    smallest = min(
        (p for p in allocations.values() if p),
        key=lambda allocation: (allocation.gpus, allocation.cpus),
    )
    worker_class = ray.remote(num_cpus=smallest.cpus, num_gpus=smallest.gpus)(_MeasuringWorker)
    worker_args = (
        pack_plugins(),
        data,
        cache,
        sweep.data_source,
        sweep.teacher,
        shared_inputs.target_requests,
    )
    workers = [
        worker_class.remote(*worker_args, folder / f"slot-{number}")
        for number in range(slots.count)
    ]
    open_seconds = ray.get([worker.open_inputs.remote(views.image_size) for worker in workers])
    limit = min(MAX_CELL_SECONDS, MAX_TOTAL_SECONDS / len(configs))
    num_images = len(full_data.train), len(full_data.validation)
    measurements = {
        "-".join(cell): ray.get(
            [
                worker.measure.remote(config, threads[cell[1]], limit, *num_images)
                for worker in workers
            ]
        )
        for cell, config in configs.items()
    }
    longest_config = max(
        configs.values(), key=lambda c: measurements[f"{c.method}-{c.model}"][0]["epoch"]
    )
    for worker in workers[1:]:
        worker.measure.remote(longest_config, threads[longest_config.model], 600.0, *num_images)
    while_training()
    for worker in workers:
        ray.kill(worker)

    def mean(key: str) -> dict[str, float]:
        return {
            name: fmean(measured[key] for measured in per_worker)
            for name, per_worker in measurements.items()
        }

    # Without a cache each process holds all images of its own.
    uncached_bytes = sum(
        shared_inputs.decoded.array_bytes(name) - views.array_bytes(name)
        for name in MAX_SAMPLE_IMAGES
        if cache is None
    )
    epoch_seconds = [
        [s for measured in per_worker for s in measured["epochs"]]
        for per_worker in measurements.values()
    ]
    spreads = [stdev(seconds) / fmean(seconds) for seconds in epoch_seconds if len(seconds) > 2]
    return TrialCosts(
        epoch_seconds=mean("epoch"),
        trial_start_seconds=mean("begin"),
        checkpoint_seconds=mean("checkpoint"),
        checkpoint_bytes=mean("checkpoint_bytes"),
        memory_bytes={
            name: measured + uncached_bytes for name, measured in mean("memory").items()
        },
        device_memory_bytes=mean("device_memory"),
        epoch_relative_sd=median(spreads) if spreads else 0.0,
        open_seconds=fmean(open_seconds),
        prepare_seconds=sample_factor * sum(arrays.seconds for arrays in built),
        view_seconds=sample_factor * sum(arrays.seconds for arrays in extra_views),
    )


def _subsample(split: Split, max_images: int) -> Split:
    """Some images of a split, evenly from all of it."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(max_images, len(split))).astype(int))
    return Split([split.images[i] for i in chosen], [split.labels[i] for i in chosen])


class _TimedPass:
    """The batches of a pass until time is up; afterwards it knows what the pass takes.

    Args:
        batches: of some of the images.
        whole: batches of a pass over all images.
        limit: seconds.
    """

    def __init__(self, batches: Batches, total_batches: int, limit: float):
        self.batches, self.total_batches, self.limit = batches, total_batches, limit
        self.skipped_seconds = 0.0
        """Seconds of the batches that were left out."""

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
    """A process that measures what a trial's does, in Ray's hands."""

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
        self.data, self.cache, self.source = data, cache, source
        self.teacher_path, self.target_requests, self.folder = (
            teacher_path,
            target_requests,
            folder,
        )
        self.process_state = ProcessState()

    def open_inputs(self, image_size: int) -> float:
        """Open what all trials of a process share; gives the seconds that takes of a trial's."""
        started = time.perf_counter()
        find_data(self.source, False, 0, with_test=False)
        self.views = DecodedDataset(self.data, image_size, self.cache)
        self.teacher, self.teacher_targets = None, None
        if self.teacher_path is not None:
            self.teacher = load_teacher(self.teacher_path, self.data.classes, image_size)
            self.teacher_targets = TeacherTargets(self.teacher, image_size, self.target_requests)
        return time.perf_counter() - started

    def measure(
        self,
        config: TrainConfig,
        threads: int,
        limit: float,
        train_images: int,
        validation_images: int,
    ) -> dict[str, Any]:
        """Train for some time, and write a checkpoint; seconds and bytes of each."""
        self.process_state.restore(config.seed)
        torch.set_num_threads(threads)
        pass_batches = (
            len(SeededBatchSampler(train_images, config.batch_size, True)),
            -(-validation_images // EVALUATION_BATCH_SIZE),
        )
        started = time.perf_counter()
        epoch_data = open_epoch_data(config, self.views, self.teacher_targets)
        timed_passes = [
            _TimedPass(batches, total_batches, limit)
            for batches, total_batches in zip(
                (epoch_data.train_batches(1), epoch_data.evaluation_batches("validation")),
                pass_batches,
                strict=True,
            )
        ]
        live_teacher = self.teacher if config.teacher_model is not None else None
        results = fit(
            config.model_copy(update={"epochs": 1_000_000}),
            timed_passes[0],
            timed_passes[1],
            num_classes=len(self.data.classes),
            teacher=live_teacher,
        )
        start_seconds = time.perf_counter() - started
        for timed_pass in timed_passes:
            timed_pass.limit = limit / 10
        next(results)  # what happens once, in the first steps of a process, does not count
        for timed_pass in timed_passes:
            timed_pass.limit = limit
        started, epochs = time.perf_counter(), list[float]()
        while not epochs or time.perf_counter() - started < limit:
            result = next(results)
            epochs.append(
                result.seconds + sum(timed_pass.skipped_seconds for timed_pass in timed_passes)
            )
        return {
            "begin": start_seconds,
            "epoch": fmean(epochs),
            "epochs": epochs,
            **self._checkpoint(config, result),
            "memory": psutil.Process().memory_full_info().uss,
            "device_memory": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
        }

    def _checkpoint(self, config: TrainConfig, result: EpochResult) -> dict[str, float]:
        """Write a checkpoint of a trial, as it is where the last epoch was not the best."""
        folder = self.folder / file_stem(config.method, config.model)
        result.state["best_epoch"] = 0
        started = time.perf_counter()
        TrialCheckpoints(folder, config, self.data.classes).save(
            result, [make_epoch_metrics(result)]
        )
        seconds = time.perf_counter() - started
        [path] = folder.glob("*.pth")
        return {"checkpoint": seconds, "checkpoint_bytes": path.stat().st_size}
