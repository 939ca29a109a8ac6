"""A process that trains as a trial does, for some seconds, to measure it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
import torch

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch, Batches
from kdtune.data.folders import find_images
from kdtune.models.on_device import pick_device
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.device import (
    GpuMemory,
    avoid_gpu_fragmentation,
    gpu_memory,
    gpu_name,
    peak_memory,
    reset_peak_memory,
)
from kdtune.runtime.process import ProcessState, keep_freed_memory
from kdtune.training.loop import EpochResult, fit
from kdtune.tuning.trials import trial_process
from kdtune.tuning.trials.trial_checkpoints import TrialCheckpoints


class TrialCosts(NamedTuple):
    """Costs of a trial."""

    start_seconds: float
    epoch_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: float
    memory_bytes: float  # memory that only its process uses
    device_memory_bytes: float  # memory of its GPU; 0 without one


class TrainingWorker:
    """Process that trains as a trial does.

    Args:
        plugins: of the sweep.
        memory: new; gives the images and the teacher.
    """

    def __init__(self, plugins: Sequence[Plugin], memory: trial_process.ProcessMemory):
        keep_freed_memory()
        avoid_gpu_fragmentation()
        trial_process.hide_unassigned_gpus()
        PLUGINS.sync(plugins)
        self._process_state, self._memory = ProcessState(), memory
        self._training: _Training | None = None

    def open_inputs(self, config: TrainConfig) -> None:
        """Open the data and the teacher, which all trials of a process share."""
        find_images(config.data_source)
        if config.teacher_model is not None:
            self._memory.teacher_targets(config)

    def measure_costs(
        self, config: TrainConfig, threads: int, limit: float, steps: tuple[int, int], folder: Path
    ) -> tuple[TrialCosts, list[float]]:
        """Train, then write a checkpoint; return the costs, and the seconds of each epoch.

        Args:
            config: settings of the trial.
            threads: number of threads.
            limit: seconds of training.
            steps: numbers of training and validation steps of a whole epoch.
            folder: for the checkpoint.
        """
        self._process_state.restore(config.seed)
        torch.set_num_threads(threads)
        started_at = time.perf_counter()
        training = _Training(config, self._memory)
        train, validation = training.train, training.validation
        start_seconds = time.perf_counter() - started_at
        training.run_epoch(limit / 10)  # the first steps of a process are slower
        started_at, epoch_seconds = time.perf_counter(), list[float]()
        while not epoch_seconds or time.perf_counter() - started_at < limit:
            result = training.run_epoch(limit)
            skipped = train.skipped_seconds(steps[0]) + validation.skipped_seconds(steps[1])
            epoch_seconds.append(result.seconds + skipped)
        with TemporaryDirectory(dir=folder) as path:
            result.state["best_epoch"] = 0  # a checkpoint is larger if its epoch is not the best
            started_at = time.perf_counter()
            checkpoints = TrialCheckpoints(Path(path), config, training.classes)
            checkpoints.save(result, [trial_process.make_epoch_metrics(result)])
            checkpoint_seconds = time.perf_counter() - started_at
            sizes = [file.stat().st_size for file in Path(path).glob("*.pth")]
        sizes += psutil.Process().memory_full_info().uss, peak_memory(training.device) or 0
        seconds = start_seconds, fmean(epoch_seconds), checkpoint_seconds
        return TrialCosts(*seconds, *sizes), epoch_seconds

    def prepare(self, config: TrainConfig, threads: int) -> str | None:
        """Start the trial in the first call; train some steps, and return the GPU's name.

        Args:
            config: settings of the trial.
            threads: number of threads from now on.
        """
        torch.set_num_threads(threads)
        self._training = self._training or _Training(config, self._memory, cyclic=True)
        self._training.run_epoch(0.0, min_steps=3)
        return gpu_name(self._training.device)

    def measure_speed(self, seconds: float) -> tuple[float, GpuMemory | None, int | None]:
        """Train; return epochs per second, the GPU's memory and the peak of this process."""
        assert (training := self._training) is not None
        reset_peak_memory(training.device)
        started_at = time.perf_counter()
        training.run_epoch(seconds)
        rate = training.train.num_images / (time.perf_counter() - started_at)
        rate /= len(training.train.batches.labels)
        return rate, gpu_memory(training.device), peak_memory(training.device)


class _Training:
    """A trial whose epochs have limited times."""

    def __init__(
        self, config: TrainConfig, memory: trial_process.ProcessMemory, cyclic: bool = False
    ):
        one_epoch = config.model_copy(update={"epochs": 1})  # so that no view is built ahead
        opened = trial_process.open_trial_data(one_epoch, memory, lambda event: None)
        epoch_data, self.classes, teacher = opened
        self.device = pick_device(config.device)
        self.train = _TimedPass(epoch_data.train_batches(1), cyclic)
        self.validation = _TimedPass(epoch_data.evaluation_batches("validation"))
        self._results = fit(
            config.model_copy(update={"epochs": 1_000_000}),
            self.train,
            self.validation,
            num_classes=len(self.classes),
            class_counts=epoch_data.class_counts,
            teacher=teacher,
        )

    def run_epoch(self, seconds: float, min_steps: int = 1) -> EpochResult:
        self.train.limit, self.train.min_steps = seconds, min_steps
        # No batch of a validation needs more memory than the first.
        self.validation.limit = 0.0 if self.train.cyclic else seconds
        return next(self._results)


@dataclass
class _TimedPass:
    """Batches until a minimum number of steps and a time are reached."""

    batches: Batches
    cyclic: bool = False
    limit: float = 0.0
    min_steps: int = 1

    def __iter__(self) -> Iterator[Batch]:
        started_at, self.num_steps, self.num_images = time.perf_counter(), 0, 0
        for batch in chain.from_iterable(repeat(self.batches) if self.cyclic else [self.batches]):
            yield batch
            self.num_steps, self.num_images = self.num_steps + 1, self.num_images + len(batch[1])
            seconds = time.perf_counter() - started_at
            if self.num_steps >= self.min_steps and seconds > self.limit:
                break
        if self.batches.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - started_at

    def skipped_seconds(self, total_steps: int) -> float:
        return self.seconds * (total_steps - self.num_steps) / self.num_steps
