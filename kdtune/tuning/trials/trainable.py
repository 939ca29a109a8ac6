"""A process that runs one trial after another for Ray Tune: a few lines around `fit`.

It is a class and no function, since Tune runs functions in threads: one that takes long to end
makes the next trial fail. Here the next one waits. A trial that fails by itself reports that as
its last result, with the reason in one line, so that the process goes on to the next trial; only a
process that dies is an error to Ray. A trial that was begun before goes on from its checkpoint.

Test images are not among what a trial has: no setting and no mistake of a method can reach them.
"""

import json
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
from kdtune.data.decoded import Views
from kdtune.errors import DiskFullError, DivergedError, UserError
from kdtune.log.events import Event
from kdtune.models import build_model, feature_shapes
from kdtune.plugins import Plugin, have_only
from kdtune.runtime.device import hide_gpus
from kdtune.runtime.process import FreshState, keep_freed_memory
from kdtune.storage.array_cache import Tell
from kdtune.storage.remote import Storage
from kdtune.training.inputs import Inputs, find_data, keeps_targets, open_views
from kdtune.training.loop import FIGURES, LOSS, EpochResult, fit
from kdtune.training.teacher import load_teacher
from kdtune.training.teacher_targets import Lesson
from kdtune.tuning.trials.trial_checkpoints import StoredFiles, TrialFiles

OUTCOME = "outcome"
"""Key of a result that ends a trial: ``diverged``, ``crashed``, or one of the next two; ``reason``
stands beside it."""

OUT_OF_MEMORY, DISK_FULL = "out_of_memory", "disk_full"
"""Outcomes that need not be the trial's end."""

NODE = "node"
"""Key of the first result of a trial, which is no epoch: Ray's name of where the process runs."""

NOTE = "note"
"""Key of a result that is no epoch: what the cache told, see `kdtune.storage.array_cache.Tell`, as
JSON."""

Askers = tuple[tuple[TrainConfig, tuple[tuple[int, int, int], ...]], ...]
"""Runs whose targets the sweep keeps: settings, and (C, H, W) of the student's stages."""


# What all trials of a sweep have in common is opened once in a process.
@lru_cache(maxsize=1)
def _views(source: DataSource, skip_bad_images: bool, image_size: int, cache_gb: float) -> Views:
    data, _ = find_data(source, skip_bad_images, cache_gb, with_test=False)
    return open_views(data, image_size, cache_gb)


@lru_cache(maxsize=1)
def _teacher(path: str, classes: tuple[str, ...], image_size: int) -> nn.Module:
    return load_teacher(path, classes, image_size)


@lru_cache(maxsize=1)
def _lesson(teacher: nn.Module, image_size: int, askers: Askers) -> Lesson:
    """All that the sweep wants to know, so that one pass of the teacher gives it to all."""
    lesson = Lesson(teacher, image_size)
    for config, shapes in askers:
        lesson.ask(config, list(shapes))
    return lesson


def open_shared(sweep: SweepConfig, askers: Askers) -> tuple[Views, Lesson | None]:
    """What all trials of a sweep have in common, where this process runs."""
    assert sweep.image_size is not None
    views = _views(sweep.source, sweep.skip_bad_images, sweep.image_size, sweep.cache_gb)
    if sweep.teacher is None or not askers:
        return views, None
    teacher = _teacher(sweep.teacher, views.data.classes, sweep.image_size)
    return views, _lesson(teacher, sweep.image_size, askers)


def hide_gpus_of_others() -> None:
    """Have a process of Ray's without a GPU see none, which Ray itself does not care for."""
    if not ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        hide_gpus()


