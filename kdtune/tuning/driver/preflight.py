"""Checks all that a sweep needs before anything is trained, and fills in what follows from it."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig, applicable_settings
from kdtune.data.folders import GROUPS_FILE, load_test_groups
from kdtune.data.splits import Split
from kdtune.errors import UserError
from kdtune.log.distributions import parse_distributions
from kdtune.log.events import (
    CacheRecord,
    Candidate,
    Cell,
    ConfirmStarted,
    DataSummary,
    LogOpening,
    SpaceRecord,
    SweepOpening,
    SweepResumed,
    SweepStarted,
    TeacherSummary,
    UnreadableImage,
    WarmStart,
)
from kdtune.methods import METHODS
from kdtune.models import (
    MODELS,
    build_model,
    probe,
    probe_stage_shapes,
    require_model,
    stage_shapes,
)
from kdtune.models.on_device import pick_device
from kdtune.plugins import PLUGINS
from kdtune.runtime.console import printable_path
from kdtune.runtime.environment import describe_environment
from kdtune.runtime.seeds import derive_seed
from kdtune.trackers.registry import require_tracker_packages
from kdtune.training.epoch_data import find_data
from kdtune.training.teacher import describe_teacher, load_teacher
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.search.space import (
    SearchSpace,
    load_plugin_spaces,
    load_space,
    load_spaces,
    serialize_distributions,
)
from kdtune.tuning.search.warm_start import make_warm_start_events
from kdtune.tuning.trials.shared_inputs import SharedInputs

NO_TEST_IMAGES = (
    "The data have no test images, on which a sweep is confirmed: add a folder test/, which the "
    "search never sees."
)


@dataclass
class PreparedSweep:
    """A sweep that can be run.

    Attributes:
        sweep: complete settings.
        spaces: the search space of each method, without what the sweep fixes.
        shared: what the trials have in common.
        opened: the event that opens it; what it lacks is which views were built or found.
    """

    sweep: SweepConfig
    spaces: dict[str, SearchSpace]
    shared_inputs: SharedInputs
    opening_event: SweepOpening

    def configure_trial(self, cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
        """Complete settings of a trial, from what its space, the sweep and the cache decide."""
        return self.shared_inputs.with_cache_plan(
            _build_trial_config(self.sweep, cell, number, settings)
        )

    def example_configs(self) -> dict[str, TrainConfig]:
        """Settings of a trial of each student: the first ones of its first cell."""
        configs: dict[str, TrainConfig] = {}
        for method, model in self.sweep.cells():
            if model not in configs:
                _, settings = self.spaces[method].probe_points()[0]
                configs[model] = self.configure_trial((method, model), 0, settings)
        return configs

    def load_warm_start_events(self) -> list[WarmStart]:
        """What the sweep begins with that is to know of earlier ones."""
        cells = self.sweep.cells()
        return [
            event
            for path in self.sweep.warm_start
            for event in make_warm_start_events(
                path, self.spaces, cells, self.opening_event, self.configure_trial
            )
        ]


def prepare_sweep(
    requested: SweepConfig,
    space_files: tuple[str, ...],
    earlier_opening: SweepOpening | None = None,
) -> PreparedSweep:
    """Check methods, models, spaces, data, teacher and settings as trials would meet them.

    Args:
        given: the sweep's settings; its plug-ins are code that the user names now.
        files: of spaces; they are, too.
        earlier: the event that opened the same sweep before: what cannot have changed meanwhile is
            taken from it, or compared with it. No code runs because it is named there.

    Raises:
        UserError: something is no good, or is not what it was.
    """
    PLUGINS.load_files(requested.plugins)
    pack_plugins()  # says early which plug-in cannot be sent to trials
    sweep, shared_inputs, opening_fields = _prepare_inputs(requested, earlier_opening)
    if sweep.confirm and opening_fields["data"].test_images < 2:
        raise UserError(NO_TEST_IMAGES)
    spaces = _prepare_spaces(sweep, shared_inputs, space_files, earlier_opening)
    shared_inputs.plan_cache(earlier_opening)
    event_type = SweepStarted if earlier_opening is None else SweepResumed
    opening_event = event_type(
        config=sweep.model_dump(mode="json"),
        spaces={method: _record_space(space) for method, space in spaces.items()},
        cache=_record_cache(shared_inputs),
        **opening_fields,
    )
    return PreparedSweep(sweep, spaces, shared_inputs, opening_event)


def _prepare_inputs(
    requested: SweepConfig, earlier_opening: SweepOpening | None
) -> tuple[SweepConfig, SharedInputs, dict[str, Any]]:
    """Check data and teacher.

    Returns:
        Complete settings, what trials have in common, and what the log keeps of all this.
    """
    require_tracker_packages(requested.trackers)
    requested.check_names_and_files()
    for model in requested.models:
        require_model(model)
    data, skipped_images = find_data(
        requested.data_source, requested.skip_bad_images, requested.cache_gb
    )
    teacher, teacher_info = None, None
    image_size = requested.image_size or TrainConfig.model_fields["image_size"].default
    if requested.teacher is not None:
        teacher = load_teacher(requested.teacher, data.classes, requested.image_size)
        teacher_info = TeacherSummary(**describe_teacher(requested.teacher))
        image_size = teacher_info.image_size or image_size
    sweep = requested.model_copy(
        update={
            "image_size": image_size,
            "data": _make_absolute(requested.data),
            "data_root": requested.data_root
            and str(Path(requested.data_root).expanduser().resolve()),
            "teacher": _make_absolute(requested.teacher) if requested.teacher else None,
            "spaces": tuple(map(_make_absolute, requested.spaces)),
            "plugins": tuple(map(_make_absolute, requested.plugins)),
            "warm_start": tuple(map(_make_absolute, requested.warm_start)),
        }
    )
    opening_fields: dict[str, Any] = {
        "data": DataSummary(
            **data.summary(),
            skipped_images=tuple(UnreadableImage(**image) for image in skipped_images),
        ),
        "teacher": teacher_info,
        "environment": describe_environment(),
        "plugins": PLUGINS.records(
            METHODS=[method for method, _ in sweep.cells()],
            MODELS=[*sweep.models, *([teacher_info.model] if teacher_info else ())],
            DATA=[requested.data],
        ),
    }
    if earlier_opening is not None:
        _require_same_inputs(earlier_opening, opening_fields["data"], teacher_info)
    return sweep, SharedInputs(sweep, data, teacher), opening_fields


@dataclass
class PreparedConfirmation:
    """A sweep that can be confirmed.

    Attributes:
        sweep: complete settings.
        shared: what the runs have in common.
        test: the test images.
        groups: of each, or None: see `kdtune.data.folders.load_test_groups`.
        opened: the event that opens it; what it lacks are candidates.
    """

    sweep: SweepConfig
    shared_inputs: SharedInputs
    test_split: Split
    test_groups: list[str] | None
    opening_event: ConfirmStarted


def prepare_confirmation(
    requested: SweepConfig,
    earlier_opening: SweepOpening,
    earlier_confirmation: ConfirmStarted | None,
    candidate_settings: Sequence[Mapping[str, Any]],
    new_candidates: Iterable[Candidate],
) -> PreparedConfirmation:
    """Check data, teacher and test images, and decide what is kept for the runs.

    Args:
        given: the sweep's settings.
        earlier: the event that opened the sweep last.
        before: the event that opened its confirmation last, if it has begun.
        settings: complete settings of the candidates.

    Raises:
        UserError: something is no good, or is not what it was.
    """
    sweep, shared_inputs, opening_fields = _prepare_inputs(requested, earlier_opening)
    views = shared_inputs.decoded
    if views.data.test is None or len(views.data.test) < 2:
        raise UserError(NO_TEST_IMAGES)
    groups = load_test_groups(views.data)
    if earlier_confirmation is not None:
        test_fingerprint = opening_fields["data"].test_fingerprint
        if earlier_confirmation.data.test_fingerprint != test_fingerprint:
            raise UserError("The test images are not those that the confirmation began with.")
        if earlier_confirmation.groups_sha256 and not groups:
            raise UserError(
                f"The groups of the test images, {GROUPS_FILE}, are missing in the data."
            )
    views.pixels("test")  # says which cannot be read, before anything is trained
    for run_settings in candidate_settings:
        uses_teacher = run_settings["teacher_model"] is not None
        config = TrainConfig.parse({**run_settings, **sweep.locations(uses_teacher)})
        pick_device(config.device)
        student = build_model(config.model, len(views.data.classes), config.image_size)
        shared_inputs.register_run(config, probe_stage_shapes(student, config.image_size))
    shared_inputs.plan_cache(earlier_opening)
    opening_event = ConfirmStarted(
        config=sweep.model_dump(mode="json"),
        cache=_record_cache(shared_inputs),
        groups_sha256=hashlib.sha256("\n".join(groups).encode()).hexdigest() if groups else None,
        candidates=tuple(new_candidates),
        seeds=sweep.seeds,
        top=sweep.top,
        **opening_fields,
    )
    return PreparedConfirmation(sweep, shared_inputs, views.data.test, groups, opening_event)


def _require_same_inputs(
    earlier_opening: LogOpening, data: DataSummary, teacher: TeacherSummary | None
) -> None:
    if earlier_opening.data.fingerprint != data.fingerprint:
        raise UserError(
            "The data are not those that the sweep began with: "
            f"{earlier_opening.data.describe_counts()} images then (training, validation, test), "
            f"{data.describe_counts()} now, or other files; give the same with --data."
        )
    expected = earlier_opening.teacher
    if expected is not None and (teacher is None or expected.sha256 != teacher.sha256):
        raise UserError("The teacher is not the one that the sweep began with.")


def _prepare_spaces(
    sweep: SweepConfig,
    shared_inputs: SharedInputs,
    space_files: tuple[str, ...],
    earlier_opening: SweepOpening | None,
) -> dict[str, SearchSpace]:
    """Check methods, models, spaces and settings as trials would meet them.

    Returns:
        The search space of each method, without what the sweep fixes.
    """
    methods = dict.fromkeys(method for method, _ in sweep.cells())
    user_spaces = {(space := load_space(Path(file))).method: space for file in space_files}
    for method, space in user_spaces.items():
        if method not in methods:
            raise UserError(
                f"The space {space.path} is for '{method}', which is not in this sweep."
            )
    for method in methods:
        if METHODS[method].uses_teacher and shared_inputs.teacher is None:
            raise UserError(
                f"The method '{method}' learns from a teacher: give --teacher "
                "(make one with 'kdtune teacher'), or --methods student --no-baselines."
            )
    spaces, fixed_spaces = {**load_spaces(), **user_spaces}, {}
    for method in methods:
        settings = applicable_settings(method, sweep.settings)
        recorded = earlier_opening.spaces.get(method) if earlier_opening else None
        if recorded is not None:
            user_space = user_spaces.get(method)
            fixed_spaces[method] = _restore_space(method, recorded, user_space, settings)
        elif method in spaces:
            fixed_spaces[method] = spaces[method].with_constants(settings)
        else:
            raise UserError(f"There is no search space for '{method}'; give one with --space.")
    pick_device(sweep.settings.get("device", "auto"))
    image_size = shared_inputs.decoded.image_size
    for model in dict.fromkeys(sweep.models):
        with MODELS.blame_provider(model):
            student = build_model(model, len(shared_inputs.decoded.data.classes), image_size)
            outputs = probe(student, torch.zeros(2, 3, image_size, image_size))
            shapes = stage_shapes(outputs[1])
        for method in fixed_spaces:
            configs = [
                _build_trial_config(sweep, (method, model), 0, settings)
                for _, settings in fixed_spaces[method].probe_points()
            ]
            with METHODS.blame_provider(method):
                shared_inputs.dry_run(configs[0], outputs)
                for config in configs:
                    shared_inputs.register_run(config, shapes)
    return fixed_spaces


def _record_space(space: SearchSpace) -> SpaceRecord:
    return SpaceRecord(
        path=str(space.path),
        function=space.define_by_run is not None,
        distributions=serialize_distributions(space),
        constants=space.constants,
        start=tuple(space.start_points),
    )


def _record_cache(shared_inputs: SharedInputs) -> CacheRecord:
    plan = shared_inputs.cache_plan
    return CacheRecord(methods=plan.methods, augment_views=plan.views, num_bytes=plan.bytes)


def _restore_space(
    method: str, recorded: SpaceRecord, user_space: SearchSpace | None, settings: dict[str, Any]
) -> SearchSpace:
    """A space of the log; a function comes from a file that the user names again."""
    if recorded.function:
        user_space = user_space or load_plugin_spaces().get(method)
        if user_space is None or user_space.define_by_run is None:
            raise UserError(
                f"The space of '{method}' is a function, and code that a log names is not run: if "
                f"you trust it, give --space {recorded.path}."
            )
        return user_space.with_constants(settings)
    if user_space is not None:
        raise UserError(f"The sweep has a space for '{method}', and keeps it; leave --space out.")
    return SearchSpace(
        method=method,
        distributions=parse_distributions(recorded.distributions),
        constants=recorded.constants,
        define_by_run=None,
        start_points=list(recorded.start),
        docstring="",
        path=Path(recorded.path),
    )


def _build_trial_config(
    sweep: SweepConfig, cell: Cell, number: int, settings: dict[str, Any]
) -> TrainConfig:
    """Complete settings of a trial, from what its space and the sweep decide."""
    method, model = cell
    return TrainConfig.parse(
        {
            **settings,
            "method": method,
            "model": model,
            **sweep.locations(METHODS[method].uses_teacher),
            "image_size": sweep.image_size,
            "epochs": sweep.epochs,
            "skip_bad_images": sweep.skip_bad_images,
            "augment_seed": sweep.seed,
            "seed": derive_seed(sweep.seed, method, model, number),
        }
    )


def _make_absolute(path: str) -> str:
    """Trials run in folders of their own; the name of a data set stays as it is.

    Links stay links: on another node they may lead elsewhere.
    """
    expanded = Path(path).expanduser()
    path = os.path.abspath(expanded) if expanded.exists() else path
    if printable_path(path) != path:
        raise UserError(
            f"The path {printable_path(path)} is not plain UTF-8, which Ray cannot take; rename it, or "
            "give a link to it."
        )
    return path
