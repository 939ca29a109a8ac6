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
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch
from kdtune.errors import RunError, last_line
from kdtune.models.on_device import pick_device
from kdtune.plugins import Plugin, have_only, loaded
from kdtune.runtime.device import Memory, memory_of, name_of, peak_of, reset_peak
from kdtune.runtime.process import keep_freed_memory
from kdtune.training.loop import fit
from kdtune.tuning.cluster.placement import Need, Slots
from kdtune.tuning.cluster.session import find_slots
from kdtune.tuning.trials.trainable import Askers, lacks_memory, open_run
from kdtune.units import GB

TOGETHER = (1, 2, 4)
"""Trials that are tried together."""

SECONDS = 10.0
"""For which they train."""

WARM_UP = 3
"""Steps before, which do not count."""

MARGIN = 0.1
"""Part of a GPU's memory that is to stay free where trials share it."""

PATIENCE = 120
"""Seconds for which a GPU that is free is waited for."""


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        model: of the student.
        together: trials on the GPU.
        epochs_per_hour: of all of them; None if they had too little memory.
        memory: of the GPU, with all that they use; None where it cannot be measured.
    """

    model: str
    together: int
    epochs_per_hour: float | None
    memory: Memory | None = None

    @property
    def fits(self) -> bool:
        """Whether enough memory stays free; one trial alone needs no more than it has."""
        memory, alone = self.memory, self.together == 1
        room = alone or memory is None or memory.used <= (1 - MARGIN) * memory.total
        return self.epochs_per_hour is not None and room


def best(rows: Sequence[Row]) -> Row | None:
    """The row with the most epochs an hour of those that fit; of equals that of fewest trials."""
    ranked = sorted((row for row in rows if row.fits), key=lambda row: row.together)
    return max(ranked, key=lambda row: row.epochs_per_hour or 0.0, default=None)


def table(rows: Sequence[Row]) -> list[str]:
    """What was measured, for people; what is taken is marked."""
    width = max(len(row.model) for row in rows)
    lines = [f"{'student':<{width}}  together  epochs/h  GB used"]
    for row in rows:
        own = best([other for other in rows if other.model == row.model])
        rate = "no room" if row.epochs_per_hour is None else f"{row.epochs_per_hour:,.0f}"
        used = "unknown"
        if row.memory is not None:
            used = f"{row.memory.used / GB:.1f} of {row.memory.total / GB:.1f}"
        taken = f"  <- {1 / row.together:g} GPUs a trial" if row is own else ""
        lines.append(f"{row.model:<{width}}  {row.together:>8}  {rate:>8}  {used}{taken}")
    return lines


def shared_slots(
    sweep: SweepConfig,
    slots: Slots,
    runs: Callable[[], Mapping[str, TrainConfig]],
    askers: Askers,
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
    rows: list[Row] = []
    configs = runs()
    for model, config in configs.items():
        rows += _measure(model, config, askers, slots, say)
    for line in table(rows):
        say(line)
    parts = {}
    for model in configs:
        if (found := best([row for row in rows if row.model == model])) is None:
            raise RunError(f"gpus_per_trial auto: {model} does not fit into the memory of a GPU.")
        parts[model] = 1 / found.together
    slots = find_slots(sweep.model_copy(update={"gpus_per_trial": parts}), nodes=slots.nodes)
    say(f"{slots.count} trials at once; {slots.describe()}")
    return slots


def _measure(
    model: str, config: TrainConfig, askers: Askers, slots: Slots, say: Callable[[str], None]
) -> Iterator[Row]:
    """Train so many trials together as there may be."""
    whole = next(p for node in slots.nodes() if (p := Need(gpus=1.0).on(node)) is not None)
    group = placement_group(
        [{"CPU": whole.cpus, "GPU": 1}],
        strategy="STRICT_PACK",
        _soft_target_node_id=whole.node,
    )
    process = _Training.options(  # type: ignore[attr-defined]
        num_cpus=0,
        num_gpus=1 / max(TOGETHER),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    )
    processes: list[Any] = []
    try:
        if not group.wait(PATIENCE):
            raise RunError(
                f"gpus_per_trial auto: within {PATIENCE} s there was no GPU free, with "
                f"{whole.cpus} CPU{'s' * (whole.cpus > 1)} beside it, to measure {model}: others "
                "use them; wait for these, or give a number of GPUs."
            )
        for together in TOGETHER:
            threads = slots.needs[model].cpus or max(1, whole.cpus // together)
            if together > 1 and threads * together > whole.cpus:
                return
            while len(processes) < together:
                processes.append(process.remote(loaded(), config, askers))
            try:
                names = ray.get([p.prepare.remote(threads) for p in processes])
                if together == 1:
                    say(_about(model, names[0], whole.cpus))
                found = ray.get([p.run.remote(SECONDS) for p in processes])
            except Exception as error:
                if not lacks_memory(error):
                    raise RunError(
                        f"gpus_per_trial auto: {model} could not be trained to measure it: "
                        f"{last_line(error)}"
                    ) from error
                yield Row(model, together, None)
                return
            rates, memories, peaks = zip(*found, strict=True)
            memory = memories[0]
            if memory is not None:
                used = max(sum(peaks), *(other.used for other in memories))
                memory = Memory(memory.total, used)
            yield Row(model, together, 3600 * sum(rates), memory)
    finally:
        for one in processes:
            ray.kill(one)
        remove_placement_group(group)


def _about(model: str, gpu: str | None, cpus: int) -> str:
    what = f"{gpu or 'a GPU that is only a word'} with {cpus} CPU{'s' * (cpus > 1)}"
    unknown = "" if gpu else ": it computes on CPUs, and no memory can be measured"
    return f"gpus_per_trial auto: {model} trains for {SECONDS:g} s at a time on {what}{unknown}"


@ray.remote
class _Training:
    """A process that trains as a trial does."""

    def __init__(self, plugins: Sequence[Plugin], config: TrainConfig, askers: Askers):
        keep_freed_memory()
        have_only(plugins)
        self._config, self._askers = config, askers
        self._device = pick_device(config.device)
        self._results: Iterator[Any] | None = None
        self._images, self._steps, self._end = 0, WARM_UP, 0.0

    def prepare(self, threads: int) -> str | None:
        """Get ready to train with so many threads; gives the GPU's name."""
        torch.set_num_threads(threads)
        if self._results is None:
            inputs, classes, teacher = open_run(self._config, self._askers, lambda event: None)
            self._inputs, self._all = inputs, len(inputs.views.data.train)
            # The most that validation needs at a time is what its first batch needs.
            validation = [next(iter(inputs.evaluation("validation")))]
            config = self._config.model_copy(update={"epochs": 1_000})
            self._results = fit(
                config, self._batches, validation, num_classes=len(classes), teacher=teacher
            )
        self._steps, self._end = WARM_UP, 0.0
        next(self._results)
        return name_of(self._device)

    def run(self, seconds: float) -> tuple[float, Memory | None, int | None]:
        """Train; gives epochs a second, what the GPU's memory holds, and this process's peak."""
        assert self._results is not None
        reset_peak(self._device)
        began = time.perf_counter()
        self._images, self._steps, self._end = 0, 1, began + seconds
        next(self._results)
        rate = self._images / (time.perf_counter() - began) / self._all
        return rate, memory_of(self._device), peak_of(self._device)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Training batches until both steps and seconds are over."""
        step = 0
        while True:
            for batch in self._inputs.train(1):
                yield batch
                step, self._images = step + 1, self._images + len(batch[1])
                if step >= self._steps and time.perf_counter() >= self._end:
                    return
