"""Inputs that all trials of a sweep share: decoded images, teacher and teacher targets."""

import shutil
from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor, nn

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.log.events import CacheRecord, SweepOpening
from kdtune.methods import METHODS, build_method
from kdtune.methods.checks import dry_run
from kdtune.methods.method import FeatureMaps, StageShapes
from kdtune.models import MODELS, build_model, probe, stage_shapes
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
from kdtune.tuning.trials.cache_plan import plan_cache
from kdtune.tuning.trials.trainable import ProcessMemory, TargetRequests
from kdtune.units import BYTES_PER_GB


class SharedInputs:
    """Plans which inputs are cached for all trials, and builds those of the first epoch.

    Args:
        sweep: complete settings.
        data: the images.
        teacher: None without one.
    """

    def __init__(self, sweep: SweepConfig, data: ImageData, teacher: nn.Module | None):
        assert sweep.image_size is not None
        self.sweep, self.teacher = sweep, teacher
        self.decoded = open_decoded_dataset(data, sweep.image_size, sweep.cache_gb)
        self.teacher_targets = TeacherTargets(teacher, sweep.image_size) if teacher else None
        self._target_requests: dict[str, list[tuple[TrainConfig, StageShapes]]] = {}
        self._target_bytes: dict[str, dict[str, int]] = {}
        self._runs_by_augment: dict[bool, TrainConfig] = {}
        self.cache_plan = CacheRecord(methods=(), augment_views=0, num_bytes=0)
        self.cache_plan_lines: list[str] = []

    def register_runs(self, model: str, configs: Sequence[TrainConfig]) -> None:
        """Try a batch with each method, and register the runs, which the sweep may make.

        Args:
            model: the student of all these runs.
            configs: their settings.
        """
        image_size = self.decoded.image_size
        with MODELS.blame_provider(model):
            student = build_model(model, len(self.decoded.data.classes), image_size)
            outputs = probe(student, torch.zeros(2, 3, image_size, image_size))
            shapes = stage_shapes(outputs[1])
        tried_methods = set()
        for config in configs:
            with METHODS.blame_provider(config.method):
                if config.method not in tried_methods:
                    self._dry_run(config, outputs)
                    tried_methods.add(config.method)
                self._register_run(config, shapes)

    def _dry_run(self, config: TrainConfig, student: tuple[Tensor, FeatureMaps]) -> None:
        targets = self.teacher_targets
        teacher_shapes = targets.stage_shapes if targets else None
        method = build_method(config, stage_shapes(student[1]), teacher_shapes)
        teacher = targets.probe_outputs if targets and method.uses_teacher else None
        dry_run(config.method, method, student, teacher)

    def _register_run(self, config: TrainConfig, shapes: StageShapes) -> None:
        self._runs_by_augment[config.augment] = config
        if self.teacher_targets is None:
            build_method(config, shapes, None)
            return
        requested = self.teacher_targets.request(config, shapes)
        if config.cache_targets and METHODS[config.method].uses_teacher:
            num_images = len(self.decoded.data.train)
            sizes = {name: spec.bytes_per_image * num_images for name, spec in requested.items()}
            known_bytes = self._target_bytes.setdefault(config.method, {})
            if sizes.keys() - known_bytes.keys():
                self._target_requests.setdefault(config.method, []).append((config, shapes))
                known_bytes.update(sizes)

    def plan_cache(self, earlier_opening: SweepOpening | None = None) -> None:
        """Plan what is cached, once all runs are registered.

        A sweep that has an `earlier_opening` keeps its views and its methods with a live teacher.
        """
        recorded = earlier_opening.cache if earlier_opening else None
        if self.decoded.cache is None:
            if recorded is not None and (recorded.augment_views or recorded.methods):
                raise UserError("The sweep's trials share what the cache holds; it needs one.")
            return
        image_bytes = self.decoded.array_bytes("train")
        folder = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
        cached_bytes = sum(entry.size_bytes for entry in self.decoded.cache.list_entries())
        available_bytes = shutil.disk_usage(folder).free + cached_bytes
        self.cache_plan, self.cache_plan_lines = plan_cache(
            max_bytes=min(self.sweep.cache_gb * BYTES_PER_GB, available_bytes),
            image_bytes=image_bytes,
            base_bytes=image_bytes + self.decoded.array_bytes("validation"),
            target_bytes=self._target_bytes,
            any_plain=False in self._runs_by_augment,
            any_augmented=True in self._runs_by_augment,
            epochs=self.sweep.epochs,
        )
        if earlier_opening is not None and recorded is not None:
            earlier_cells = SweepConfig.parse(earlier_opening.config).cells()
            new_methods = set(self.cache_plan.methods) - {method for method, _ in earlier_cells}
            kept = {
                "methods": tuple(dict.fromkeys((*recorded.methods, *sorted(new_methods)))),
                "augment_views": recorded.augment_views,
            }
            self.cache_plan = self.cache_plan.model_copy(update=kept)
            self.cache_plan_lines = []

    def with_cache_plan(self, config: TrainConfig) -> TrainConfig:
        """Return the settings of a run with what the plan decides for all runs."""
        is_cached = config.method in self.cache_plan.methods
        return config.model_copy(
            update={
                "augment_views": self.cache_plan.augment_views if config.augment else 0,
                "cache_targets": is_cached or not METHODS[config.method].uses_teacher,
            }
        )

    def with_decoded(self, decoded: DecodedDataset) -> "SharedInputs":
        """Return a copy with other images and the same plan."""
        other = copy(self)
        other.decoded = decoded
        return other

    @property
    def target_requests(self) -> TargetRequests:
        """Runs whose targets are cached."""
        return tuple(
            (self.with_cache_plan(config), tuple(shapes))
            for method in self.cache_plan.methods
            for config, shapes in self._target_requests.get(method, ())
        )

    @property
    def representative_runs(self) -> list[TrainConfig]:
        """One run with augmentation and one without, if the sweep may have such runs."""
        return [self.with_cache_plan(config) for config in self._runs_by_augment.values()]

    def warm_cache(self, say: Callable[[str], None]) -> list[CacheProgress]:
        """Build what the first epoch needs with all cores; return what was built or found."""
        # Opened anew: arrays that this process has open may have been evicted since, and images
        # that are decoded without a cache are checked, but not held.
        cache = self.decoded.cache
        decoded = DecodedDataset(
            self.decoded.data,
            self.decoded.image_size,
            cache and ArrayCache(cache.folder, cache.max_bytes),
        )
        memory = ProcessMemory(self.target_requests, decoded, self.teacher)
        runs = self.representative_runs
        prepared = build_first_epoch(memory, runs, lambda progress: say(progress.describe()))
        if self.teacher is not None and has_gpu():
            self.teacher.cpu()  # leave the GPU to the trials
            release_gpu_memory()
        return prepared


def build_first_epoch(
    memory: ProcessMemory, runs: Sequence[TrainConfig], on_progress: OnCacheProgress
) -> list[CacheProgress]:
    """Build what the first epoch of some runs needs; return the arrays that were built or found.

    Args:
        memory: opens images and teacher.
        runs: see `SharedInputs.representative_runs`.
        on_progress: takes what is built or found, once.
    """
    decoded, requests, targets = memory.decoded(runs[0]), memory.target_requests, None
    if requests:
        targets = memory.teacher_targets(requests[0][0])
    prepared: list[CacheProgress] = []

    def report_once(progress: CacheProgress) -> None:
        if any(progress.label == other.label for other in prepared):
            return
        on_progress(progress)
        if progress.state in (CacheState.BUILT, CacheState.CACHED):
            prepared.append(progress)

    decoded.decode_train_validation(report_once)
    for config in runs:
        EpochData(config, decoded, targets, {}, report_once).load_arrays(1)
    return prepared
