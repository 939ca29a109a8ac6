"""Batches of a run, from decoded images and, if there is a teacher, its cached targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
from kdtune.storage import array_cache
from kdtune.storage.array_cache import ArrayCache, OnCacheProgress
from kdtune.training.teacher_targets import TargetSpec, TeacherTargets
from kdtune.units import BYTES_PER_GB, format_bytes


@dataclass
class EpochData:
    """Batches of one run; `open_epoch_data` assembles it.

    Attributes:
        requested: targets that the run uses, by name; see `TeacherTargets.request`.
        cache_views: cache augmented views; if False, batches are augmented to the same pixels.
    """

    config: TrainConfig
    decoded: DecodedDataset
    teacher_targets: TeacherTargets | None
    requested: Mapping[str, TargetSpec]
    on_progress: OnCacheProgress
    cache_views: bool = True

    def __post_init__(self) -> None:
        self.cache_views = self.cache_views and self.decoded.cache is not None

    @property
    def class_counts(self) -> list[int]:
        """Numbers of training images by class."""
        data = self.decoded.data
        counts: list[int] = np.bincount(data.train.labels, minlength=len(data.classes)).tolist()
        return counts

    def train_batches(self, epoch: int) -> Batches:
        """Return the training batches of an epoch, from 1."""
        config, view = self.config, self._view_index(epoch)
        pixels, arrays = self.load_arrays(epoch)
        targets = {name: arrays[name] for name in self.requested}
        return Batches(
            pixels,
            self.decoded.data.train.labels,
            config.batch_size,
            shuffle=True,
            balanced=config.balanced_sampling,
            augment="none" if view is not None and self.cache_views else config.augment,
            augment_seed=view_seed(view, config.augment_seed) if view is not None else None,
            targets=targets if self.teacher_targets is not None else None,
            device=pick_device(config.device),
            device_tensors=self.decoded.device_tensors,
        )

    def load_arrays(self, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training pixels of an epoch, and all cached targets of them."""
        seed, augment = self.config.augment_seed, self.config.augment
        view, cache = self._view_index(epoch), self.decoded.cache
        if view is not None and self.cache_views:
            pixels = self.decoded.augmented_view(view, seed, augment, self.on_progress)
        else:
            pixels = self.decoded.pixels("train", self.on_progress)
        if self.teacher_targets is None or cache is None:
            return pixels, {}
        label, pixel_key = self.decoded.identify_array("train", view, seed, augment)
        load = self.teacher_targets.load_or_compute
        return pixels, load(cache, pixels, pixel_key, label, self.config, self.on_progress)

    def _view_index(self, epoch: int) -> int | None:
        return (epoch - 1) % self.config.augment_views if _cycles_views(self.config) else None

    def evaluation_batches(self, split: str) -> Batches:
        """Return the batches of ``validation`` or ``test``, in order."""
        return Batches(
            self.decoded.pixels(split, self.on_progress),
            self.decoded.data.splits[split].labels,
            device=pick_device(self.config.device),
            device_tensors=self.decoded.device_tensors,
        )


def _cycles_views(config: TrainConfig) -> bool:
    return config.augments and config.augment_views > 0


def should_cache_targets(config: TrainConfig) -> bool:
    """Return True if the targets of a run with a teacher should be cached, if they fit."""
    sees_images_again = not config.augments or _cycles_views(config)
    cacheable = config.cache_targets and config.cache_gb > 0 and sees_images_again
    return cacheable and METHODS[config.method].uses_teacher


def find_data(
    source: DataSource,
    skip_bad_images: bool,
    cache_gb: float,
    workers: int | None = None,
    on_progress: OnCacheProgress = lambda progress: None,
    with_test: bool = True,
) -> tuple[ImageData, list[dict[str, str]]]:
    """Return the images of a run, and descriptions of those that `drop_unreadable` left out.

    Args:
        source: the data set.
        skip_bad_images: leave out images that cannot be read.
        cache_gb: size of the cache, which remembers the images that cannot be read.
        workers: threads that decode; None: one per core.
        on_progress: called when images are decoded.
        with_test: False leaves the test images out.
    """
    data = find_images(*source)
    if not with_test:
        data = data.without_test()
    if not skip_bad_images:
        return data, []
    return drop_unreadable(data, _open_cache(cache_gb), workers, on_progress)


