"""Checks of everything that a sweep or a confirmation needs, before anything is trained."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from kdtune.config.data_forms import absolute_data
from kdtune.config.field_types import layer_names
from kdtune.config.names import split_teacher
from kdtune.config.strengths import STRENGTHS, strengths_to_weights
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.data.folders import GROUPS_FILE, load_test_groups
from kdtune.data.splits import Split
from kdtune.errors import UserError
from kdtune.log import events
from kdtune.log.events import Cell, DataSummary, SweepOpening, TeacherSummary
from kdtune.methods import METHODS
from kdtune.models import require_model
from kdtune.models.on_device import pick_device
from kdtune.plugins import PLUGINS
from kdtune.runtime.console import printable_path, say
from kdtune.runtime.environment import describe_environment
from kdtune.runtime.seeds import derive_seed
from kdtune.storage.array_cache import CacheProgress
from kdtune.trackers.registry import require_tracker_packages
from kdtune.training.epoch_data import find_data
from kdtune.training.teacher import describe_teacher, load_teacher
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.driver.student_limits import drop_large_students
from kdtune.tuning.driver.sweep_spaces import prepare_spaces, record_space
from kdtune.tuning.search.space import SearchSpace
from kdtune.tuning.search.warm_start import Earlier, make_warm_start_events
from kdtune.tuning.trials.shared_inputs import SharedInputs


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that can be run."""

    sweep: SweepConfig  # complete
    spaces: dict[str, SearchSpace]  # by method, without what the sweep fixes
    shared_inputs: SharedInputs
    opening_event: SweepOpening  # if no array is built before the first trial
    left_out: Sequence[str] = ()  # sentences about students above the limits
    warm_start_events: Sequence[Earlier] = ()  # of a new sweep

    def opening_after(self, built: Iterable[CacheProgress]) -> SweepOpening:
        """Return the event that opens the sweep after arrays were built or found."""
        cache = self.opening_event.cache.model_copy(update={"prepared": tuple(built)})
        teacher, check = self.opening_event.teacher, self.shared_inputs.teacher_check
        if teacher is not None and check is not None:
            measured = check._asdict()
            if teacher.validation_accuracy is not None:  # maybe of another metric
                del measured["validation_accuracy"]
            teacher = teacher.model_copy(update=measured)
        return self.opening_event.model_copy(update={"cache": cache, "teacher": teacher})

    def configure_trial(self, cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
        """Return the complete settings of a trial.

        Args:
            cell: method and model.
            number: the trial's number in its cell.
            settings: values that its space decides; a strength is taken as the weight.
        """
        config = _build_trial_config(self.sweep, cell, number, settings)
        return self.shared_inputs.with_cache_plan(config)

    @cached_property
    def has_strengths(self) -> bool:
        """True if a space decides the strength of a term; else nothing is measured for them."""
        return any(space.has_strengths for space in self.spaces.values())

    def measure_scales(self, cell: Cell, settings: dict[str, Any]) -> dict[str, float]:
        """Return the scales of a trial's terms; none if all spaces decide weights.

        Args:
            cell: method and model.
            settings: values that its space decides.
        """
        if not (self.has_strengths or STRENGTHS.keys() & settings.keys()):
            return {}
        return self.shared_inputs.measure_scales(self.configure_trial(cell, 0, settings))

    def describe_unscaled_strengths(self) -> Iterator[str]:
        """Yield a line for each strength of a cell that is the weight itself."""
        for cell in self.sweep.cells() if self.has_strengths else ():
            settings = self.spaces[cell[0]].example_settings()
            if METHODS[cell[0]].uses_teacher:
                scales = self.measure_scales(cell, settings)
                for strength, weight in STRENGTHS.items():
                    if strength in settings and weight not in scales:
                        reason = "its term is not above 0 before training"
                        yield f"{'-'.join(cell)}: {strength} is taken as {weight}, since {reason}"

    def example_config(self, cell: Cell) -> TrainConfig:
        """Return the complete settings of a trial of a cell."""
        return self.configure_trial(cell, 0, self.spaces[cell[0]].example_settings())

    def example_configs(self) -> dict[str, TrainConfig]:
        """Return the settings of a trial of each student, in its first cell."""
        [(method, _), *_] = self.sweep.cells()
        return {student: self.example_config((method, student)) for student in self.sweep.students}


@dataclass(frozen=True)
class PreparedConfirmation:
    """A sweep that can be confirmed."""

    sweep: SweepConfig  # complete
    shared_inputs: SharedInputs
    test_split: Split
    test_groups: list[str] | None  # see `kdtune.data.folders.load_test_groups`
    opening_event: events.ConfirmStarted


def prepare_sweep(
    requested: SweepConfig,
    space_files: tuple[str, ...],
    earlier_opening: SweepOpening | None = None,
) -> PreparedSweep:
    """Check methods, models, spaces, data, teacher and settings as trials would meet them.

    Args:
        requested: the sweep's settings; its plug-ins are code that the user names now.
        space_files: files of search spaces, which may be code that the user names now, too.
        earlier_opening: the event that opened the same sweep before. What cannot have changed is
            taken from it or compared with it; no code runs because it is named there.
    """
    PLUGINS.load_files(requested.plugins)
    pack_plugins()  # says early which plug-in cannot be sent to trials
    confirms = requested.confirm or requested.until_decided
    inputs = _prepare_inputs(requested, earlier_opening, needs_test_images=confirms)
    sweep, shared_inputs, opening_fields, left_out = inputs
    spaces = prepare_spaces(sweep, space_files, earlier_opening)
    pick_device(sweep.settings.get("device", "auto"))
    for model in dict.fromkeys(sweep.models):
        configs = [
            _build_trial_config(sweep, (method, student), 0, settings)
            for student in sweep.students_of(model)
            for method, space in spaces.items()
            for _, settings in space.probe_points()
        ]
        shared_inputs.register_runs(model, configs)
    shared_inputs.plan_cache(earlier_opening)
    event_type = events.SweepStarted if earlier_opening is None else events.SweepResumed
    records = {method: record_space(space) for method, space in spaces.items()}
    cache = shared_inputs.cache_plan
    opening_event = event_type(spaces=records, cache=cache, **opening_fields)
    prepared = PreparedSweep(sweep, spaces, shared_inputs, opening_event, left_out)
    if earlier_opening is not None:  # the log has what its cells learned from earlier sweeps
        return prepared
    new_sweep = spaces, sweep.cells(), opening_event, prepared.configure_trial
    learned = (make_warm_start_events(path, *new_sweep) for path in sweep.warm_start)
    return replace(prepared, warm_start_events=tuple(chain.from_iterable(learned)))


def prepare_confirmation(
    requested: SweepConfig,
    earlier_opening: SweepOpening,
    earlier_confirmation: events.ConfirmStarted | None,
    candidate_configs: Iterable[Mapping[str, Any]],
    new_candidates: Iterable[events.Candidate],
) -> PreparedConfirmation:
    """Check data, teacher and test images, and plan what is cached for the runs.

    Args:
        requested: the sweep's settings.
        earlier_opening: the latest event that opened the sweep.
        earlier_confirmation: the latest event that opened its confirmation; None if none did.
        candidate_configs: complete settings of all candidates.
        new_candidates: those that the log lacks.
    """
    inputs = _prepare_inputs(requested, earlier_opening, needs_test_images=True)
    sweep, shared_inputs, opening_fields, _ = inputs
    decoded, groups = shared_inputs.decoded, load_test_groups(shared_inputs.decoded.data)
    if earlier_confirmation is not None:
        test_fingerprint = opening_fields["data"].test_fingerprint
        if earlier_confirmation.data.test_fingerprint != test_fingerprint:
            raise UserError("The test images are not those with which the confirmation started.")
        if earlier_confirmation.groups_sha256 and not groups:
            problem = f"{GROUPS_FILE}, are missing in the data"
            raise UserError(f"The groups of the test images, {problem}.")
    configs = [
        TrainConfig.parse({**config, **sweep.locations(config["teacher_model"] is not None)})
        for config in candidate_configs
    ]
    for config in configs:
        pick_device(config.device)
    for model in dict.fromkeys(config.model for config in configs):
        shared_inputs.register_runs(model, [c for c in configs if c.model == model])
    shared_inputs.plan_cache(earlier_opening)
    decoded.pixels("test")  # raises if one cannot be read, before anything is trained
    opening_event = events.ConfirmStarted(
        candidates=tuple(new_candidates),
        seeds=sweep.seeds,
        top=sweep.top,
        groups_sha256=hashlib.sha256("\n".join(groups).encode()).hexdigest() if groups else None,
        cache=shared_inputs.cache_plan,
        **opening_fields,
    )
    test_split = decoded.data.splits["test"]
    return PreparedConfirmation(sweep, shared_inputs, test_split, groups, opening_event)


def _prepare_inputs(
    requested: SweepConfig, earlier_opening: SweepOpening | None, needs_test_images: bool
) -> tuple[SweepConfig, SharedInputs, dict[str, Any], list[str]]:
    """Return complete settings, inputs of all trials, fields of the opening event, and lines."""
    require_tracker_packages(requested.trackers)
    requested.check_names_and_files()
    for model in requested.models:
        require_model(model)
    data, skipped_images = find_data(requested, check_room=True)
    skipped = tuple(events.UnreadableImage(**image) for image in skipped_images)
    data_summary = DataSummary(**data.summary(), skipped_images=skipped)
    teacher, teacher_summary = None, None
    image_size = requested.image_size or TrainConfig.model_fields["image_size"].default
    if requested.teacher is not None:
        layers, size = layer_names(requested.teacher_layers), requested.image_size
        teacher = load_teacher(requested.teacher, data.classes, size, layers=layers, say=say)
        teacher_summary = TeacherSummary(**describe_teacher(requested.teacher, size))
        image_size = teacher_summary.image_size or image_size
    if earlier_opening is not None:
        _require_same_inputs(earlier_opening, data_summary, teacher_summary)
        if earlier_opening.teacher is not None and teacher_summary is not None:
            path = {"path": teacher_summary.path}  # its accuracies were measured
            teacher_summary = earlier_opening.teacher.model_copy(update=path)
    if needs_test_images and data_summary.test_images < 2:
        raise UserError(
            "The data have no test images, on which a sweep is confirmed: add a folder test/, "
            "which the search never sees."
        )
    kept = SweepConfig.parse(earlier_opening.config).models if earlier_opening else ()
    requested, left_out = drop_large_students(requested, len(data.classes), image_size, kept)
    data_root = requested.data_root and str(Path(requested.data_root).expanduser().resolve())
    sweep = requested.model_copy(
        update={
            "image_size": image_size,
            "data": _require_utf8(absolute_data(requested.data)),
            "bit_depth": data.rendering.bit_depth,
            "data_root": data_root,
            "teacher": requested.teacher and _make_teacher_absolute(requested.teacher),
            "spaces": tuple(map(_make_absolute, requested.spaces)),
            "plugins": tuple(map(_make_absolute, requested.plugins)),
            "warm_start": tuple(map(_make_absolute, requested.warm_start)),
        }
    )
    models = [*sweep.models, *([teacher_summary.model] if teacher_summary else ())]
    plugins = PLUGINS.records(METHODS=sweep.all_methods, MODELS=models, DATA=[requested.data])
    opening_fields: dict[str, Any] = {
        "config": sweep.model_dump(mode="json"),
        "data": data_summary,
        "teacher": teacher_summary,
        "environment": describe_environment(),
        "plugins": plugins,
    }
    return sweep, SharedInputs(sweep, data, teacher), opening_fields, left_out


def _require_same_inputs(
    earlier_opening: SweepOpening, data: DataSummary, teacher: TeacherSummary | None
) -> None:
    if earlier_opening.data.fingerprint != data.fingerprint:
        raise UserError(
            "The data are not those with which the sweep started: "
            f"{earlier_opening.data.describe_counts()} images then (training, validation, test), "
            f"{data.describe_counts()} now, or other files; give the same with --data."
        )
    expected = earlier_opening.teacher
    if expected is not None and (teacher is None or expected.sha256 != teacher.sha256):
        raise UserError("The teacher is not the one with which the sweep started.")


def _build_trial_config(
    sweep: SweepConfig, cell: Cell, number: int, settings: dict[str, Any]
) -> TrainConfig:
    method, student = cell
    return TrainConfig.parse(
        {
            **sweep.settings_of(student),
            **strengths_to_weights(settings, loss_scales={}),
            "method": method,
            **sweep.locations(METHODS[method].uses_teacher),
            "teacher_layers": sweep.teacher_layers if METHODS[method].uses_teacher else None,
            "image_size": sweep.image_size,
            "epochs": sweep.epochs,
            "metric": sweep.metric,
            "skip_bad_images": sweep.skip_bad_images,
            "augment_seed": sweep.seed,
            "seed": derive_seed(sweep.seed, method, student, number),
        }
    )


def _make_absolute(path: str) -> str:
    """Return the absolute path of a file, since trials run in other folders; else the name."""
    expanded = Path(path).expanduser()
    if expanded.exists():
        path = os.path.abspath(expanded)  # a link stays: on another node it may lead elsewhere
    return _require_utf8(path)


def _require_utf8(path: str) -> str:
    if printable_path(path) != path:
        raise UserError(
            f"The path {printable_path(path)} is not plain UTF-8, which Ray cannot handle; "
            "rename it, or give a link to it."
        )
    return path


def _make_teacher_absolute(teacher: str) -> str:
    name, path = split_teacher(teacher)
    return f"{name}={_make_absolute(path)}" if name is not None else _make_absolute(path)
