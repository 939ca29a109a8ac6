"""Measurement of how many trials of each student should share a GPU.

One, two, four and eight processes train together on a GPU of each kind for some seconds, with the
settings of the student's first trial. The largest share that is best on a kind counts for all. A
margin of memory is left, since a search may vary the batch size. On simulated GPUs
(`ray.init(num_gpus=...)`) processes train on CPUs, and no memory is measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.errors import RunError, last_line
from kdtune.runtime.device import GpuMemory
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Allocation, Node, ResourceRequest, Slots
from kdtune.tuning.cluster.ray_private import trial_resources
from kdtune.tuning.cluster.session import find_slots
from kdtune.tuning.planning.training_worker import TrainingWorker
from kdtune.tuning.trials.trial_process import ProcessMemory, TargetRequests, is_out_of_memory
from kdtune.units import BYTES_PER_GB

TRIALS_PER_GPU = (1, 2, 4, 8)
"""Numbers of trials that are measured together."""

MEASURE_SECONDS = 10.0

FREE_MEMORY_SHARE = 0.1
"""Share of a GPU's memory that must stay free if trials share it."""

GPU_WAIT_SECONDS = 120
"""Maximum time to wait for a free GPU."""


@dataclass(frozen=True)
class SharingMeasurement:
    """Speed of some trials on one GPU."""

    model: str
    trials_per_gpu: int
    epochs_per_hour: float | None  # of all trials together; None if they had too little memory
    gpu_memory: GpuMemory | None = None  # None if it cannot be measured
    gpu_type: str = ""  # as Ray names it; empty if unknown

    @property
    def label(self) -> str:
        """The student, and the kind of GPU if that is known."""
        return f"{self.model} on {self.gpu_type}" if self.gpu_type else self.model

    @property
    def fits_in_memory(self) -> bool:
        """True if enough memory stays free; a trial that has the GPU to itself needs no margin."""
        if self.gpu_memory is None or self.trials_per_gpu == 1 or self.epochs_per_hour is None:
            return self.epochs_per_hour is not None
        return self.gpu_memory.used <= (1 - FREE_MEMORY_SHARE) * self.gpu_memory.total


def find_fastest_fitting(rows: Sequence[SharingMeasurement]) -> SharingMeasurement | None:
    """Return the fastest row that fits in memory; of equals, that with the fewest trials."""
    fitting = sorted((r for r in rows if r.fits_in_memory), key=lambda r: r.trials_per_gpu)
    return max(fitting, key=lambda row: row.epochs_per_hour or 0.0, default=None)


def format_measurements(rows: Sequence[SharingMeasurement]) -> Iterator[str]:
    """Yield the lines of a table in which the best row of each student and GPU is marked."""
    width = max(len(row.label) for row in rows)
    yield f"{'student':<{width}}  together  epochs/h  GB used"
    for row in rows:
        rate = "no room" if row.epochs_per_hour is None else f"{row.epochs_per_hour:,.0f}"
        memory = "unknown"
        if row.gpu_memory is not None:
            used, total = row.gpu_memory.used / BYTES_PER_GB, row.gpu_memory.total / BYTES_PER_GB
            memory = f"{used:.1f} of {total:.1f}"
        fastest = find_fastest_fitting([other for other in rows if other.label == row.label])
        marker = f"  <- {1 / row.trials_per_gpu:g} GPUs a trial" if row is fastest else ""
        yield f"{row.label:<{width}}  {row.trials_per_gpu:>8}  {rate:>8}  {memory}{marker}"


