"""How many trials share a GPU best: measured for each student before a sweep, if that is wanted.

One, two and four processes train together on one GPU, as trials would, for some seconds. One
method's first settings stand for all of a student, and one GPU for all others; what a search may
vary, such as the size of batches, can take more memory, for which a margin is left. On GPUs that
are only Ray's word (`ray.init(num_gpus=...)`) processes compute on CPUs: no memory is measured.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch
from kdtune.errors import RunError, last_line
from kdtune.models.on_device import pick_device
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.device import GpuMemory, gpu_memory, gpu_name, peak_memory, reset_peak_memory
from kdtune.runtime.process import keep_freed_memory
from kdtune.training.loop import fit
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import ResourceRequest, Slots
from kdtune.tuning.cluster.ray_private import trial_resources
from kdtune.tuning.cluster.session import find_slots
from kdtune.tuning.trials.trainable import TargetRequests, is_out_of_memory, open_trial_data
from kdtune.units import BYTES_PER_GB

TRIALS_PER_GPU = (1, 2, 4)
"""Trials that are tried together."""

MEASURE_SECONDS = 10.0
"""For which they train."""

WARM_UP_STEPS = 3
"""Steps before, which do not count."""

FREE_MEMORY_SHARE = 0.1
"""Part of a GPU's memory that is to stay free where trials share it."""

GPU_WAIT_SECONDS = 120
"""Seconds for which a GPU that is free is waited for."""


@dataclass(frozen=True)
class SharingMeasurement:
    """What was measured.

    Attributes:
        model: of the student.
        together: trials on the GPU.
        epochs_per_hour: of all of them; None if they had too little memory.
        memory: of the GPU, with all that they use; None where it cannot be measured.
    """

    model: str
    trials_per_gpu: int
    epochs_per_hour: float | None
    gpu_memory: GpuMemory | None = None

    @property
    def fits_in_memory(self) -> bool:
        """Whether enough memory stays free; one trial alone needs no more than it has."""
        memory, is_alone = self.gpu_memory, self.trials_per_gpu == 1
        has_room = (
            is_alone or memory is None or memory.used <= (1 - FREE_MEMORY_SHARE) * memory.total
        )
        return self.epochs_per_hour is not None and has_room


def find_fastest_fitting(rows: Sequence[SharingMeasurement]) -> SharingMeasurement | None:
    """The row with the most epochs an hour of those that fit; of equals that of fewest trials."""
    fitting = sorted(
        (row for row in rows if row.fits_in_memory), key=lambda row: row.trials_per_gpu
    )
    return max(fitting, key=lambda row: row.epochs_per_hour or 0.0, default=None)


def format_measurements(rows: Sequence[SharingMeasurement]) -> list[str]:
    """What was measured, for people; what is taken is marked."""
    width = max(len(row.model) for row in rows)
    lines = [f"{'student':<{width}}  together  epochs/h  GB used"]
    for row in rows:
        fastest = find_fastest_fitting([other for other in rows if other.model == row.model])
        rate_text = "no room" if row.epochs_per_hour is None else f"{row.epochs_per_hour:,.0f}"
        memory_text = "unknown"
        if row.gpu_memory is not None:
            memory_text = f"{row.gpu_memory.used / BYTES_PER_GB:.1f} of {row.gpu_memory.total / BYTES_PER_GB:.1f}"
        marker = f"  <- {1 / row.trials_per_gpu:g} GPUs a trial" if row is fastest else ""
        lines.append(
            f"{row.model:<{width}}  {row.trials_per_gpu:>8}  {rate_text:>8}  {memory_text}{marker}"
        )
    return lines


def choose_gpu_sharing(
    sweep: SweepConfig,
    slots: Slots,
    make_configs: Callable[[], Mapping[str, TrainConfig]],
    target_requests: TargetRequests,
    say: Callable[[str], None],
) -> Slots:
    """The slots of a sweep, with the parts of GPUs that were measured if it wants that.

    Args:
        sweep: complete settings.
        slots: as `kdtune.tuning.cluster.session.find_slots` gives them.
        runs: gives complete settings of a trial of each student.
        askers: see `kdtune.tuning.trials.trainable.Askers`.
        say: takes lines for a person.

    Raises:
        RunError: a student cannot be trained on a GPU.
    """
    if sweep.gpus_per_trial != "auto":
        return slots
    if not any(node.gpus for node in slots.nodes()):
        say("gpus_per_trial is auto, but Ray has no GPU here: trials have CPUs")
        return slots
    rows: list[SharingMeasurement] = []
    configs = make_configs()
    for model, config in configs.items():
        rows += _measure_sharing(model, config, target_requests, slots, say)
    for line in format_measurements(rows):
        say(line)
    gpus_per_trial = {}
    for model in configs:
        if (fastest := find_fastest_fitting([row for row in rows if row.model == model])) is None:
            raise RunError(f"gpus_per_trial auto: {model} does not fit into the memory of a GPU.")
        gpus_per_trial[model] = 1 / fastest.trials_per_gpu
    slots = find_slots(
        sweep.model_copy(update={"gpus_per_trial": gpus_per_trial}), nodes=slots.nodes
    )
    say(f"{slots.count} trials at once; {slots.describe_resources()}")
    return slots