def _open_cache(cache_gb: float) -> ArrayCache | None:
    return ArrayCache(array_cache.cache_folder(), cache_gb * BYTES_PER_GB) if cache_gb else None


def open_decoded_dataset(
    data: ImageData, image_size: int, cache_gb: float, workers: int | None = None
) -> DecodedDataset:
    """Open the pixels of a data set: on the node's disk, or in memory if `cache_gb` is 0.

    Args:
        data: the images.
        image_size: height and width in pixels.
        cache_gb: size of the cache, which the images alone must not exceed.
        workers: threads that decode; None: one per core.
    """
    decoded = DecodedDataset(data, image_size, _open_cache(cache_gb), workers)
    needed_bytes = decoded.array_bytes("train") + decoded.array_bytes("validation")
    if cache_gb and needed_bytes > cache_gb * BYTES_PER_GB:
        problem = f"The images take {format_bytes(needed_bytes)} at {image_size} px"
        advice = f"cache_gb is {cache_gb:g}: raise it, or use a smaller image_size."
        raise UserError(f"{problem}, but {advice}")
    return decoded


def open_epoch_data(
    config: TrainConfig,
    decoded: DecodedDataset,
    teacher_targets: TeacherTargets | None = None,
    on_progress: OnCacheProgress = lambda progress: None,
) -> EpochData:
    """Assemble the inputs of a run from those that the runs of a process share.

    Args:
        config: the run's settings.
        decoded: the images.
        teacher_targets: computes the teacher's; None without one, not used if it runs live.
        on_progress: called when arrays are built or waited for.
    """
    if teacher_targets is None or not should_cache_targets(config):
        return EpochData(config, decoded, None, {}, on_progress)
    student = build_model(config.model, len(decoded.data.classes), config.image_size)
    requested = teacher_targets.request(config, probe_stage_shapes(student, config.image_size))
    return EpochData(config, decoded, teacher_targets, requested, on_progress)


def open_single_run(
    config: TrainConfig, data: ImageData, teacher: nn.Module | None, say: Callable[[str], None]
) -> EpochData:
    """Open the inputs of a run that shares nothing; what does not fit into the cache is live.

    Args:
        config: the run's settings.
        data: its images.
        teacher: None without one.
        say: takes lines about what is built, and why the teacher runs live.
    """

    def on_progress(progress: array_cache.CacheProgress) -> None:
        is_slow = progress.state is array_cache.CacheState.BUILT and progress.seconds > 1
        if progress.state is array_cache.CacheState.WAITING or is_slow:
            say(progress.describe())

    decoded = open_decoded_dataset(data, config.image_size, config.cache_gb, config.num_workers)
    decoded.decode_train_validation(on_progress)
    train_bytes, max_bytes = decoded.array_bytes("train"), config.cache_gb * BYTES_PER_GB
    image_bytes = train_bytes + decoded.array_bytes("validation")
    view_count = config.augment_views if _cycles_views(config) else 0
    views_fit = image_bytes + view_count * train_bytes <= max_bytes
    if teacher is not None and should_cache_targets(config):
        teacher_targets = TeacherTargets(teacher, config.image_size)
        epoch_data = open_epoch_data(config, decoded, teacher_targets, on_progress)
        bytes_per_image = sum(spec.bytes_per_image for spec in epoch_data.requested.values())
        bytes_per_view = len(data.train) * bytes_per_image + (train_bytes if view_count else 0)
        if image_bytes + max(1, view_count) * bytes_per_view <= max_bytes:
            return epoch_data
        say(
            f"The teacher runs live: {max(1, view_count)} x {format_bytes(bytes_per_view)} for "
            f"{len(data.train):,} images do not fit beside {format_bytes(image_bytes)} of images "
            f"into cache_gb {config.cache_gb:g}."
        )
    return EpochData(config, decoded, None, {}, on_progress, cache_views=views_fit)