def choose_gpu_sharing(
    sweep: SweepConfig,
    slots: Slots,
    make_configs: Callable[[], Mapping[str, TrainConfig]],
    target_requests: TargetRequests,
    say: Callable[[str], None],
) -> Slots:
    """Return slots with measured shares of GPUs if a sweep asks for that, else the same slots.

    Args:
        sweep: complete settings.
        slots: from `kdtune.tuning.cluster.session.find_slots`.
        make_configs: returns complete settings of a trial of each student.
        target_requests: see `kdtune.tuning.trials.trial_process.TargetRequests`.
        say: writes a line.
    """
    if sweep.gpus_per_trial != "auto":
        return slots
    if not any(node.gpus for node in slots.nodes()):
        say("gpus_per_trial is auto, but Ray has no GPU here: trials use CPUs")
        return slots
    rows, too_large = list[SharingMeasurement](), list[str]()
    gpus_per_trial: dict[str, float] = {}
    nodes_by_type = {node.gpu_type: node for node in slots.nodes() if node.gpus}
    for (model, config), node in product(make_configs().items(), nodes_by_type.values()):
        measured = list(_measure_sharing(model, config, target_requests, node, slots, say))
        rows += measured
        if (fastest := find_fastest_fitting(measured)) is None:
            too_large.append(measured[0].label)
        else:  # a trial may run on any kind of GPU
            share = 1 / fastest.trials_per_gpu
            gpus_per_trial[model] = max(share, gpus_per_trial.get(model, 0.0))
    for line in format_measurements(rows):
        say(line)
    if too_large:
        raise RunError(f"gpus_per_trial auto: {too_large[0]} does not fit into a GPU's memory.")
    sweep = sweep.model_copy(update={"gpus_per_trial": gpus_per_trial})
    slots = find_slots(sweep, nodes=slots.nodes)
    say(f"{slots.count} trials at once; {slots.describe_resources()}")
    return slots


def _measure_sharing(
    model: str,
    config: TrainConfig,
    target_requests: TargetRequests,
    node: Node,
    slots: Slots,
    say: Callable[[str], None],
) -> Iterator[SharingMeasurement]:
    whole_gpu = ResourceRequest(gpus=1.0).allocation_on(node)
    assert whole_gpu is not None
    cpus, actors = f"{whole_gpu.cpus} CPU{'s' * (whole_gpu.cpus > 1)}", list[Any]()
    with _reserve_gpu(model, whole_gpu, cpus) as actor_class:
        for trials_per_gpu in TRIALS_PER_GPU:
            threads = slots.requests[model].cpus or max(1, whole_gpu.cpus // trials_per_gpu)
            if trials_per_gpu > 1 and threads * trials_per_gpu > whole_gpu.cpus:
                break
            while len(actors) < trials_per_gpu:
                actors.append(actor_class.remote(pack_plugins(), ProcessMemory(target_requests)))
            try:
                [gpu, *_] = ray.get([actor.prepare.remote(config, threads) for actor in actors])
                if trials_per_gpu == 1:
                    hardware = f"{gpu or 'a simulated GPU'} with {cpus}"
                    caveat = "" if gpu else ": it trains on CPUs, and no memory can be measured"
                    seconds = f"{MEASURE_SECONDS:g} s at a time"
                    say(f"gpus_per_trial auto: {model} trains for {seconds} on {hardware}{caveat}")
                speeds = [actor.measure_speed.remote(MEASURE_SECONDS) for actor in actors]
                rates, memories, peaks = zip(*ray.get(speeds), strict=True)
            except Exception as error:
                if not is_out_of_memory(error):
                    text = f"gpus_per_trial auto: {model} could not be trained to measure it"
                    raise RunError(f"{text}: {last_line(error)}") from error
                yield SharingMeasurement(model, trials_per_gpu, None, None, node.gpu_type)
                break
            [memory, *_] = memories
            if memory is not None:
                used = max(sum(peaks), *(other.used for other in memories))
                memory = GpuMemory(memory.total, used)
            rate = 3600 * sum(rates)
            yield SharingMeasurement(model, trials_per_gpu, rate, memory, node.gpu_type)


@contextmanager
def _reserve_gpu(model: str, whole_gpu: Allocation, cpus: str) -> Iterator[Any]:
    """Reserve a GPU and its CPUs; yield `TrainingWorker` as a class of actors that share them."""
    group = trial_resources(whole_gpu).to_placement_group()
    gpus, strategy = 1 / max(TRIALS_PER_GPU), PlacementGroupSchedulingStrategy(group)
    options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": strategy}
    try:
        if not group.wait(GPU_WAIT_SECONDS):
            raise RunError(
                f"gpus_per_trial auto: no GPU with {cpus} became free within {GPU_WAIT_SECONDS} s "
                f"to measure {model}; wait until others have ended, or give a number of GPUs."
            )
        yield ray.remote(**options)(TrainingWorker)
    finally:
        remove_placement_group(group)  # this also kills the actors
