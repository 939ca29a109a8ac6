"""Inputs that all trials of a sweep share: what is cached, and its first build."""

import shutil
from collections.abc import Callable, Sequence

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.batches import describe_left_out
from kdtune.data.decoded import DecodedDataset
from kdtune.data.splits import ImageData
from kdtune.errors import RunError, UserError, last_line
from kdtune.log.events import CachePlan, SweepOpening
from kdtune.methods import METHODS, build_method
from kdtune.methods.checks import dry_run
from kdtune.methods.kd import FeatureMethod
from kdtune.methods.method import StageShapes, describe_pooling
from kdtune.models import MODELS, build_model, probe, stage_shapes
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.device import has_gpu
from kdtune.storage import array_cache
from kdtune.storage.array_cache import ArrayCache, CacheProgress, CacheState, OnCacheProgress
from kdtune.training.epoch_data import EpochData, open_decoded_dataset, require_room
from kdtune.training.loss_scales import LossScales
from kdtune.training.teacher_check import TeacherCheck, check_teacher, require_finite
from kdtune.training.teacher_targets import TeacherTargets
from kdtune.tuning.cluster.admission import is_node_lost
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.trials.cache_plan import plan_cache
from kdtune.tuning.trials.trial_process import ProcessMemory, TargetRequests, hide_unassigned_gpus
from kdtune.units import BYTES_PER_GB

