"""Launch a sweep: check everything, run every cell's trials on Ray, make the tables."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray import tune

from kdtune.config import SweepConfig, TrainConfig, duration
from kdtune.data.images import find_images
from kdtune.errors import RunError, UserError
from kdtune.export import write_best
from kdtune.files import replacing, write_text, write_yaml
from kdtune.methods import METHODS, check_method
from kdtune.models import build_model, check_model, feature_shapes
from kdtune.network import pick_device
from kdtune.reports.rungs import rungs_table
from kdtune.reports.tables import epochs_table, leaderboard_table, trials_table
from kdtune.results import RESULTS, Cell, Event, Log, SweepFolder
from kdtune.run_files import say
from kdtune.seeds import derive_seed
from kdtune.teacher import load_teacher, teacher_summary
from kdtune.tuning.budget import Budget
from kdtune.tuning.launch import Slots, find_slots, ray_session, run_trials
from kdtune.tuning.progress import Progress
from kdtune.tuning.samplers import describe_sampler
from kdtune.tuning.schedule import Schedule
from kdtune.tuning.search import Search
from kdtune.tuning.shared import Shared
from kdtune.tuning.space import Space, load_space, load_spaces
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.studies import Studies
from kdtune.tuning.trainable import TrialProcess
from kdtune.tuning.warm_start import warm_start

PACKAGES = ("kdtune", "torch", "torchvision", "ray", "optuna", "numpy", "pillow")


def run_sweep(config: Mapping[str, Any]) -> SweepFolder:
    """Run a sweep from beginning to end.

    Everything is checked before the folder is made: data, teacher, methods, models, spaces,
    settings; every training and validation image is decoded, and the teacher's targets of what
    the first epoch sees are computed, so that all trials find them.

    Args:
        config: settings of `SweepConfig`.

    Returns:
        The sweep's folder, with its log, its tables and the best configurations.

    Raises:
        UserError: something the user gave is no good; nothing was written.
        RunError: no trial finished an epoch.
        KeyboardInterrupt: the sweep was interrupted; its tables are of what had ended.
    """
    given = SweepConfig.check(config)
    folder = SweepFolder(RESULTS / given.name)
    folder.refuse_existing()
    sweep, spaces, opened, shared = _check(given)
    studies = Studies(sweep, spaces)
    stopping = Stopping(sweep.scheduler, sweep.epochs, sweep.grace_period, sweep.reduction_factor)
    budget = Budget(sweep)
    progress = Progress(sweep.trials and sweep.trials * len(sweep.cells()))

    def configure(cell: Cell, number: int, settings: dict[str, Any]) -> TrainConfig:
        return shared.settings(_trial_config(sweep, cell, number, settings))

    learned = [
        event
        for path in sweep.warm_start
        for event in warm_start(path, spaces, sweep.cells(), opened, configure)
    ]
    with ray_session():
        slots = find_slots(sweep)
        for line in _plan(sweep, slots, stopping):
            say(line)
        for event in learned:
            say(f"{event['method']}-{event['model']}: {event['reason']}")
        opened["views"]["prepared"] = shared.prepare()
        folder.create()
        write_yaml(folder.sweep, opened["config"])
        write_text(folder.environment, json.dumps(opened["environment"], indent=2) + "\n")
        folds = [studies.fold, stopping.fold, budget.fold, progress.fold]
        try:
            with Log(folder.log, folds) as log:
                for event in (opened, *learned):
                    log.append(event)
                run_trials(
                    tune.with_parameters(TrialProcess, askers=shared.askers),
                    Search(studies, budget, configure, log.append),
                    Schedule(sweep.epochs, stopping, budget, log.append),
                    slots,
                    folder.ray,
                )
        finally:
            write_tables(folder)
    if not budget.finished:  # Ray ends quietly when it is interrupted
        raise KeyboardInterrupt(
            f"{progress.ended} trials ended; the log and the tables of these are in {folder.path}"
        )
    events = folder.events()
    if not any(event["event"] == "epoch" for event in events):
        reasons = (event["reason"] for event in events if event["event"] == "ended")
        raise RunError(
            f"No trial of {folder.path} finished an epoch; the first says: {next(reasons)}"
        )
    if saved := progress.saved():
        say(saved)
    return folder


def _plan(sweep: SweepConfig, slots: Slots, stopping: Stopping) -> Iterator[str]:
    """Say what is going to happen."""
    cells = sweep.cells()
    budget = [f"{sweep.trials} trials each"] if sweep.trials is not None else []
    if sweep.epochs_total is not None:
        budget.append(f"{sweep.epochs_total} epochs in all")
    if sweep.time_budget is not None:
        budget.append(f"{duration(sweep.time_budget)} of time")
    several = len(cells) > 1
    yield (
        f"{len(cells)} cell{'s' * several}, {', '.join(budget)}, of every trial at most "
        f"{sweep.epochs} epochs{f'; every cell gets the same {sweep.equal}' * several}"
    )
    proposer = describe_sampler(sweep.sampler)
    yield f"{proposer} proposes; {stopping.describe()}; {slots.count} trials at once"


def _check(sweep: SweepConfig) -> tuple[SweepConfig, dict[str, Space], Event, Shared]:
    """Check all that a sweep needs, and fill in what follows from data and teacher.

    Returns:
        The complete settings, the search space of each method, the log's first event, and what
        the trials have in common.
    """
    data = find_images(sweep.data)
    teacher, summary = None, None
    image_size = sweep.image_size or TrainConfig.model_fields["image_size"].default
    if sweep.teacher is not None:
        teacher = load_teacher(sweep.teacher, data.classes, sweep.image_size)
        summary = teacher_summary(sweep.teacher)
        image_size = summary["image_size"] or image_size
    sweep = sweep.model_copy(
        update={
            "image_size": image_size,
            "data": _absolute(sweep.data),
            "teacher": _absolute(sweep.teacher) if sweep.teacher else None,
            "spaces": tuple(map(_absolute, sweep.spaces)),
            "warm_start": tuple(map(_absolute, sweep.warm_start)),
        }
    )
    shared = Shared(sweep, data, teacher)
    spaces = _check_cells(sweep, shared)
    shared.plan()
    opened = {
        "event": "sweep",
        "config": sweep.model_dump(mode="json"),
        "data": data.summary(),
        "teacher": summary,
        "views": {**asdict(shared.kept), "prepared": []},
        "environment": _environment(),
    }
    return sweep, spaces, opened, shared


def _check_cells(sweep: SweepConfig, shared: Shared) -> dict[str, Space]:
    """Check methods, models, spaces and settings as trials would meet them.

    Returns:
        The search space of each method, without what the sweep fixes.
    """
    spaces = load_spaces(sweep.spaces)
    for method, model in sweep.cells():
        check_method(method)
        check_model(model)
        if method not in spaces:
            raise UserError(f"There is no search space for '{method}'; give one with --space.")
        if METHODS[method].uses_teacher and shared.teacher is None:
            raise UserError(
                f"The method '{method}' learns from a teacher: give --teacher "
                "(make one with 'kdtune teacher'), or --methods student --no-baselines."
            )
    for file in sweep.spaces:
        if (own := load_space(Path(file)).method) not in {method for method, _ in sweep.cells()}:
            raise UserError(f"The space {file} is for '{own}', which is not in this sweep.")
    fixed = {method: spaces[method].fix(sweep.settings) for method, _ in sweep.cells()}
    pick_device(sweep.settings.get("device", "auto"))
    image_size = shared.views.image_size
    for model in dict.fromkeys(sweep.models):
        student = build_model(model, len(shared.views.data.classes), image_size)
        shapes = feature_shapes(student, image_size)
        for method in fixed:
            for _, settings in fixed[method].probe():
                shared.ask(_trial_config(sweep, (method, model), 0, settings), shapes)
    return fixed


def _absolute(path: str) -> str:
    """Trials run in folders of their own; the name of a built-in data set stays as it is."""
    expanded = Path(path).expanduser()
    return str(expanded.resolve()) if expanded.exists() else path


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
            "data_dir": sweep.data,
            "image_size": sweep.image_size,
            "epochs": sweep.epochs,
            "cache_gb": sweep.cache_gb,
            "augment_seed": sweep.seed,
            "seed": derive_seed(sweep.seed, method, model, number),
        }
    )


def write_tables(folder: SweepFolder) -> None:
    """Make all that follows from the log: tables, and the best configuration of each cell."""
    events = folder.events()
    trials, epochs = trials_table(events), epochs_table(events)
    leaderboard = leaderboard_table(trials)
    write_text(folder.table("rungs", ".csv"), rungs_table(events).to_csv(index=False))
    for name, table in {"trials": trials, "epochs": epochs}.items():
        with replacing(folder.table(name, ".parquet")) as temporary:
            table.to_parquet(temporary)
        write_text(folder.table(name, ".csv"), table.to_csv(index=False))
    write_text(folder.leaderboard, leaderboard.to_csv(index=False))
    write_best(folder, leaderboard, trials)


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in PACKAGES},
    }
