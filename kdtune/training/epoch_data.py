"""Batches of a run, from decoded images and, if there is a teacher, its cached targets."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batches
from kdtune.data.decoded import DecodedDataset, View, drop_unreadable
from kdtune.data.folders import find_images
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.models import build_model, probe_stage_shapes
from kdtune.models.on_device import pick_device
from kdtune.storage import array_cache
from kdtune.storage.array_cache import ArrayCache, OnCacheProgress, needed_cache_gb
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
        if self.config.mix != "none" and not self.cache_views:
            raise UserError(
                f"{self.config.mix} needs its {self.config.num_views} views in the cache: raise "
                "cache_gb, or set augment_views to a smaller number."
            )

    @property
    def class_counts(self) -> list[int]:
        """Numbers of training images by class."""
        return self.decoded.data.train.class_counts(len(self.decoded.data.classes))

    def train_batches(self, epoch: int) -> Batches:
        """Return the training batches of an epoch, from 1."""
        config, view = self.config, self._view_of(epoch)
        pixels, arrays = self.load_arrays(epoch)
        next_view = self._view_of(epoch + 1)
        if next_view is not None and self.cache_views and epoch < config.epochs:
            self.decoded.build_view_ahead(next_view)
        targets = {name: arrays[name] for name in self.requested}
        return Batches(
            pixels,
            self.decoded.data.train.labels,
            config.batch_size,
            shuffle=True,
            balanced=config.balanced_sampling,
            augment="none" if view is not None and self.cache_views else config.augment,
            augment_seed=view.base_seed if view is not None else None,
            mixing=self.decoded.mixing(view),
            num_classes=len(self.decoded.data.classes),
            targets=targets if self.teacher_targets is not None else None,
            device=pick_device(config.device),
            device_tensors=self.decoded.device_tensors,
        )

    def load_arrays(self, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training pixels of an epoch, and all cached targets of them."""
        view, cache = self._view_of(epoch), self.decoded.cache
        if view is not None and self.cache_views:
            pixels = self.decoded.augmented_view(view, self.on_progress)
        else:
            pixels = self.decoded.pixels("train", self.on_progress)
        if self.teacher_targets is None or cache is None:
            return pixels, {}
        label, pixel_key = self.decoded.identify_array("train", view)
        load = self.teacher_targets.load_or_compute
        return pixels, load(cache, pixels, pixel_key, label, self.config, self.on_progress)

    def _view_of(self, epoch: int) -> View | None:
        config = self.config
        if not config.num_views:
            return None
        number = (epoch - 1) % config.num_views
        return View(number, config.augment_seed, config.augment, config.mix)

    def evaluation_batches(self, split: str) -> Batches:
        """Return the batches of ``validation`` or ``test``, in order."""
        return Batches(
            self.decoded.pixels(split, self.on_progress),
            self.decoded.data.splits[split].labels,
            device=pick_device(self.config.device),
            device_tensors=self.decoded.device_tensors,
        )


def should_cache_targets(config: TrainConfig) -> bool:
    """Return True if the targets of a run with a teacher should be cached, if they fit."""
    sees_images_again = not config.augments or config.num_views > 0
    cacheable = config.cache_targets and config.cache_gb > 0 and sees_images_again
    return cacheable and METHODS[config.method].uses_teacher


def find_data(
    config: TrainConfig | SweepConfig, with_test: bool = True, check_room: bool = False
) -> tuple[ImageData, list[dict[str, str]]]:
    """Return the images of runs, and descriptions of those that `drop_unreadable` left out.

    Args:
        config: settings of the runs.
        with_test: False leaves the test images out.
        check_room: call `require_room`, if the image size is known, before images are checked.
    """
    data = find_images(config.data_source)
    if not with_test:
        data = data.without_test()
    if not config.skip_bad_images:
        return data, []
    if check_room and config.image_size is not None:
        require_room(open_decoded_dataset(data, config.image_size, config.cache_gb))
    return drop_unreadable(data, _open_cache(config.cache_gb))


def _open_cache(cache_gb: float) -> ArrayCache | None:
    return ArrayCache(array_cache.cache_folder(), cache_gb * BYTES_PER_GB) if cache_gb else None