_PLAIN = "none", "none"
"""Names of augmentation and mixing of runs that see the images as they are."""


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
        self._loss_scales = teacher and LossScales(data, sweep.image_size, teacher, sweep.seed)
        self._target_requests: dict[str, list[tuple[TrainConfig, StageShapes]]] = {}
        self._target_bytes: dict[str, dict[str, int]] = {}
        self._runs_by_view: dict[tuple[str, str], TrainConfig] = {}  # by augment and mix
        self._batch_sizes = set[int]()
        self._taught_run: TrainConfig | None = None
        self.teacher_check: TeacherCheck | None = None
        self.cache_plan = CachePlan(methods=(), augment_views=0, num_bytes=0)
        self.cache_plan_lines: list[str] = []
        self.pooling_lines: list[str] = []

    def register_runs(self, model: str, configs: Sequence[TrainConfig]) -> None:
        """Try a batch with each method, and register the runs, which the sweep may make.

        Args:
            model: the student of all these runs.
            configs: their settings.
        """
        image_size, num_classes = self.decoded.image_size, len(self.decoded.data.classes)
        with MODELS.blame_provider(model):
            student = build_model(model, num_classes, image_size)
            outputs = probe(student, torch.zeros(2, 3, image_size, image_size))
            shapes = stage_shapes(outputs[1])
        targets, tried_methods = self.teacher_targets, set()
        teacher_shapes = targets.stage_shapes if targets else None
        if teacher_shapes and (pooling := describe_pooling(shapes, teacher_shapes)):
            if any(issubclass(METHODS[config.method], FeatureMethod) for config in configs):
                self.pooling_lines.append(f"{model} has {pooling}")
        rates_by_names = {tuple(c.dropout_rates): c.dropout_rates for c in configs}
        for rates in filter(None, rates_by_names.values()):
            build_model(model, num_classes, image_size, rates=rates)  # raises if it has none
        for config in configs:
            with METHODS.blame_provider(config.method):
                if config.method not in tried_methods:
                    tried_methods.add(config.method)
                    method = build_method(config, shapes, teacher_shapes)
                    teacher = targets.probe_outputs if targets and method.uses_teacher else None
                    dry_run(config.method, method, outputs, teacher)
                self._register_run(config, shapes)

    def _register_run(self, config: TrainConfig, shapes: StageShapes) -> None:
        self._runs_by_view[config.augment, config.mix] = config
        self._batch_sizes.add(config.batch_size)
        if self.teacher_targets is None:
            build_method(config, shapes, None)
            return
        if METHODS[config.method].uses_teacher:
            self._taught_run = self._taught_run or config
        requested = self.teacher_targets.request(config, shapes)
        if config.cache_targets and METHODS[config.method].uses_teacher:
            num_images = len(self.decoded.data.train)
            sizes = {name: spec.bytes_per_image * num_images for name, spec in requested.items()}
            known_bytes = self._target_bytes.setdefault(config.method, {})
            if sizes.keys() - known_bytes.keys():
                self._target_requests.setdefault(config.method, []).append((config, shapes))
                known_bytes.update(sizes)

    def measure_scales(self, config: TrainConfig) -> dict[str, float]:
        """Return the scales of a run's terms, see `LossScales.measure`; none without a teacher."""
        uses_teacher = METHODS[config.method].uses_teacher
        return self._loss_scales.measure(config) if self._loss_scales and uses_teacher else {}

    def plan_cache(self, earlier_opening: SweepOpening | None = None) -> None:
        """Plan what is cached, once all runs are registered; refuse images that do not fit.

        A sweep that has an `earlier_opening` keeps its views and its methods with a live teacher.
        """
        sizes = {
            name: size for by_name in self._target_bytes.values() for name, size in by_name.items()
        }
        require_room(
            self.decoded,
            cycles_views=bool(self._runs_by_view.keys() - {_PLAIN}),
            target_bytes=sum(sizes.values()),
        )
        recorded = earlier_opening and earlier_opening.cache
        if self.decoded.cache is None:
            if recorded and (recorded.augment_views or recorded.methods):
                raise UserError("A sweep needs a cache, which its trials share.")
            self._require_views_to_mix()
            return
        image_bytes = self.decoded.array_bytes("train")
        folder = array_cache.cache_folder()
        folder = next(path for path in (folder, *folder.parents) if path.exists())
        cached_bytes = sum(entry.size_bytes for entry in self.decoded.cache.list_entries())
        available_bytes = shutil.disk_usage(folder).free + cached_bytes
        self.cache_plan, self.cache_plan_lines = plan_cache(
            max_bytes=min(self.sweep.cache_gb * BYTES_PER_GB, available_bytes),
            image_bytes=image_bytes,
            base_bytes=image_bytes + self.decoded.array_bytes("validation"),
            target_bytes=self._target_bytes,
            any_plain=_PLAIN in self._runs_by_view,
            augmentations=len(self._runs_by_view.keys() - {_PLAIN}),
            epochs=self.sweep.epochs,
        )
        if earlier_opening and recorded:
            earlier_methods = SweepConfig.parse(earlier_opening.config).all_methods
            new_methods = set(self.cache_plan.methods).difference(earlier_methods)
            methods = tuple(dict.fromkeys((*recorded.methods, *sorted(new_methods))))
            kept = {"methods": methods, "augment_views": recorded.augment_views}
            self.cache_plan = self.cache_plan.model_copy(update=kept)
            self.cache_plan_lines = []
        self._require_views_to_mix()

    def _require_views_to_mix(self) -> None:
        mixes = any(mix != "none" for _, mix in self._runs_by_view)
        if mixes and not self.cache_plan.augment_views:
            raise UserError(
                "Mixed images need their views in the cache, which has room for none: raise "
                "cache_gb, or leave mix out."
            )

    def with_cache_plan(self, config: TrainConfig) -> TrainConfig:
        """Return the settings of a run with what the plan decides for all runs."""
        plan, uses_teacher = self.cache_plan, METHODS[config.method].uses_teacher
        update = {
            "augment_views": plan.augment_views if config.num_views or config.augments else 0,
            "cache_targets": config.method in plan.methods or not uses_teacher,
        }
        return config.model_copy(update=update)

    @property
    def target_requests(self) -> TargetRequests:
        """Runs whose targets are cached."""
        return tuple(
            (self.with_cache_plan(config), tuple(shapes))
            for method in self.cache_plan.methods
            for config, shapes in self._target_requests.get(method, ())
        )

    def _representative_runs(self) -> list[TrainConfig]:
        return [self.with_cache_plan(config) for config in self._runs_by_view.values()]

    def warm_cache(
        self,
        slots: Slots,
        say: Callable[[str], None],
        decoded: DecodedDataset | None = None,
        check_teacher: bool = False,
    ) -> list[CacheProgress]:
        """Build what the first epoch needs; return the arrays that were built or found.

        The driver builds with all cores, unless trials do not fit on its node or it sees a GPU: a
        process with the resources of a trial then builds, on the device for which trials look, and
        leaves the GPU to them. Other nodes build for their first trial.

        Args:
            slots: give the nodes.
            say: takes a line about each array, and about what does not fit.
            decoded: other images; None for those of the sweep.
            check_teacher: also measure the teacher's accuracies, see `teacher_check`.
        """
        taught_run = self._taught_run if check_teacher else None
        num_images = len(self.decoded.data.train)
        for line in (*describe_left_out(num_images, self._batch_sizes), *self.cache_plan_lines):
            say(line)
        if slots.can_run_on(ray.get_runtime_context().get_node_id()) and not has_gpu():
            prepared, self.teacher_check = self._build_in_driver(say, decoded, taught_run)
            return prepared
        say("images and targets of the first epoch are built with the resources of a trial")
        prepared, self.teacher_check = self._build_on_node(slots, say, decoded, taught_run)
        for progress in prepared:
            say(progress.describe())
        return prepared

    def _build_on_node(
        self,
        slots: Slots,
        say: Callable[[str], None],
        decoded: DecodedDataset | None,
        taught_run: TrainConfig | None,
    ) -> "FirstEpoch":
        """Build on the node of the smallest allocation, and on another one if it is lost."""
        memory, runs = ProcessMemory(self.target_requests, decoded), self._representative_runs()
        while (allocation := slots.smallest_allocation(self.sweep.models[0])) is not None:
            node = NodeAffinitySchedulingStrategy(allocation.node, soft=False)
            resources = {"num_cpus": allocation.cpus, "num_gpus": allocation.gpus}
            task = ray.remote(**resources, scheduling_strategy=node, max_retries=1)(_build_in_task)
            try:
                result = task.remote(pack_plugins(), memory, runs, taught_run)
                built: FirstEpoch | str = ray.get(result)
                if isinstance(built, str):
                    raise UserError(built)
                return built
            except ray.exceptions.RayError as error:
                if not is_node_lost(allocation.node):
                    reason = last_line(error)
                    raise RunError(f"The first views could not be built: {reason}") from error
                slots.mark_lost(allocation.node)
                say("the node that built them is lost; another one builds them")
        raise RunError("No node has room for a trial any more.")

    def _build_in_driver(
        self,
        say: Callable[[str], None],
        decoded: DecodedDataset | None,
        taught_run: TrainConfig | None,
    ) -> "FirstEpoch":
        # Opened anew: arrays that this process has open may have been evicted since, and images
        # that are decoded without a cache are checked, but not held.
        images = decoded or self.decoded
        cache = images.cache and ArrayCache(images.cache.folder, images.cache.max_bytes)
        fresh = DecodedDataset(images.data, images.image_size, cache)
        memory = ProcessMemory(self.target_requests, fresh, self.teacher)
        runs = self._representative_runs()
        return _build_first_epoch(
            memory, runs, taught_run, lambda progress: say(progress.describe())
        )