class TrialProcess(tune.Trainable):
    """Ray's side of a trial: every `step` gives one result of `trial_results`.

    Its settings are ``trial_id``; ``config``, the complete `TrainConfig` as a dict; ``place``, a
    `kdtune.tuning.cluster.placement.Place` as a dict.
    """

    def setup(
        self,
        settings: dict[str, Any],
        askers: Askers = (),
        checkpoints: Path | Storage | None = None,
        plugins: Sequence[Plugin] = (),
    ) -> None:
        """Begin the first trial of the process; `checkpoints` is a folder for those of all."""
        keep_freed_memory()
        hide_gpus_of_others()
        with suppress(UserError):  # which the trial raises again, and so reports
            have_only(plugins)
        self._fresh, self._askers, self._checkpoints = FreshState(), askers, checkpoints
        self._plugins = plugins
        self._begin(settings)

    def reset_config(self, settings: dict[str, Any]) -> bool:
        """Begin another trial, once the one before has ended, however long that takes."""
        self.cleanup()
        self._begin(settings)
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial up to its next result."""
        return next(self._results)

    def cleanup(self) -> None:
        """End the trial."""
        with suppress(Exception):  # whatever its ending may raise is not the next one's fault
            self._results.close()

    def _begin(self, settings: dict[str, Any]) -> None:
        self._fresh.restore(settings["config"]["seed"])
        torch.set_num_threads(settings["place"]["threads"])
        self._results = self._all_results(settings)

    def _all_results(self, settings: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        yield {NODE: ray.get_runtime_context().get_node_id()}
        yield from self.results(settings["trial_id"], settings["config"])

    def results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[dict[str, Any], None, None]:
        """What a trial gives, result by result."""
        place = self._checkpoints
        folder = place.at(trial_id) if isinstance(place, Storage) else place and place / trial_id
        return trial_results(config, self._askers, folder, self._plugins)


def trial_results(
    settings: dict[str, Any],
    askers: Askers,
    folder: Path | Storage | None = None,
    plugins: Sequence[Plugin] = (),
) -> Generator[dict[str, Any], None, None]:
    """Run one trial, or go on with it.

    Args:
        settings: complete `TrainConfig`.
        askers: see `Askers`.
        folder: for its checkpoints; without one there are none.
        plugins: those of the sweep.

    Yields:
        The figures of each epoch, those of before the last checkpoint included; in between, under
        `NOTE`, what was built or waited for; as the last result, under `OUTCOME`, how the trial
        failed, if it did.
    """
    files: TrialFiles | None = None
    result: EpochResult | None = None
    history: list[dict[str, Any]] = []
    try:
        have_only(plugins)
        config = TrainConfig.check(settings)
        told: SimpleQueue[Event | None] = SimpleQueue()
        inputs, classes, teacher = open_run(config, askers, told.put)
        yield from _notes(told, partial(inputs.evaluation, "validation"))
        state = None
        if folder is not None:
            kind = StoredFiles if isinstance(folder, Storage) else TrialFiles
            files = kind(folder, config, classes)  # type: ignore[arg-type]
            if (found := files.newest()) is not None:
                state, history = found
                yield from history
        results = fit(
            config,
            inputs.train,
            inputs.evaluation("validation"),
            num_classes=len(classes),
            teacher=teacher,
            resume=state,
        )
        for epoch in range(len(history) + 1, config.epochs + 1):
            yield from _notes(told, partial(inputs.open, epoch))
            result = next(results)
            history.append(result.figures())
            if files is not None and epoch < config.epochs:
                files.keep(result, history)
            elif files is not None:
                files.write(result, history)
            yield history[-1]
    except GeneratorExit:  # the trial is left, for now or for good
        if files is not None and result is not None:
            files.write(result, history)
        raise
    except DivergedError as error:
        yield {OUTCOME: "diverged", "reason": str(error)}
    except DiskFullError as error:
        yield {OUTCOME: DISK_FULL, "reason": str(error)}
    except Exception as error:  # whatever a run may raise must not end the sweep
        message = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
        yield {OUTCOME: OUT_OF_MEMORY if lacks_memory(error) else "crashed", "reason": reason}
    finally:
        if files is not None:
            files.close()


def open_run(
    config: TrainConfig, askers: Askers, tell: Tell
) -> tuple[Inputs, tuple[str, ...], nn.Module | None]:
    """What a trial is fed with, its classes, and its teacher, if it has one.

    Args:
        config: complete settings.
        askers: see `Askers`.
        tell: told what is built.
    """
    views = _views(config.source, config.skip_bad_images, config.image_size, config.cache_gb)
    classes = views.data.classes
    teacher, lesson, own = None, None, {}
    if config.teacher_model is not None:
        teacher = _teacher(config.teacher_model, classes, config.image_size)
        if keeps_targets(config):
            lesson = _lesson(teacher, config.image_size, askers)
            student = build_model(config.model, len(classes), config.image_size)
            own = lesson.ask(config, feature_shapes(student, config.image_size))
    return Inputs(config, views, lesson, own, tell), classes, teacher


def lacks_memory(error: Exception) -> bool:
    """Whether a device had too little memory."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    words = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
    return known or any(word in str(error) for word in words)  # some have no class of their own


def _notes(
    told: "SimpleQueue[Event | None]", work: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Do some work in a thread, and give what it tells while it goes on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        future.add_done_callback(lambda _: told.put(None))
        for event in iter(told.get, None):
            if event["state"] != "found":
                yield {NOTE: json.dumps(event)}
        future.result()


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of an epoch in a result, without what Ray added to it."""
    return {k: v for k, v in result.items() if k in FIGURES or k.startswith(LOSS)}
