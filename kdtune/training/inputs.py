"""What a run is fed with: batches of views, with the teacher's targets or without."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kdtune.config.train import DataSource, TrainConfig
from kdtune.data.batches import Batches
from kdtune.data.decoded import Views, first_seed, leave_bad_out
from kdtune.data.folders import find_images
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.models import build_model, feature_shapes
from kdtune.models.on_device import pick_device
from kdtune.storage.array_cache import Cache, Tell, cache_folder, describe
from kdtune.training.teacher_targets import Lesson, Target
from kdtune.units import GB, amount


class Inputs:
    """Batches of one run, from what its node has in common.

    Args:
        config: the run's settings.
        views: pixels.
        lesson: gives the teacher's targets; None where there is no teacher or it runs live.
        own: the targets that the run wants, as `Lesson.ask` gave them.
        tell: told what is built.
        keep_views: keep augmented views in the cache; else images are augmented on the way, to
            the same pixels.
    """

    def __init__(
        self,
        config: TrainConfig,
        views: Views,
        lesson: Lesson | None,
        own: Mapping[str, Target],
        tell: Tell,
        keep_views: bool = True,
    ):
        self.config, self.views, self.lesson, self.own = config, views, lesson, own
        self.tell = tell
        self._keep_views = keep_views and views.cache is not None

    def train(self, epoch: int) -> Batches:
        """The training images of an epoch, from 1, in the batches that the settings ask for."""
        config, view = self.config, self._view(epoch)
        pixels, targets = self.open(epoch)
        return Batches(
            pixels,
            self.views.data.train.labels,
            config.batch_size,
            shuffle=True,
            augmented=config.augment and (view is None or not self._keep_views),
            augment_seed=first_seed(view, config.augment_seed) if view is not None else None,
            targets={name: targets[name] for name in self.own} if self.lesson else None,
            device=pick_device(config.device),
        )

    def open(self, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The training pixels of an epoch, and the targets that are kept of it, on the disk."""
        seed, view, cache = self.config.augment_seed, self._view(epoch), self.views.cache
        if view is not None and self._keep_views:
            pixels = self.views.augmented(view, seed, self.tell)
        else:
            pixels = self.views.pixels("train", self.tell)
        if self.lesson is None or cache is None:
            return pixels, {}
        facts, what = self.views.facts("train", view, seed), self.views.describe("train", view)
        return pixels, self.lesson.open(cache, pixels, facts, what, self.config, self.tell)

    def _view(self, epoch: int) -> int | None:
        return (epoch - 1) % self.config.augment_views if turns(self.config) else None

    def evaluation(self, name: str) -> Batches:
        """The images of ``validation`` or ``test``, in order."""
        return Batches(
            self.views.pixels(name, self.tell),
            self.views.split(name).labels,
            device=pick_device(self.config.device),
        )


def turns(config: TrainConfig) -> bool:
    """Whether epochs take turns with augmented views."""
    return config.augment and config.augment_views > 0


def keeps_targets(config: TrainConfig) -> bool:
    """Whether a run that has a teacher is to keep its targets, if they fit.

    Images that are augmented anew in every epoch are never seen again.
    """
    fresh = config.augment and not turns(config)
    kept = config.cache_targets and config.cache_gb > 0 and not fresh
    return kept and METHODS[config.method].uses_teacher


def find_data(
    source: DataSource,
    skip_bad_images: bool,
    cache_gb: float,
    workers: int | None = None,
    tell: Tell = lambda event: None,
    with_test: bool = True,
) -> tuple[ImageData, list[dict[str, str]]]:
    """Find the images of a run: all of them, or those that can be read.

    Args:
        source: which they are.
        skip_bad_images: leave out what cannot be read.
        cache_gb: size of the cache, which remembers what that was.
        workers: threads that decode; one a core if None.
        tell: told if images are decoded.
        with_test: False where test images must not be had.

    Returns:
        The data, and what was left out: see `kdtune.data.decoded.leave_bad_out`.

    Raises:
        UserError: see `kdtune.data.folders.find_images`.
    """
    data = find_images(*source)
    if not with_test:
        data = data.without_test()
    if not skip_bad_images:
        return data, []
    cache = node_cache(cache_folder(), cache_gb * GB) if cache_gb else None
    return leave_bad_out(data, cache, workers, tell)


def open_views(
    data: ImageData, image_size: int, cache_gb: float, workers: int | None = None
) -> Views:
    """The pixels of a data set: on the node's disk, or in memory if `cache_gb` is 0.

    Raises:
        UserError: the images alone take more than `cache_gb`.
    """
    if not cache_gb:
        return Views(data, image_size, None, workers)
    views = Views(data, image_size, node_cache(cache_folder(), cache_gb * GB), workers)
    needed = views.bytes("train") + views.bytes("validation")
    if needed > cache_gb * GB:
        raise UserError(
            f"The images take {amount(needed)} at {image_size} px, but cache_gb is "
            f"{cache_gb:g}: raise it, or use a smaller image_size."
        )
    return views


@lru_cache(maxsize=1)
def node_cache(folder: Path, limit: float) -> Cache:
    """This node's cache; what a process has opened stays open for its next runs."""
    return Cache(folder, limit)


def open_inputs(
    config: TrainConfig, data: ImageData, teacher: nn.Module | None, say: Callable[[str], None]
) -> Inputs:
    """Prepare a single run.

    Args:
        config: the run's settings.
        data: its images.
        teacher: None without one.
        say: takes lines for a person: what is built, and why a teacher runs live.

    Raises:
        BadImagesError: images of training or validation cannot be read.
        UserError: the images take more than `cache_gb`, or the networks cannot be compared.
    """
    views = open_views(data, config.image_size, config.cache_gb, config.num_workers)

    def tell(event: Mapping[str, Any]) -> None:
        if event["state"] == "waiting" or (event["state"] == "built" and event["seconds"] > 1):
            say(describe(event))

    views.check(tell)
    count, held = len(data.train), views.bytes("train") + views.bytes("validation")
    times = config.augment_views if turns(config) else 0
    fits = held + times * views.bytes("train") <= config.cache_gb * GB
    live = Inputs(config, views, None, {}, tell, keep_views=fits)
    if teacher is None or not keeps_targets(config):
        return live
    lesson = Lesson(teacher, config.image_size)
    student = build_model(config.model, len(data.classes), config.image_size)
    own = lesson.ask(config, feature_shapes(student, config.image_size))
    size = count * sum(target.bytes for target in own.values())
    if times:
        size += views.bytes("train")
    times = max(1, times)
    if held + times * size > config.cache_gb * GB:
        say(
            f"The teacher runs live: {times} x {amount(size)} for {count:,} images do not fit "
            f"beside {amount(held)} of images into cache_gb {config.cache_gb:g}."
        )
        return live
    return Inputs(config, views, lesson, own, tell)
