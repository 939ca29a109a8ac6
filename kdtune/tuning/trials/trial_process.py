"""Ray Tune's process of a trial: runs one trial after another and reports their results.

It is a class because Tune runs functions in threads, where a trial that is slow to end makes the
next one fail. Trials do not get the test images, so neither a setting nor a faulty method can
reach them.
"""

import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray import tune
from torch import nn

from kdtune.config.train import TrainConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.errors import DiskFullError, DivergedError, GpuLostError, UserError, typed_first_line
from kdtune.log.events import EpochMetrics
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.device import (
    avoid_gpu_fragmentation,
    describe_gpu,
    hide_gpus,
    is_gpu_lost,
    limit_gpu_memory,
    wait_for_gpu_memory,
)
from kdtune.runtime.process import ProcessState, keep_freed_memory
from kdtune.storage.array_cache import CacheProgress, CacheState, OnCacheProgress
from kdtune.storage.remote import Storage
from kdtune.training.epoch_data import (
    EpochData,
    find_data,
    open_decoded_dataset,
    open_epoch_data,
    require_room,
)
from kdtune.training.loop import METRIC_NAMES, EpochResult, fit
from kdtune.training.teacher import load_run_teacher
from kdtune.training.teacher_targets import TeacherTargets
from kdtune.tuning.trials import results, trial_checkpoints
from kdtune.tuning.trials.results import CacheReported, EpochReported, Failure, TrialFailed

TargetRequests = tuple[tuple[TrainConfig, tuple[tuple[int, int, int], ...]], ...]
"""Runs whose teacher targets are cached: settings, and (C, H, W) of the student's stages."""

# Texts of errors that have no class of their own.
_OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
    # What cuBLAS and cuDNN say if they find no room for their handles and workspaces.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "nable to find an engine to execute",
)


class ProcessMemory:
    """Images and teacher, which a process opens once for all trials of a sweep.

    Args:
        target_requests: see `TargetRequests`.
        decoded: images without the test images; opened for the first trial if None.
        teacher: loaded for the first trial that has one if None.
    """

    def __init__(
        self,
        target_requests: TargetRequests = (),
        decoded: DecodedDataset | None = None,
        teacher: nn.Module | None = None,
    ):
        self.target_requests, self._decoded, self._teacher = target_requests, decoded, teacher
        self._teacher_targets: TeacherTargets | None = None
        self.write_cost = trial_checkpoints.WriteCost()

    def decoded(self, config: TrainConfig) -> DecodedDataset:
        """Return the images of a trial."""
        if self._decoded is None:
            data, _ = find_data(config, with_test=False)
            self._decoded = open_decoded_dataset(data, config.image_size, config.cache_gb)
            require_room(self._decoded)
        return self._decoded

    def teacher(self, config: TrainConfig) -> nn.Module:
        """Return the teacher of a trial that has one."""
        if self._teacher is None:
            self._teacher = load_run_teacher(config, self.decoded(config).data.classes)
        assert self._teacher is not None
        return self._teacher

    def teacher_targets(self, config: TrainConfig) -> TeacherTargets:
        """Return the targets of all requests, which one pass of the teacher computes."""
        if self._teacher_targets is None:
            teacher, requests = self.teacher(config), self.target_requests
            self._teacher_targets = TeacherTargets(teacher, config.image_size, requests)
        return self._teacher_targets


def hide_unassigned_gpus() -> None:
    """Hide the GPUs from a process of Ray that has none assigned; Ray leaves them visible."""
    if not ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        hide_gpus()


