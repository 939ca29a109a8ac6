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
from kdtune.data.batches import EVALUATION_BATCH, Batch, Batches, Order
from kdtune.data.decoded import Views
from kdtune.data.splits import ImageData, Split
from kdtune.models import build_model, feature_shapes
from kdtune.plugins import Plugin, have_only, loaded
from kdtune.runtime.process import FreshState, keep_freed_memory
from kdtune.storage.array_cache import Cache
from kdtune.training.inputs import Inputs, find_data, keeps_targets
from kdtune.training.loop import EpochResult, fit
from kdtune.training.teacher import load_teacher
from kdtune.training.teacher_targets import Lesson
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.driver.preflight import Checked
from kdtune.tuning.trials.trainable import Askers
from kdtune.tuning.trials.trial_checkpoints import TrialFiles

SAMPLE = {"train": 2048, "validation": 512}
"""Images of each split that are used, at most."""

LIMIT, ALL = 2.0, 24.0
"""Seconds of training of a cell, and of all cells together, at most: at least one step each."""


@dataclass(frozen=True)
class Measured:
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

    epoch: dict[str, float]
    begin: dict[str, float]
    checkpoint: dict[str, float]
    checkpoint_bytes: dict[str, float]
    memory: dict[str, float]
    device_memory: dict[str, float]
    scatter: float
    opening: float
    prepare: float
    view: float


def measure_trials(
    checked: Checked, slots: Slots, folder: Path, beside: Callable[[], object]
) -> Measured:
    """Measure trials of every cell.

    Args:
        checked: the sweep.
        slots: what a trial gets, and how many run at once, here.
        folder: for what is built meanwhile.
        beside: called while all slots but one train, as they do while one waits for a proposal.
    """
    shared, sweep = checked.shared, checked.sweep
    whole = shared.views.data
    data = replace(
        whole.without_test(),
        train=_some(whole.train, SAMPLE["train"]),
        validation=_some(whole.validation, SAMPLE["validation"]),
    )
    share = len(whole.train) / len(data.train)
    cache = Cache(folder / "cache") if shared.views.cache is not None else None
    views = Views(data, shared.views.image_size, cache)
    told = shared.on(views).prepare(lambda line: None)
    built = [event for event in told if event["state"] == "built"]
    more = [event for event in built if ", view " in event["what"]]
    configs = {
        cell: checked.configure(cell, 0, checked.spaces[cell[0]].probe()[0][1])
        for cell in sweep.cells()
    }
    places = {model: slots.place(model) for model in dict.fromkeys(sweep.models)}
    threads = {model: place.threads if place else 1 for model, place in places.items()}
    least = min((p for p in places.values() if p), key=lambda place: (place.gpus, place.cpus))
    where = ray.remote(num_cpus=least.cpus, num_gpus=least.gpus)(_Worker)
    about = (loaded(), data, cache, sweep.source, sweep.teacher, shared.askers)
    workers = [where.remote(*about, folder / f"slot-{number}") for number in range(slots.count)]
    opening = ray.get([worker.open.remote(views.image_size) for worker in workers])
    limit = min(LIMIT, ALL / len(configs))
    sizes = len(whole.train), len(whole.validation)
    found = {
        "-".join(cell): ray.get(
            [worker.measure.remote(config, threads[cell[1]], limit, *sizes) for worker in workers]
        )
        for cell, config in configs.items()
    }
    longest = max(configs.values(), key=lambda c: found[f"{c.method}-{c.model}"][0]["epoch"])
    for worker in workers[1:]:
        worker.measure.remote(longest, threads[longest.model], 600.0, *sizes)
    beside()
    for worker in workers:
        ray.kill(worker)

    def mean(key: str) -> dict[str, float]:
        return {name: fmean(own[key] for own in all_own) for name, all_own in found.items()}

    # Without a cache each process holds all images of its own.
    missing = sum(shared.views.bytes(name) - views.bytes(name) for name in SAMPLE if cache is None)
    epochs = [[s for own in all_own for s in own["epochs"]] for all_own in found.values()]
    spreads = [stdev(seconds) / fmean(seconds) for seconds in epochs if len(seconds) > 2]
    return Measured(
        epoch=mean("epoch"),
        begin=mean("begin"),
        checkpoint=mean("checkpoint"),
        checkpoint_bytes=mean("checkpoint_bytes"),
        memory={name: own + missing for name, own in mean("memory").items()},
        device_memory=mean("device_memory"),
        scatter=median(spreads) if spreads else 0.0,
        opening=fmean(opening),
        prepare=share * sum(event["seconds"] for event in built),
        view=share * sum(event["seconds"] for event in more),
    )


