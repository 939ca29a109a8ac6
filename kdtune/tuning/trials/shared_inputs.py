"""What the trials of a sweep have in common: pixels, the teacher, and what all ask of it."""

import shutil
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace

from torch import Tensor, nn

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.log.events import SweepOpening
from kdtune.methods import METHODS, build_method
from kdtune.methods.checks import dry_run
from kdtune.methods.method import FeatureMaps, StageShapes
from kdtune.models import stage_shapes
from kdtune.runtime.device import has_gpu, release_gpu_memory
from kdtune.storage.array_cache import (
    ArrayCache,
    CacheProgress,
    CacheState,
    OnCacheProgress,
    cache_folder,
)
from kdtune.training.epoch_data import EpochData, open_decoded_dataset
from kdtune.training.teacher_targets import TeacherTargets
from kdtune.tuning.trials.cache_plan import CachePlan, plan_cache
from kdtune.tuning.trials.trainable import TargetRequests
from kdtune.units import BYTES_PER_GB


class SharedInputs:
    """Decides what is kept for all trials, and builds what the first epoch needs.

    Args:
        sweep: complete settings.
        data: the images.
        teacher: or None.
    """

    def __init__(self, sweep: SweepConfig, data: ImageData, teacher: nn.Module | None):
        assert sweep.image_size is not None
        self.sweep, self.teacher = sweep, teacher
        self.decoded = open_decoded_dataset(data, sweep.image_size, sweep.cache_gb)
        self.teacher_targets = (
            TeacherTargets(teacher, sweep.image_size) if teacher is not None else None
        )
        self._target_requests: dict[str, list[tuple[TrainConfig, StageShapes]]] = {}
        self._target_bytes: dict[str, dict[str, int]] = {}
        self._runs_by_augment: dict[bool, TrainConfig] = {}
        self.cache_plan = CachePlan((), 0, 0, ())

    def dry_run(self, config: TrainConfig, student: tuple[Tensor, FeatureMaps]) -> None:
        """Go through a batch as a run does.

        Args:
            config: its settings.
            student: what its student gives for two images.

        Raises:
            UserError: the run's method is no good.
        """
        shapes = self.teacher_targets.stage_shapes if self.teacher_targets else None
        method = build_method(config, stage_shapes(student[1]), shapes)
        teacher = (
            self.teacher_targets.probe_outputs
            if self.teacher_targets and method.uses_teacher
            else None
        )
        dry_run(config.method, method, student, teacher)

    def register_run(self, config: TrainConfig, shapes: StageShapes) -> None:
        """Take note of a run that the sweep may make; its networks must be comparable."""
        self._runs_by_augment[config.augment] = config
        if self.teacher_targets is None:
            build_method(config, shapes, None)
            return
        requested = self.teacher_targets.request(config, shapes)
        if config.cache_targets and METHODS[config.method].uses_teacher:
            sizes = {
                k: t.bytes_per_image * len(self.decoded.data.train) for k, t in requested.items()
            }
            known_bytes = self._target_bytes.setdefault(config.method, {})
            if sizes.keys() - known_bytes.keys():
                self._target_requests.setdefault(config.method, []).append((config, shapes))
                known_bytes.update(sizes)

    def plan_cache(self, previous_opening: SweepOpening | None = None) -> None:
        """Decide what is kept, once all runs have been noted.

        Args:
            earlier: the event that opened the same sweep before: its trials saw so many views,
                and the teacher ran live for some methods, and so it stays.
        """
        if self.decoded.cache is None:
            recorded = previous_opening.cache if previous_opening else None
            if recorded is not None and (recorded.augment_views or recorded.methods):
                raise UserError("The sweep's trials share what the cache holds; it needs one.")
            return
        images = self.decoded.array_bytes("train")
        folder = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
        cached_bytes = sum(entry.size_bytes for entry in self.decoded.cache.list_entries())
        self.cache_plan = plan_cache(
            max_bytes=min(
                self.sweep.cache_gb * BYTES_PER_GB, shutil.disk_usage(folder).free + cached_bytes
            ),
            image_bytes=images,
            base_bytes=images + self.decoded.array_bytes("validation"),
            target_bytes=self._target_bytes,
            any_plain=False in self._runs_by_augment,
            any_augmented=True in self._runs_by_augment,
            epochs=self.sweep.epochs,
        )
        if previous_opening is not None:
            recorded = previous_opening.cache
            previous_cells = SweepConfig.parse(previous_opening.config).cells()
            new_methods = set(self.cache_plan.methods) - {method for method, _ in previous_cells}
            methods = tuple(dict.fromkeys((*recorded.methods, *sorted(new_methods))))
            self.cache_plan = replace(
                self.cache_plan, methods=methods, views=recorded.augment_views, lines=()
            )

    def with_cache_plan(self, config: TrainConfig) -> TrainConfig:
        """A run's settings, with what the sweep has decided for all."""
        is_cached = config.method in self.cache_plan.methods
        return config.model_copy(
            update={
                "augment_views": self.cache_plan.views if config.augment else 0,
                "cache_targets": is_cached or not METHODS[config.method].uses_teacher,
            }
        )

    def with_decoded(self, decoded: DecodedDataset) -> "SharedInputs":
        """The same for other pixels, such as some of them; what is kept stays as it is."""
        other = copy(self)
        other.decoded = decoded
        return other

    @property
    def target_requests(self) -> TargetRequests:
        """The runs whose targets are kept."""
        return tuple(
            (self.with_cache_plan(config), tuple(shapes))
            for method in self.cache_plan.methods
            for config, shapes in self._target_requests.get(method, ())
        )

    @property
    def representative_runs(self) -> list[TrainConfig]:
        """A run with augmentation and one without, as far as the sweep may have such."""
        return [self.with_cache_plan(config) for config in self._runs_by_augment.values()]

    def warm_cache(self, say: Callable[[str], None]) -> list[CacheProgress]:
        """Build what the first epoch needs, with all cores.

        Args:
            say: takes a line for a person about each view.

        Returns:
            What was built or found.
        """
        # Opened anew: what an earlier sweep of this process has open may have been pruned since,
        # and what is decoded without a cache is checked, but not held.
        cache = self.decoded.cache and ArrayCache(
            self.decoded.cache.folder, self.decoded.cache.max_bytes
        )
        decoded = DecodedDataset(self.decoded.data, self.decoded.image_size, cache)
        teacher_targets = None
        if self.teacher is not None and self.target_requests:
            teacher_targets = TeacherTargets(
                self.teacher, decoded.image_size, self.target_requests
            )
        prepared = build_first_epoch(
            decoded,
            teacher_targets,
            self.representative_runs,
            lambda progress: say(progress.describe()),
        )
        if self.teacher is not None and has_gpu():
            self.teacher.cpu()  # the trials' GPU is theirs
            release_gpu_memory()
        return prepared


def build_first_epoch(
    decoded: DecodedDataset,
    teacher_targets: TeacherTargets | None,
    runs: Iterable[TrainConfig],
    on_progress: OnCacheProgress,
) -> list[CacheProgress]:
    """Build what the first epoch of some runs needs, where this process runs.

    Args:
        views: pixels.
        lesson: what is asked of the teacher; None without one.
        runs: see `Shared.runs`.
        say: told what is built, or found, once.

    Returns:
        What was built or found.

    Raises:
        UserError: images cannot be read, or the cache cannot be written.
    """
    prepared: list[CacheProgress] = []

    def report_once(progress: CacheProgress) -> None:
        if any(progress.label == other.label for other in prepared):
            return
        on_progress(progress)
        if progress.state in (CacheState.BUILT, CacheState.CACHED):
            prepared.append(progress)

    decoded.decode_train_validation(report_once)
    for config in runs:
        EpochData(config, decoded, teacher_targets, {}, report_once).load_arrays(1)
    return prepared
