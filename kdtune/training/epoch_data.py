"""What a run is fed with: batches of views, with the teacher's targets or without."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import nn

from kdtune.config.train import DataSource, TrainConfig
from kdtune.data.batches import Batches
from kdtune.data.decoded import DecodedDataset, drop_unreadable, view_seed
from kdtune.data.folders import find_images
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.models import build_model, probe_stage_shapes
from kdtune.models.on_device import pick_device
from kdtune.storage.array_cache import (
    ArrayCache,
    CacheProgress,
    CacheState,
    OnCacheProgress,
    cache_folder,
)
from kdtune.training.teacher_targets import TargetSpec, TeacherTargets
from kdtune.units import BYTES_PER_GB, format_bytes


class EpochData:
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
        decoded: DecodedDataset,
        teacher_targets: TeacherTargets | None,
        requested: Mapping[str, TargetSpec],
        on_progress: OnCacheProgress,
        cache_views: bool = True,
    ):
        self.config, self.decoded, self.teacher_targets, self.requested = (
            config,
            decoded,
            teacher_targets,
            requested,
        )
        self.on_progress = on_progress
        self._cache_views = cache_views and decoded.cache is not None

    def train_batches(self, epoch: int) -> Batches:
        """The training images of an epoch, from 1, in the batches that the settings ask for."""
        config, view = self.config, self._view_index(epoch)
        pixels, targets = self.load_arrays(epoch)
        return Batches(
            pixels,
            self.decoded.data.train.labels,
            config.batch_size,
            shuffle=True,
            augment=config.augment and (view is None or not self._cache_views),
            augment_seed=view_seed(view, config.augment_seed) if view is not None else None,
            targets={name: targets[name] for name in self.requested}
            if self.teacher_targets
            else None,
            device=pick_device(config.device),
            device_tensors=self.decoded.device_tensors,
        )

    def load_arrays(self, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The training pixels of an epoch, and the targets that are kept of it, on the disk."""
        seed, view, cache = self.config.augment_seed, self._view_index(epoch), self.decoded.cache
        if view is not None and self._cache_views:
            pixels = self.decoded.augmented_view(view, seed, self.on_progress)
        else:
            pixels = self.decoded.pixels("train", self.on_progress)
        if self.teacher_targets is None or cache is None:
            return pixels, {}
        label, pixel_key = self.decoded.identify_array("train", view, seed)
        return pixels, self.teacher_targets.load_or_compute(
            cache, pixels, pixel_key, label, self.config, self.on_progress
        )

    def _view_index(self, epoch: int) -> int | None:
        return (epoch - 1) % self.config.augment_views if cycles_views(self.config) else None

    def evaluation_batches(self, split: str) -> Batches:
        """The images of ``validation`` or ``test``, in order."""
        return Batches(
            self.decoded.pixels(split, self.on_progress),
            self.decoded.data.splits[split].labels,
            device=pick_device(self.config.device),
            device_tensors=self.decoded.device_tensors,
        )


def cycles_views(config: TrainConfig) -> bool:
    """Whether epochs take turns with augmented views."""
    return config.augment and config.augment_views > 0


def should_cache_targets(config: TrainConfig) -> bool:
    """Whether a run that has a teacher is to keep its targets, if they fit.

    Images that are augmented anew in every epoch are never seen again.
    """
    augments_anew = config.augment and not cycles_views(config)
    cacheable = config.cache_targets and config.cache_gb > 0 and not augments_anew
    return cacheable and METHODS[config.method].uses_teacher


def find_data(
    source: DataSource,
    skip_bad_images: bool,
    cache_gb: float,
    workers: int | None = None,
    on_progress: OnCacheProgress = lambda progress: None,
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
        The data, and what was left out: see `kdtune.data.decoded.drop_unreadable`.

    Raises:
        UserError: see `kdtune.data.folders.find_images`.
    """
    data = find_images(*source)
    if not with_test:
        data = data.without_test()
    if not skip_bad_images:
        return data, []
    cache = open_node_cache(cache_folder(), cache_gb * BYTES_PER_GB) if cache_gb else None
    return drop_unreadable(data, cache, workers, on_progress)


def open_decoded_dataset(
    data: ImageData, image_size: int, cache_gb: float, workers: int | None = None
) -> DecodedDataset:
    """The pixels of a data set: on the node's disk, or in memory if `cache_gb` is 0.

    Raises:
        UserError: the images alone take more than `cache_gb`.
    """
    if not cache_gb:
        return DecodedDataset(data, image_size, None, workers)
    decoded = DecodedDataset(
        data, image_size, open_node_cache(cache_folder(), cache_gb * BYTES_PER_GB), workers
    )
    needed_bytes = decoded.array_bytes("train") + decoded.array_bytes("validation")
    if needed_bytes > cache_gb * BYTES_PER_GB:
        raise UserError(
            f"The images take {format_bytes(needed_bytes)} at {image_size} px, but cache_gb is "
            f"{cache_gb:g}: raise it, or use a smaller image_size."
        )
    return decoded


@lru_cache(maxsize=1)
def open_node_cache(folder: Path, max_bytes: float) -> ArrayCache:
    """This node's cache; what a process has opened stays open for its next runs."""
    return ArrayCache(folder, max_bytes)


def open_epoch_data(
    config: TrainConfig, data: ImageData, teacher: nn.Module | None, say: Callable[[str], None]
) -> EpochData:
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
    decoded = open_decoded_dataset(data, config.image_size, config.cache_gb, config.num_workers)

    def on_progress(progress: CacheProgress) -> None:
        is_slow = progress.state is CacheState.BUILT and progress.seconds > 1
        if progress.state is CacheState.WAITING or is_slow:
            say(progress.describe())

    decoded.decode_train_validation(on_progress)
    num_images, image_bytes = (
        len(data.train),
        decoded.array_bytes("train") + decoded.array_bytes("validation"),
    )
    view_count = config.augment_views if cycles_views(config) else 0
    views_fit = (
        image_bytes + view_count * decoded.array_bytes("train") <= config.cache_gb * BYTES_PER_GB
    )
    with_live_teacher = EpochData(config, decoded, None, {}, on_progress, cache_views=views_fit)
    if teacher is None or not should_cache_targets(config):
        return with_live_teacher
    teacher_targets = TeacherTargets(teacher, config.image_size)
    student = build_model(config.model, len(data.classes), config.image_size)
    requested = teacher_targets.request(config, probe_stage_shapes(student, config.image_size))
    bytes_per_view = num_images * sum(target.bytes_per_image for target in requested.values())
    if view_count:
        bytes_per_view += decoded.array_bytes("train")
    view_count = max(1, view_count)
    if image_bytes + view_count * bytes_per_view > config.cache_gb * BYTES_PER_GB:
        say(
            f"The teacher runs live: {view_count} x {format_bytes(bytes_per_view)} for {num_images:,} images do not fit "
            f"beside {format_bytes(image_bytes)} of images into cache_gb {config.cache_gb:g}."
        )
        return with_live_teacher
    return EpochData(config, decoded, teacher_targets, requested, on_progress)