def _some(split: Split, most: int) -> Split:
    """Some images of a split, evenly from all of it."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).astype(int))
    return Split([split.images[i] for i in chosen], [split.labels[i] for i in chosen])


class _Part:
    """The batches of a pass until time is up; afterwards it knows what the pass takes.

    Args:
        batches: of some of the images.
        whole: batches of a pass over all images.
        limit: seconds.
    """

    def __init__(self, batches: Batches, whole: int, limit: float):
        self.batches, self.whole, self.limit = batches, whole, limit
        self.missing = 0.0
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
        took = time.perf_counter() - started
        self.missing = took * (self.whole - count) / count if count else 0.0


class _Worker:
    """A process that measures what a trial's does, in Ray's hands."""

    def __init__(
        self,
        plugins: Sequence[Plugin],
        data: ImageData,
        cache: Cache | None,
        source: DataSource,
        teacher: str | None,
        askers: Askers,
        folder: Path,
    ):
        keep_freed_memory()
        have_only(plugins)
        self.data, self.cache, self.source = data, cache, source
        self.path, self.askers, self.folder = teacher, askers, folder
        self.fresh = FreshState()

    def open(self, image_size: int) -> float:
        """Open what all trials of a process share; gives the seconds that takes of a trial's."""
        started = time.perf_counter()
        find_data(self.source, False, 0, with_test=False)
        self.views = Views(self.data, image_size, self.cache)
        self.teacher, self.lesson = None, None
        if self.path is not None:
            self.teacher = load_teacher(self.path, self.data.classes, image_size)
            self.lesson = Lesson(self.teacher, image_size)
            for config, shapes in self.askers:
                self.lesson.ask(config, list(shapes))
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
        self.fresh.restore(config.seed)
        torch.set_num_threads(threads)
        passes = (
            len(Order(train_images, config.batch_size, True)),
            -(-validation_images // EVALUATION_BATCH),
        )
        started = time.perf_counter()
        lesson, own = None, {}
        if self.lesson is not None and keeps_targets(config):
            student = build_model(config.model, len(self.data.classes), config.image_size)
            shapes = feature_shapes(student, config.image_size)
            lesson, own = self.lesson, self.lesson.ask(config, shapes)
        inputs = Inputs(config, self.views, lesson, own, lambda event: None)
        parts = [
            _Part(batches, whole, limit)
            for batches, whole in zip(
                (inputs.train(1), inputs.evaluation("validation")), passes, strict=True
            )
        ]
        taught = self.teacher if config.teacher_model is not None else None
        results = fit(
            config.model_copy(update={"epochs": 1_000_000}),
            parts[0],
            parts[1],
            num_classes=len(self.data.classes),
            teacher=taught,
        )
        begin = time.perf_counter() - started
        for part in parts:
            part.limit = limit / 10
        next(results)  # what happens once, in the first steps of a process, does not count
        for part in parts:
            part.limit = limit
        started, epochs = time.perf_counter(), list[float]()
        while not epochs or time.perf_counter() - started < limit:
            result = next(results)
            epochs.append(result.seconds + sum(part.missing for part in parts))
        return {
            "begin": begin,
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
        TrialFiles(folder, config, self.data.classes).write(result, [result.figures()])
        seconds = time.perf_counter() - started
        [path] = folder.glob("*.pth")
        return {"checkpoint": seconds, "checkpoint_bytes": path.stat().st_size}
