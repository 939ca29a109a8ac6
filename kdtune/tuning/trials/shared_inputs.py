"""What the trials of a sweep have in common: pixels, the teacher, and what all ask of it."""

import shutil
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace

from torch import Tensor, nn

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.decoded import Views
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.log.events import Event
from kdtune.methods import METHODS, build_method
from kdtune.methods.checks import rehearse
from kdtune.methods.method import Maps, Shapes
from kdtune.models import stage_shapes
from kdtune.runtime.device import has_gpu, release
from kdtune.storage.array_cache import Cache, Tell, cache_folder, describe
from kdtune.training.inputs import Inputs, open_views
from kdtune.training.teacher_targets import Lesson
from kdtune.tuning.trials.cache_plan import Kept, plan_views
from kdtune.tuning.trials.trainable import Askers
from kdtune.units import GB


class Shared:
    """Decides what is kept for all trials, and builds what the first epoch needs.

    Args:
        sweep: complete settings.
        data: the images.
        teacher: or None.
    """

    def __init__(self, sweep: SweepConfig, data: ImageData, teacher: nn.Module | None):
        assert sweep.image_size is not None
        self.sweep, self.teacher = sweep, teacher
        self.views = open_views(data, sweep.image_size, sweep.cache_gb)
        self.lesson = Lesson(teacher, sweep.image_size) if teacher is not None else None
        self._askers: dict[str, list[tuple[TrainConfig, Shapes]]] = {}
        self._targets: dict[str, dict[str, int]] = {}
        self._runs: dict[bool, TrainConfig] = {}
        self.kept = Kept((), 0, 0, ())

    def rehearse(self, config: TrainConfig, student: tuple[Tensor, Maps]) -> None:
        """Go through a batch as a run does.

        Args:
            config: its settings.
            student: what its student gives for two images.

        Raises:
            UserError: the run's method is no good.
        """
        shapes = self.lesson.shapes if self.lesson else None
        method = build_method(config, stage_shapes(student[1]), shapes)
        teacher = self.lesson.outputs if self.lesson and method.uses_teacher else None
        rehearse(config.method, method, student, teacher)

    def ask(self, config: TrainConfig, shapes: Shapes) -> None:
        """Take note of a run that the sweep may make; its networks must be comparable."""
        self._runs[config.augment] = config
        if self.lesson is None:
            build_method(config, shapes, None)
            return
        own = self.lesson.ask(config, shapes)
        if config.cache_targets and METHODS[config.method].uses_teacher:
            sizes = {k: t.bytes * len(self.views.data.train) for k, t in own.items()}
            known = self._targets.setdefault(config.method, {})
            if sizes.keys() - known.keys():
                self._askers.setdefault(config.method, []).append((config, shapes))
                known.update(sizes)

    def plan(self, earlier: Event | None = None) -> None:
        """Decide what is kept, once all runs have been noted.

        Args:
            earlier: the event that opened the same sweep before: its trials saw so many views,
                and the teacher ran live for some methods, and so it stays.
        """
        if self.views.cache is None:
            if earlier is not None and (earlier["views"]["views"] or earlier["views"]["methods"]):
                raise UserError("The sweep's trials share what the cache holds; it needs one.")
            return
        images = self.views.bytes("train")
        folder = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
        there = sum(entry.bytes for entry in self.views.cache.entries())
        self.kept = plan_views(
            limit=min(self.sweep.cache_gb * GB, shutil.disk_usage(folder).free + there),
            images=images,
            held=images + self.views.bytes("validation"),
            targets=self._targets,
            plain=False in self._runs,
            augmented=True in self._runs,
            epochs=self.sweep.epochs,
        )
        if earlier is not None:
            then, known = earlier["views"], SweepConfig.check(earlier["config"]).cells()
            new = set(self.kept.methods) - {method for method, _ in known}
            methods = tuple(dict.fromkeys((*then["methods"], *sorted(new))))
            self.kept = replace(self.kept, methods=methods, views=then["views"], lines=())

    def settings(self, config: TrainConfig) -> TrainConfig:
        """A run's settings, with what the sweep has decided for all."""
        kept = config.method in self.kept.methods
        return config.model_copy(
            update={
                "augment_views": self.kept.views if config.augment else 0,
                "cache_targets": kept or not METHODS[config.method].uses_teacher,
            }
        )

    def on(self, views: Views) -> "Shared":
        """The same for other pixels, such as some of them; what is kept stays as it is."""
        other = copy(self)
        other.views = views
        return other

    @property
    def askers(self) -> Askers:
        """The runs whose targets are kept."""
        return tuple(
            (self.settings(config), tuple(shapes))
            for method in self.kept.methods
            for config, shapes in self._askers.get(method, ())
        )

    @property
    def runs(self) -> list[TrainConfig]:
        """A run with augmentation and one without, as far as the sweep may have such."""
        return [self.settings(config) for config in self._runs.values()]

    def prepare(self, say: Callable[[str], None]) -> list[Event]:
        """Build what the first epoch needs, with all cores.

        Args:
            say: takes a line for a person about each view.

        Returns:
            What was built or found.
        """
        # Opened anew: what an earlier sweep of this process has open may have been pruned since,
        # and what is decoded without a cache is checked, but not held.
        cache = self.views.cache and Cache(self.views.cache.folder, self.views.cache.limit)
        views = Views(self.views.data, self.views.image_size, cache)
        lesson = None
        if self.teacher is not None and self.askers:
            lesson = Lesson(self.teacher, views.image_size)
            for config, shapes in self.askers:
                lesson.ask(config, list(shapes))
        told = build_first(views, lesson, self.runs, lambda event: say(describe(event)))
        if self.teacher is not None and has_gpu():
            self.teacher.cpu()  # the trials' GPU is theirs
            release()
        return told


def build_first(
    views: Views, lesson: Lesson | None, runs: Iterable[TrainConfig], say: Tell
) -> list[Event]:
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
    told: list[Event] = []

    def tell(event: Event) -> None:
        if any(event["what"] == other["what"] for other in told):
            return
        say(event)
        if event["state"] in ("built", "found"):
            told.append(event)

    views.check(tell)
    for config in runs:
        Inputs(config, views, lesson, {}, tell).open(1)
    return told