FirstEpoch = tuple[list[CacheProgress], TeacherCheck | None]
"""Arrays that were built or found, and the check of the teacher if it was asked for."""


def _build_in_task(
    plugins: Sequence[Plugin],
    memory: ProcessMemory,
    runs: list[TrainConfig],
    taught_run: TrainConfig | None,
) -> FirstEpoch | str:
    """Return the result of `_build_first_epoch`, or a problem for the user."""
    hide_unassigned_gpus()
    try:
        PLUGINS.sync(plugins)
        return _build_first_epoch(memory, runs, taught_run, lambda _: None)
    except UserError as error:  # Ray would wrap it
        return str(error)


def _build_first_epoch(
    memory: ProcessMemory,
    runs: Sequence[TrainConfig],
    taught_run: TrainConfig | None,
    on_progress: OnCacheProgress,
) -> FirstEpoch:
    decoded, requests = memory.decoded(runs[0]), memory.target_requests
    targets = memory.teacher_targets(requests[0][0]) if requests else None
    prepared: list[CacheProgress] = []

    def report_once(progress: CacheProgress) -> None:
        if any(progress.label == other.label for other in prepared):
            return
        on_progress(progress)
        if progress.state in (CacheState.BUILT, CacheState.CACHED):
            prepared.append(progress)

    decoded.decode_train_validation(report_once)
    plain_targets: dict[str, np.ndarray] = {}  # others are not of the images that the labels name
    for config in runs:
        _, arrays = EpochData(config, decoded, targets, {}, report_once).load_arrays(1)
        if (config.augment, config.mix) == _PLAIN:
            plain_targets = arrays
        elif taught_run is not None:
            require_finite(taught_run, arrays)
    if taught_run is None:
        return prepared, None
    validation = EpochData(taught_run, decoded, None, {}, report_once).evaluation_batches(
        "validation"
    )
    teacher, labels = memory.teacher(taught_run), decoded.data.train.labels
    return prepared, check_teacher(teacher, taught_run, validation, labels, plain_targets)
