"""A process that runs one trial after another for Ray Tune: a few lines around `fit`.

It is a class and no function, since Tune runs functions in threads: one that takes long to end
makes the next trial fail. Here the next one waits. A trial that fails by itself reports that as
its last result, with the reason in one line, so that the process goes on to the next trial; only a
process that dies is an error to Ray. A trial that was begun before goes on from its checkpoint.

Test images are not among what a trial has: no setting and no mistake of a method can reach them.
"""

import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import torch
from ray import tune
from torch import nn

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import DataSource, TrainConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.errors import DiskFullError, DivergedError, UserError, typed_first_line
from kdtune.log.events import EpochMetrics
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.device import hide_gpus
from kdtune.runtime.process import ProcessState, keep_freed_memory
from kdtune.storage.array_cache import CacheProgress, CacheState, OnCacheProgress
from kdtune.storage.remote import Storage
from kdtune.training.epoch_data import EpochData, find_data, open_decoded_dataset, open_epoch_data
from kdtune.training.loop import METRIC_NAMES, EpochResult, fit
from kdtune.training.teacher import load_teacher
from kdtune.training.teacher_targets import TeacherTargets
from kdtune.tuning.trials.results import (
    CacheReported,
    EpochReported,
    Failure,
    ProcessStarted,
    TrialFailed,
    TrialResult,
    to_ray,
)
from kdtune.tuning.trials.trial_checkpoints import RemoteTrialCheckpoints, TrialCheckpoints

TargetRequests = tuple[tuple[TrainConfig, tuple[tuple[int, int, int], ...]], ...]
"""Runs whose targets the sweep keeps: settings, and (C, H, W) of the student's stages."""


# What all trials of a sweep have in common is opened once in a process.
@lru_cache(maxsize=1)
def _open_decoded(
    source: DataSource, skip_bad_images: bool, image_size: int, cache_gb: float
) -> DecodedDataset:
    data, _ = find_data(source, skip_bad_images, cache_gb, with_test=False)
    return open_decoded_dataset(data, image_size, cache_gb)


@lru_cache(maxsize=1)
def _load_teacher(path: str, classes: tuple[str, ...], image_size: int) -> nn.Module:
    return load_teacher(path, classes, image_size)


@lru_cache(maxsize=1)
def _request_targets(
    teacher: nn.Module, image_size: int, target_requests: TargetRequests
) -> TeacherTargets:
    """All that the sweep wants to know, so that one pass of the teacher gives it to all."""
    return TeacherTargets(teacher, image_size, target_requests)


def open_shared_inputs(
    sweep: SweepConfig, target_requests: TargetRequests
) -> tuple[DecodedDataset, TeacherTargets | None]:
    """What all trials of a sweep have in common, where this process runs."""
    assert sweep.image_size is not None
    decoded = _open_decoded(
        sweep.data_source, sweep.skip_bad_images, sweep.image_size, sweep.cache_gb
    )
    if sweep.teacher is None or not target_requests:
        return decoded, None
    teacher = _load_teacher(sweep.teacher, decoded.data.classes, sweep.image_size)
    return decoded, _request_targets(teacher, sweep.image_size, target_requests)


def hide_unassigned_gpus() -> None:
    """Have a process of Ray's without a GPU see none, which Ray itself does not care for."""
    if not ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        hide_gpus()


