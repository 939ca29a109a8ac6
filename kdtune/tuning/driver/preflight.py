"""Checks all that a sweep needs before anything is trained, and fills in what follows from it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig, settings_for
from kdtune.data.folders import GROUPS, groups_of_test
from kdtune.data.splits import Split
from kdtune.errors import UserError, nearest
from kdtune.log.distributions import read_distributions
from kdtune.log.events import Cell, Event
from kdtune.methods import METHODS, check_method
from kdtune.models import MODELS, build_model, check_model, feature_shapes, look, stage_shapes
from kdtune.models.on_device import pick_device
from kdtune.plugins import load_plugins, records
from kdtune.runtime.console import shown
from kdtune.runtime.environment import environment
from kdtune.runtime.seeds import derive_seed
from kdtune.trackers.registry import check_trackers
from kdtune.training.inputs import find_data
from kdtune.training.teacher import load_teacher, teacher_summary
from kdtune.tuning.search.space import (
    Space,
    distributions_of,
    load_space,
    load_spaces,
    plugin_spaces,
)
from kdtune.tuning.search.warm_start import warm_start
from kdtune.tuning.trials.shared_inputs import Shared

NO_TEST = (
    "The data have no test images, on which a sweep is confirmed: add a folder test/, which the "
    "search never sees."
)


@dataclass
class Checked:
    """A sweep that can be run.

    Attributes:
        sweep: complete settings.
        spaces: the search space of each method, without what the sweep fixes.
        shared: what the trials have in common.
        opened: the event that opens it; what it lacks is which views were built or found.
    """

    sweep: SweepConfig
    spaces: dict[str, Space]
    shared: Shared
    opened: Event

    def configure(self, cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
        """Complete settings of a trial, from what its space, the sweep and the cache decide."""
        return self.shared.settings(_trial_config(self.sweep, cell, number, settings))

    def examples(self) -> dict[str, TrainConfig]:
        """Settings of a trial of each student: the first ones of its first cell."""
        found: dict[str, TrainConfig] = {}
        for method, model in self.sweep.cells():
            if model not in found:
                _, settings = self.spaces[method].probe()[0]
                found[model] = self.configure((method, model), 0, settings)
        return found

    def learned(self) -> list[Event]:
        """What the sweep begins with that is to know of earlier ones."""
        cells = self.sweep.cells()
        return [
            event
            for path in self.sweep.warm_start
            for event in warm_start(path, self.spaces, cells, self.opened, self.configure)
        ]


def check_sweep(
    given: SweepConfig, files: tuple[str, ...], earlier: Event | None = None
) -> Checked:
    """Check methods, models, spaces, data, teacher and settings as trials would meet them.

    Args:
        given: the sweep's settings; its plug-ins are code that the user names now.
        files: of spaces; they are, too.
        earlier: the event that opened the same sweep before: what cannot have changed meanwhile is
            taken from it, or compared with it. No code runs because it is named there.

    Raises:
        UserError: something is no good, or is not what it was.
    """
    load_plugins(given.plugins)
    sweep, shared, about = _check_inputs(given, earlier)
    if sweep.confirm and about["data"]["test_images"] < 2:
        raise UserError(NO_TEST)
    spaces = _check_cells(sweep, shared, files, earlier)
    shared.plan(earlier)
    opened = {
        "event": "sweep" if earlier is None else "resumed",
        "config": sweep.model_dump(mode="json"),
        "spaces": {method: _plain(space) for method, space in spaces.items()},
        **about,
        "views": {**asdict(shared.kept), "prepared": []},
    }
    return Checked(sweep, spaces, shared, opened)


def _check_inputs(
    given: SweepConfig, earlier: Event | None
) -> tuple[SweepConfig, Shared, dict[str, Any]]:
    """Check data and teacher.

    Returns:
        Complete settings, what trials have in common, and what the log keeps of all this.
    """
    check_trackers(given.track)
    for method, model in given.cells():
        check_method(method)
        check_model(model)
    given.check_settings()
    for name in ("cpus_per_trial", "gpus_per_trial"):
        if isinstance(needs := getattr(given, name), Mapping):
            for model in needs.keys() - set(given.models):
                raise UserError(
                    f"{name} names '{model}', which is no student of this sweep; "
                    f"{nearest(model, given.models)}"
                )
    data, bad = find_data(given.source, given.skip_bad_images, given.cache_gb)
    teacher, summary = None, None
    image_size = given.image_size or TrainConfig.model_fields["image_size"].default
    if given.teacher is not None:
        teacher = load_teacher(given.teacher, data.classes, given.image_size)
        summary = teacher_summary(given.teacher)
        image_size = summary["image_size"] or image_size
    sweep = given.model_copy(
        update={
            "image_size": image_size,
            "data": _absolute(given.data),
            "data_root": given.data_root and str(Path(given.data_root).expanduser().resolve()),
            "teacher": _absolute(given.teacher) if given.teacher else None,
            "spaces": tuple(map(_absolute, given.spaces)),
            "plugins": tuple(map(_absolute, given.plugins)),
            "warm_start": tuple(map(_absolute, given.warm_start)),
        }
    )
    about: dict[str, Any] = {
        "data": {**data.summary(), "skipped_images": bad},
        "teacher": summary,
        "environment": environment(),
        "plugins": records(
            METHODS=[method for method, _ in sweep.cells()],
            MODELS=[*sweep.models, *([summary["model"]] if summary else ())],
            DATA=[given.data],
        ),
    }
    if earlier is not None:
        _compare(earlier, about["data"], summary)
    return sweep, Shared(sweep, data, teacher), about


@dataclass
class Confirmable:
    """A sweep that can be confirmed.

    Attributes:
        sweep: complete settings.
        shared: what the runs have in common.
        test: the test images.
        groups: of each, or None: see `kdtune.data.folders.groups_of_test`.
        opened: the event that opens it; what it lacks are candidates.
    """

    sweep: SweepConfig
    shared: Shared
    test: Split
    groups: list[str] | None
    opened: Event


def check_confirmation(
    given: SweepConfig,
    earlier: Event,
    before: Event | None,
    settings: Sequence[Mapping[str, Any]],
) -> Confirmable:
    """Check data, teacher and test images, and decide what is kept for the runs.

    Args:
        given: the sweep's settings.
        earlier: the event that opened the sweep last.
        before: the event that opened its confirmation last, if it has begun.
        settings: complete settings of the candidates.

    Raises:
        UserError: something is no good, or is not what it was.
    """
    sweep, shared, about = _check_inputs(given, earlier)
    views = shared.views
    if views.data.test is None or len(views.data.test) < 2:
        raise UserError(NO_TEST)
    groups = groups_of_test(views.data)
    about["groups"] = groups and hashlib.sha256("\n".join(groups).encode()).hexdigest()
    if before is not None:
        if before["data"].get("test_fingerprint") != about["data"]["test_fingerprint"]:
            raise UserError("The test images are not those that the confirmation began with.")
        if before.get("groups") and not groups:
            raise UserError(f"The groups of the test images, {GROUPS}, are missing in the data.")
    views.pixels("test")  # says which cannot be read, before anything is trained
    for own in settings:
        config = TrainConfig.check({**own, **sweep.source._asdict()})
        pick_device(config.device)
        student = build_model(config.model, len(views.data.classes), config.image_size)
        shared.ask(config, feature_shapes(student, config.image_size))
    shared.plan(earlier)
    opened = {
        "event": "confirm",
        "config": sweep.model_dump(mode="json"),
        **about,
        "views": {**asdict(shared.kept), "prepared": []},
    }
    return Confirmable(sweep, shared, views.data.test, groups, opened)


def _compare(earlier: Event, data: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> None:
    then = earlier["data"]
    if then["fingerprint"] != data["fingerprint"]:
        counts = ("train_images", "validation_images", "test_images")
        before, now = ("+".join(str(about[c]) for c in counts) for about in (then, data))
        raise UserError(
            f"The data are not those that the sweep began with: {before} images then "
            f"(training, validation, test), {now} now, or other files; give the same with --data."
        )
    sums = [about["sha256"] if about else None for about in (earlier["teacher"], teacher)]
    if sums[0] is not None and sums[0] != sums[1]:
        raise UserError("The teacher is not the one that the sweep began with.")


def _check_cells(
    sweep: SweepConfig, shared: Shared, files: tuple[str, ...], earlier: Event | None
) -> dict[str, Space]:
    """Check methods, models, spaces and settings as trials would meet them.

    Returns:
        The search space of each method, without what the sweep fixes.
    """
    methods = dict.fromkeys(method for method, _ in sweep.cells())
    named = {(space := load_space(Path(file))).method: space for file in files}
    for method, space in named.items():
        if method not in methods:
            raise UserError(
                f"The space {space.path} is for '{method}', which is not in this sweep."
            )
    for method in methods:
        if METHODS[method].uses_teacher and shared.teacher is None:
            raise UserError(
                f"The method '{method}' learns from a teacher: give --teacher "
                "(make one with 'kdtune teacher'), or --methods student --no-baselines."
            )
    spaces, fixed = {**load_spaces(), **named}, {}
    for method in methods:
        settings = settings_for(method, sweep.settings)
        if earlier is not None and (kept := earlier["spaces"].get(method)) is not None:
            fixed[method] = _kept_space(method, kept, named.get(method), settings)
        elif method in spaces:
            fixed[method] = spaces[method].fix(settings)
        else:
            raise UserError(f"There is no search space for '{method}'; give one with --space.")
    pick_device(sweep.settings.get("device", "auto"))
    image_size = shared.views.image_size
    for model in dict.fromkeys(sweep.models):
        with MODELS.blamed(model):
            student = build_model(model, len(shared.views.data.classes), image_size)
            outputs = look(student, torch.zeros(2, 3, image_size, image_size))
            shapes = stage_shapes(outputs[1])
        for method in fixed:
            configs = [
                _trial_config(sweep, (method, model), 0, settings)
                for _, settings in fixed[method].probe()
            ]
            with METHODS.blamed(method):
                shared.rehearse(configs[0], outputs)
                for config in configs:
                    shared.ask(config, shapes)
    return fixed


def _plain(space: Space) -> dict[str, Any]:
    """A space as the log keeps it; of a function only its file's name."""
    return {
        "path": str(space.path),
        "function": space.define is not None,
        "distributions": distributions_of(space),
        "constants": space.constants,
        "start": space.start,
    }