def open_decoded_dataset(
    data: ImageData, image_size: int, cache_gb: float, workers: int | None = None
) -> DecodedDataset:
    """Open the pixels of a data set: on the node's disk, or in memory if `cache_gb` is 0.

    Args:
        data: the images.
        image_size: height and width in pixels.
        cache_gb: size of the cache.
        workers: threads that decode; None: one per core.
    """
    return DecodedDataset(data, image_size, _open_cache(cache_gb), workers)


def require_room(
    decoded: DecodedDataset,
    splits: Sequence[str] = ("train", "validation"),
    cycles_views: bool = False,
    target_bytes: int = 0,
) -> None:
    """Raise a `UserError` if images do not fit into the cache or, without one, into memory.

    Args:
        decoded: the images; none need be decoded.
        splits: those that are used.
        cycles_views: True if augmented views are cached, where they fit.
        target_bytes: size of the teacher's targets for the training images.
    """
    image_bytes, size = sum(map(decoded.array_bytes, splits)), decoded.image_size
    counts = " and ".join(f"{len(decoded.data.splits[name]):,} {name}" for name in splits)
    needs = f"The {counts} images take {format_bytes(image_bytes)} at {size} px"
    advice = "or use a smaller image_size, or fewer images."
    if decoded.cache is None:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if image_bytes > memory_bytes:
            problem = f"{needs} in the memory of each process, and this machine has"
            enough = needed_cache_gb(image_bytes)
            raise UserError(
                f"{problem} {format_bytes(memory_bytes)}: set cache_gb to {enough}, {advice}"
            )
        return
    max_bytes = decoded.cache.max_bytes
    if max_bytes is None or image_bytes <= max_bytes:
        return
    view_bytes = decoded.array_bytes("train") if cycles_views else 0
    more = [f"{format_bytes(view_bytes)} for a view of augmented ones"] if view_bytes else []
    more += [f"{format_bytes(target_bytes)} for the teacher's targets"] if target_bytes else []
    enough = f"{needed_cache_gb(image_bytes)} holds the images"
    if more:
        needs += f", plus {' and '.join(more)}"
        enough += f", {needed_cache_gb(image_bytes + view_bytes + target_bytes)} all of these"
    raise UserError(f"{needs}, but cache_gb is {max_bytes / BYTES_PER_GB:g}: {enough}; {advice}")


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
        say: takes lines about what is built, and what does not fit.
    """

    def on_progress(progress: array_cache.CacheProgress) -> None:
        is_slow = progress.state is array_cache.CacheState.BUILT and progress.seconds > 1
        if progress.state is array_cache.CacheState.WAITING or is_slow:
            say(progress.describe())

    decoded = open_decoded_dataset(data, config.image_size, config.cache_gb, config.num_workers)
    caches_targets = teacher is not None and should_cache_targets(config)
    targets = TeacherTargets(teacher, config.image_size) if teacher and caches_targets else None
    epoch_data = open_epoch_data(config, decoded, targets, on_progress)
    bytes_per_image = sum(spec.bytes_per_image for spec in epoch_data.requested.values())
    train_bytes, target_bytes = decoded.array_bytes("train"), len(data.train) * bytes_per_image
    num_views = config.num_views
    require_room(decoded, cycles_views=num_views > 0, target_bytes=target_bytes)
    image_bytes = train_bytes + decoded.array_bytes("validation")

    def fits(what: str, count: int, bytes_per_view: int) -> bool:
        """Return True if so many views fit into the cache, if there is one; else say why not."""
        num_bytes = image_bytes + count * bytes_per_view
        if decoded.cache is None or num_bytes <= config.cache_gb * BYTES_PER_GB:
            return True
        say(
            f"{what}: {count} x {format_bytes(bytes_per_view)} for {len(data.train):,} images do "
            f"not fit beside {format_bytes(image_bytes)} of images into cache_gb "
            f"{config.cache_gb:g}; {needed_cache_gb(num_bytes)} is enough."
        )
        return False

    bytes_per_view = train_bytes if num_views else 0
    cache_views = fits("Images are augmented in every step", num_views, bytes_per_view)
    views_and_targets = max(1, num_views), bytes_per_view + target_bytes
    if targets is not None and not fits("The teacher runs live", *views_and_targets):
        epoch_data = EpochData(config, decoded, None, {}, on_progress, cache_views)
    decoded.decode_train_validation(on_progress)
    return replace(epoch_data, cache_views=cache_views)