class TrialProcess(tune.Trainable):
    """Ray's side of a trial: every `step` gives one result of `trial_results`.

    Its settings are ``trial_id``; ``config``, the complete `TrainConfig` as a dict; ``place``, a
    `kdtune.tuning.cluster.placement.Allocation` as a dict.
    """

    def setup(
        self,
        ray_config: dict[str, Any],
        target_requests: TargetRequests = (),
        checkpoints: Path | Storage | None = None,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        """Begin the first trial of the process; `checkpoints` is a folder for those of all."""
        keep_freed_memory()
        hide_unassigned_gpus()
        with suppress(UserError):  # which the trial raises again, and so reports
            PLUGINS.sync(plugins)
        self._process_state, self._target_requests, self._checkpoints = (
            ProcessState(),
            target_requests,
            checkpoints,
        )
        self._plugins = plugins
        self._start_trial(ray_config)

    def reset_config(self, ray_config: dict[str, Any]) -> bool:
        """Begin another trial, once the one before has ended, however long that takes."""
        self.cleanup()
        self._start_trial(ray_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial up to its next result."""
        return to_ray(next(self._results))

    def cleanup(self) -> None:
        """End the trial."""
        with suppress(Exception):  # whatever its ending may raise is not the next one's fault
            self._results.close()

    def _start_trial(self, ray_config: dict[str, Any]) -> None:
        self._process_state.restore(ray_config["config"]["seed"])
        torch.set_num_threads(ray_config["allocation"]["threads"])
        self._results = self._iter_all_results(ray_config)

    def _iter_all_results(self, ray_config: dict[str, Any]) -> Generator[TrialResult, None, None]:
        yield ProcessStarted(node_id=ray.get_runtime_context().get_node_id(), pid=os.getpid())
        yield from self.iter_results(ray_config["trial_id"], ray_config["config"])

    def iter_results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[TrialResult, None, None]:
        """What a trial gives, result by result."""
        checkpoints = self._checkpoints
        folder = (
            checkpoints.subfolder(trial_id)
            if isinstance(checkpoints, Storage)
            else checkpoints and checkpoints / trial_id
        )
        return run_trial(config, self._target_requests, folder, self._plugins)


def run_trial(
    config_values: dict[str, Any],
    target_requests: TargetRequests,
    folder: Path | Storage | None = None,
    plugins: Sequence[Plugin] = (),
) -> Generator[TrialResult, None, None]:
    """Run one trial, or go on with it.

    Args:
        settings: complete `TrainConfig`.
        askers: see `Askers`.
        folder: for its checkpoints; without one there are none.
        plugins: those of the sweep.

    Yields:
        The metrics of each epoch, those before the last checkpoint included; what is built or
        waited for; as the last result how the trial failed, if it did.
    """
    checkpoints: TrialCheckpoints | None = None
    result: EpochResult | None = None
    history: list[EpochMetrics] = []
    try:
        PLUGINS.sync(plugins)
        config = TrainConfig.parse(config_values)
        cache_events: SimpleQueue[CacheProgress | None] = SimpleQueue()
        epoch_data, classes, teacher = open_trial_data(config, target_requests, cache_events.put)
        yield from _iter_cache_events(
            cache_events, partial(epoch_data.evaluation_batches, "validation")
        )
        state = None
        if folder is not None:
            checkpoints_class = (
                RemoteTrialCheckpoints if isinstance(folder, Storage) else TrialCheckpoints
            )
            checkpoints = checkpoints_class(folder, config, classes)  # type: ignore[arg-type]
            if (latest := checkpoints.load_latest()) is not None:
                state, history = latest
                yield from (EpochReported(metrics=metrics) for metrics in history)
        results = fit(
            config,
            epoch_data.train_batches,
            epoch_data.evaluation_batches("validation"),
            num_classes=len(classes),
            teacher=teacher,
            resume=state,
        )
        for epoch in range(len(history) + 1, config.epochs + 1):
            yield from _iter_cache_events(cache_events, partial(epoch_data.load_arrays, epoch))
            result = next(results)
            history.append(make_epoch_metrics(result))
            if checkpoints is not None and epoch < config.epochs:
                checkpoints.save_if_due(result, history)
            elif checkpoints is not None:
                checkpoints.save(result, history)
            yield EpochReported(metrics=history[-1])
    except GeneratorExit:  # the trial is left, for now or for good
        if checkpoints is not None and result is not None:
            checkpoints.save(result, history)
        raise
    except DivergedError as error:
        yield TrialFailed(failure=Failure.DIVERGED, reason=str(error))
    except DiskFullError as error:
        yield TrialFailed(failure=Failure.DISK_FULL, reason=str(error))
    except Exception as error:  # whatever a run may raise must not end the sweep
        failure = Failure.OUT_OF_MEMORY if is_out_of_memory(error) else Failure.CRASHED
        yield TrialFailed(failure=failure, reason=typed_first_line(error))
    finally:
        if checkpoints is not None:
            checkpoints.close()


def open_trial_data(
    config: TrainConfig, target_requests: TargetRequests, on_progress: OnCacheProgress
) -> tuple[EpochData, tuple[str, ...], nn.Module | None]:
    """What a trial is fed with, its classes, and its teacher, if it has one.

    Args:
        config: complete settings.
        askers: see `Askers`.
        tell: told what is built.
    """
    decoded = _open_decoded(
        config.data_source, config.skip_bad_images, config.image_size, config.cache_gb
    )
    classes = decoded.data.classes
    teacher, teacher_targets = None, None
    if config.teacher_model is not None:
        teacher = _load_teacher(config.teacher_model, classes, config.image_size)
        teacher_targets = _request_targets(teacher, config.image_size, target_requests)
    return open_epoch_data(config, decoded, teacher_targets, on_progress), classes, teacher


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory."""
    is_memory_error = isinstance(error, torch.OutOfMemoryError | MemoryError)
    messages = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
    return is_memory_error or any(
        word in str(error) for word in messages
    )  # some have no class of their own


def _iter_cache_events(
    cache_events: "SimpleQueue[CacheProgress | None]", work: Callable[[], object]
) -> Iterator[CacheReported]:
    """Do some work in a thread, and give what it tells while it goes on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        future.add_done_callback(lambda _: cache_events.put(None))
        for progress in iter(cache_events.get, None):
            if progress.state is not CacheState.CACHED:
                yield CacheReported(progress=progress)
        future.result()


def make_epoch_metrics(result: EpochResult) -> EpochMetrics:
    """Return the numbers of an epoch; None for parts of the loss that are not finite."""
    losses = {name: v if math.isfinite(v) else None for name, v in result.losses.items()}
    return EpochMetrics(losses=losses, **{name: getattr(result, name) for name in METRIC_NAMES})