def _measure_sharing(
    model: str,
    config: TrainConfig,
    target_requests: TargetRequests,
    slots: Slots,
    say: Callable[[str], None],
) -> Iterator[SharingMeasurement]:
    """Train so many trials together as there may be."""
    whole_gpu = next(
        p
        for node in slots.nodes()
        if (p := ResourceRequest(gpus=1.0).allocation_on(node)) is not None
    )
    group = trial_resources(whole_gpu).to_placement_group()
    actor_class = _TrainingActor.options(  # type: ignore[attr-defined]
        num_cpus=0,
        num_gpus=1 / max(TRIALS_PER_GPU),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    )
    actors: list[Any] = []
    try:
        if not group.wait(GPU_WAIT_SECONDS):
            raise RunError(
                f"gpus_per_trial auto: within {GPU_WAIT_SECONDS} s there was no GPU free, with "
                f"{whole_gpu.cpus} CPU{'s' * (whole_gpu.cpus > 1)} beside it, to measure {model}: others "
                "use them; wait for these, or give a number of GPUs."
            )
        for trials_per_gpu in TRIALS_PER_GPU:
            threads = slots.requests[model].cpus or max(1, whole_gpu.cpus // trials_per_gpu)
            if trials_per_gpu > 1 and threads * trials_per_gpu > whole_gpu.cpus:
                return
            while len(actors) < trials_per_gpu:
                actors.append(actor_class.remote(pack_plugins(), config, target_requests))
            try:
                gpu_names = ray.get([p.prepare.remote(threads) for p in actors])
                if trials_per_gpu == 1:
                    say(_describe_hardware(model, gpu_names[0], whole_gpu.cpus))
                results = ray.get([p.run.remote(MEASURE_SECONDS) for p in actors])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise RunError(
                        f"gpus_per_trial auto: {model} could not be trained to measure it: "
                        f"{last_line(error)}"
                    ) from error
                yield SharingMeasurement(model, trials_per_gpu, None)
                return
            rates, memories, peaks = zip(*results, strict=True)
            memory = memories[0]
            if memory is not None:
                used = max(sum(peaks), *(other.used for other in memories))
                memory = GpuMemory(memory.total, used)
            yield SharingMeasurement(model, trials_per_gpu, 3600 * sum(rates), memory)
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(group)


def _describe_hardware(model: str, gpu: str | None, cpus: int) -> str:
    hardware = f"{gpu or 'a GPU that is only a word'} with {cpus} CPU{'s' * (cpus > 1)}"
    caveat = "" if gpu else ": it computes on CPUs, and no memory can be measured"
    return f"gpus_per_trial auto: {model} trains for {MEASURE_SECONDS:g} s at a time on {hardware}{caveat}"


@ray.remote
class _TrainingActor:
    """A process that trains as a trial does."""

    def __init__(
        self, plugins: Sequence[Plugin], config: TrainConfig, target_requests: TargetRequests
    ):
        keep_freed_memory()
        PLUGINS.sync(plugins)
        self._config, self._target_requests = config, target_requests
        self._device = pick_device(config.device)
        self._results: Iterator[Any] | None = None
        self._trained_images, self._min_steps, self._deadline = 0, WARM_UP_STEPS, 0.0

    def prepare(self, threads: int) -> str | None:
        """Get ready to train with so many threads; gives the GPU's name."""
        torch.set_num_threads(threads)
        if self._results is None:
            epoch_data, classes, teacher = open_trial_data(
                self._config, self._target_requests, lambda event: None
            )
            self._epoch_data, self._num_images = epoch_data, len(epoch_data.decoded.data.train)
            # The most that validation needs at a time is what its first batch needs.
            validation = [next(iter(epoch_data.evaluation_batches("validation")))]
            config = self._config.model_copy(update={"epochs": 1_000})
            self._results = fit(
                config, self._batches, validation, num_classes=len(classes), teacher=teacher
            )
        self._min_steps, self._deadline = WARM_UP_STEPS, 0.0
        next(self._results)
        return gpu_name(self._device)

    def run(self, seconds: float) -> tuple[float, GpuMemory | None, int | None]:
        """Train; gives epochs a second, what the GPU's memory holds, and this process's peak."""
        assert self._results is not None
        reset_peak_memory(self._device)
        started_at = time.perf_counter()
        self._trained_images, self._min_steps, self._deadline = 0, 1, started_at + seconds
        next(self._results)
        rate = self._trained_images / (time.perf_counter() - started_at) / self._num_images
        return rate, gpu_memory(self._device), peak_memory(self._device)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Training batches until both steps and seconds are over."""
        step = 0
        while True:
            for batch in self._epoch_data.train_batches(1):
                yield batch
                step, self._trained_images = step + 1, self._trained_images + len(batch[1])
                if step >= self._min_steps and time.perf_counter() >= self._deadline:
                    return