def _kept_space(
    method: str, kept: Mapping[str, Any], named: Space | None, settings: dict[str, Any]
) -> Space:
    """A space of the log; a function comes from a file that the user names again."""
    if kept["function"]:
        named = named or plugin_spaces().get(method)
        if named is None or named.define is None:
            raise UserError(
                f"The space of '{method}' is a function, and code that a log names is not run: if "
                f"you trust it, give --space {kept['path']}."
            )
        return named.fix(settings)
    if named is not None:
        raise UserError(f"The sweep has a space for '{method}', and keeps it; leave --space out.")
    return Space(
        method=method,
        distributions=read_distributions(kept["distributions"]),
        constants=kept["constants"],
        define=None,
        start=kept["start"],
        source="",
        path=Path(kept["path"]),
    )


def _trial_config(
    sweep: SweepConfig, cell: Cell, number: int, settings: dict[str, Any]
) -> TrainConfig:
    """Complete settings of a trial, from what its space and the sweep decide."""
    method, model = cell
    return TrainConfig.check(
        {
            **settings,
            "method": method,
            "model": model,
            "teacher_model": sweep.teacher if METHODS[method].uses_teacher else None,
            **sweep.source._asdict(),
            "image_size": sweep.image_size,
            "epochs": sweep.epochs,
            "cache_gb": sweep.cache_gb,
            "skip_bad_images": sweep.skip_bad_images,
            "augment_seed": sweep.seed,
            "seed": derive_seed(sweep.seed, method, model, number),
        }
    )


def _absolute(path: str) -> str:
    """Trials run in folders of their own; the name of a data set stays as it is.

    Links stay links: on another node they may lead elsewhere.
    """
    expanded = Path(path).expanduser()
    path = os.path.abspath(expanded) if expanded.exists() else path
    if shown(path) != path:
        raise UserError(
            f"The path {shown(path)} is not plain UTF-8, which Ray cannot take; rename it, or "
            "give a link to it."
        )
    return path