class TrialProcess(tune.Trainable):
    """Ray's side of a trial: every `step` gives one result of `run_trial`.

    Ray passes ``trial_id``; ``config``, the complete `TrainConfig` as a dict; ``allocation``, a
    `kdtune.tuning.cluster.placement.Allocation` as a dict; and what `tune.with_parameters` adds.
    """

    def setup(
        self,
        ray_config: dict[str, Any],
        target_requests: TargetRequests = (),
        checkpoints: Path | Storage | None = None,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        keep_freed_memory()
        avoid_gpu_fragmentation()
        hide_unassigned_gpus()
        wait_for_gpu_memory(ray_config["allocation"]["gpus"])
        with suppress(UserError):  # the trial raises it again, and so reports it
            PLUGINS.sync(plugins)
        self._process_state, self._memory = ProcessState(), ProcessMemory(target_requests)
        self._checkpoints, self._plugins = checkpoints, plugins
        self._start_trial(ray_config)

    def reset_config(self, ray_config: dict[str, Any]) -> bool:
        self.cleanup()  # the trial before, however long that takes
        self._start_trial(ray_config)
        return True

    def step(self) -> dict[str, Any]:
        return results.to_ray(next(self._results))

    def cleanup(self) -> None:
        with suppress(Exception):  # errors at its end must not harm the next trial
            self._results.close()

    def _start_trial(self, ray_config: dict[str, Any]) -> None:
        if is_gpu_lost():  # while the trial before was stopped
            raise GpuLostError("the GPU cannot be used by this process any more")
        self._process_state.restore(ray_config["config"]["seed"])
        torch.set_num_threads(ray_config["allocation"]["threads"])
        limit_gpu_memory(ray_config["allocation"]["gpus"])
        self._results = self._iter_all_results(ray_config)

    def _iter_all_results(
        self, ray_config: dict[str, Any]
    ) -> Generator[results.TrialResult, None, None]:
        node_id = ray.get_runtime_context().get_node_id()
        yield results.ProcessStarted(node_id=node_id, pid=os.getpid())
        yield from self.iter_results(ray_config["trial_id"], ray_config["config"])

    def iter_results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[results.TrialResult, None, None]:
        """Return the results of a trial as it runs.

        Args:
            trial_id: names the folder of its checkpoints.
            config: complete `TrainConfig`.
        """
        folder = self._checkpoints
        if isinstance(folder, Storage):
            folder = folder.subfolder(trial_id)
        elif folder is not None:
            folder /= trial_id
        return run_trial(config, self._memory, folder, self._plugins)


def run_trial(
    config_values: dict[str, Any],
    memory: ProcessMemory | None = None,
    folder: Path | Storage | None = None,
    plugins: Sequence[Plugin] = (),
) -> Generator[results.TrialResult, None, None]:
    """Run a trial from its start or its last checkpoint; yield its results, earlier ones too.

    A trial that is closed saves a checkpoint. One that fails yields the failure as last result.

    Args:
        config_values: complete `TrainConfig`.
        memory: kept for further trials of the process; None if there are none.
        folder: for the checkpoints of this trial; None to write none.
        plugins: those of the sweep.

    Raises:
        GpuLostError: the process must end, since no trial can use the GPU in it any more.
    """
    try:
        PLUGINS.sync(plugins)
        yield from _train(TrainConfig.parse(config_values), memory or ProcessMemory(), folder)
    except Exception as error:  # of any kind: it must not end the sweep
        if is_gpu_lost():
            text = f"its process lost the GPU {describe_gpu()}: {typed_first_line(error)}"
            raise GpuLostError(text) from error
        yield _describe_failure(error)


def _train(
    config: TrainConfig, memory: ProcessMemory, folder: Path | Storage | None
) -> Iterator[results.TrialResult]:
    cache_events: SimpleQueue[CacheProgress | None] = SimpleQueue()
    epoch_data, classes, teacher = open_trial_data(config, memory, cache_events.put)
    load_validation = partial(epoch_data.evaluation_batches, "validation")
    yield from _iter_cache_events(cache_events, load_validation)
    state, history, result = None, list[EpochMetrics](), None
    with _open_checkpoints(folder, config, memory) as checkpoints:
        try:
            if checkpoints is not None and (latest := checkpoints.load_latest()) is not None:
                state, history = latest
                yield from (EpochReported(metrics=metrics) for metrics in history)
            batches = epoch_data.train_batches, load_validation()
            epochs = fit(
                config,
                *batches,
                num_classes=len(classes),
                class_counts=epoch_data.class_counts,
                teacher=teacher,
                resume=state,
            )
            for epoch in range(len(history) + 1, config.epochs + 1):
                yield from _iter_cache_events(cache_events, partial(epoch_data.load_arrays, epoch))
                result = next(epochs)
                history.append(make_epoch_metrics(result))
                if checkpoints is not None:
                    is_last = epoch == config.epochs
                    (checkpoints.save if is_last else checkpoints.save_if_due)(result, history)
                yield EpochReported(metrics=history[-1])
        except GeneratorExit:  # the trial is stopped, or interrupted to be resumed
            if checkpoints is not None and result is not None:
                with suppress(Exception):  # nothing can be reported any more
                    checkpoints.save(result, history)
            raise


@contextmanager
def _open_checkpoints(
    folder: Path | Storage | None, config: TrainConfig, memory: ProcessMemory
) -> Iterator[trial_checkpoints.TrialCheckpoints | None]:
    settings = config, memory.decoded(config).data.classes, memory.write_cost
    match folder:
        case None:
            yield None
        case Path():
            yield trial_checkpoints.TrialCheckpoints(folder, *settings)
        case _:
            with TemporaryDirectory(prefix="kdtune-", ignore_cleanup_errors=True) as temporary:
                remote = trial_checkpoints.RemoteTrialCheckpoints
                yield remote(Path(temporary), *settings, storage=folder)


def _describe_failure(error: Exception) -> TrialFailed:
    match error:
        case DivergedError():
            return TrialFailed(failure=Failure.DIVERGED, reason=str(error))
        case DiskFullError():
            return TrialFailed(failure=Failure.DISK_FULL, reason=str(error))
    failure = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.CRASHED
    return TrialFailed(failure=failure, reason=typed_first_line(error))


def open_trial_data(
    config: TrainConfig, memory: ProcessMemory, on_progress: OnCacheProgress
) -> tuple[EpochData, tuple[str, ...], nn.Module | None]:
    """Return the batches of a trial, the class names, and the teacher if the trial has one.

    Args:
        config: complete settings.
        memory: opens images and teacher.
        on_progress: takes what is built or waited for.
    """
    decoded, teacher, teacher_targets = memory.decoded(config), None, None
    if config.teacher_model is not None:
        teacher, teacher_targets = memory.teacher(config), memory.teacher_targets(config)
    epoch_data = open_epoch_data(config, decoded, teacher_targets, on_progress)
    return epoch_data, decoded.data.classes, teacher


def is_out_of_memory(error: Exception) -> bool:
    """Return True if a device or the machine had too little memory."""
    is_memory_error = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_memory_error or any(text in str(error) for text in _OUT_OF_MEMORY_MESSAGES)


def _iter_cache_events(
    cache_events: SimpleQueue[CacheProgress | None], load: Callable[[], object]
) -> Iterator[CacheReported]:
    """Load arrays in a thread, and yield what is built or waited for meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(load)
        future.add_done_callback(lambda _: cache_events.put(None))
        for progress in iter(cache_events.get, None):
            if progress.state is not CacheState.CACHED:
                yield CacheReported(progress=progress)
        future.result()


def make_epoch_metrics(result: EpochResult) -> EpochMetrics:
    """Return the numbers of an epoch; None for parts of the loss that are not finite."""
    losses = {name: v if math.isfinite(v) else None for name, v in result.losses.items()}
    return EpochMetrics(losses=losses, **{name: getattr(result, name) for name in METRIC_NAMES})
