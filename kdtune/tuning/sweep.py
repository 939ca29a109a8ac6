"""Launch a sweep: check everything, run every cell's trials on Ray, make the tables."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.logger import TBXLoggerCallback

from kdtune.config import SweepConfig, TrainConfig
from kdtune.data.images import find_images
from kdtune.errors import RunError, UserError
from kdtune.export import write_best
from kdtune.files import replacing, write_text, write_yaml
from kdtune.methods import METHODS, check_method
from kdtune.models import build_model, check_model, feature_shapes
from kdtune.network import pick_device
from kdtune.reports.tables import epochs_table, leaderboard_table, trials_table
from kdtune.results import RESULTS, Event, Log, SweepFolder
from kdtune.run_files import say
from kdtune.seeds import derive_seed
from kdtune.teacher import load_teacher, teacher_summary
from kdtune.tuning.progress import Progress
from kdtune.tuning.schedule import Rungs, Schedule
from kdtune.tuning.search import Cell, Search, Studies
from kdtune.tuning.shared import Shared
from kdtune.tuning.space import Space, load_space, load_spaces
from kdtune.tuning.trainable import train_trial

PACKAGES = ("kdtune", "torch", "torchvision", "ray", "optuna", "numpy", "pillow")

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and JSON a trial: the log has it all
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table even when it is silenced
    # A process goes to the next trial when the thread of the last one has ended; if that takes
    # longer than this, Tune fails the next trial.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
}


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
    studies = Studies(sweep.cells(), spaces, sweep.seed)
    rungs = Rungs(sweep.cells(), sweep.epochs, sweep.grace_period, sweep.reduction_factor)
    progress = Progress(len(sweep.cells()) * sweep.trials)
    with _ray():
        slots = _slots(sweep, ray.cluster_resources())
        opened["views"]["prepared"] = shared.prepare()
        folder.create()
        write_yaml(folder.sweep, opened["config"])
        write_text(folder.environment, json.dumps(opened["environment"], indent=2) + "\n")
        try:
            with Log(folder.log, [studies.fold, rungs.fold, progress.fold]) as log:
                log.append(opened)
                _run_trials(sweep, slots, folder, log, studies, rungs, shared)
                if saved := progress.saved():
                    say(saved)
        finally:
            write_tables(folder)
    if progress.ended < progress.total:  # Ray ends quietly when it is interrupted
        raise KeyboardInterrupt(
            f"{progress.ended} of {progress.total} trials ended; "
            f"the log and the tables of these are in {folder.path}"
        )
    if not rungs.last:
        reasons = (event["reason"] for event in folder.events() if event["event"] == "ended")
        raise RunError(
            f"No trial of {folder.path} finished an epoch; the first says: {next(reasons)}"
        )
    return folder


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
        "views": {**asdict(shared.budget), "prepared": []},
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


@contextmanager
def _ray() -> Iterator[None]:
    """Join the Ray session of this process, or have one of our own meanwhile."""
    if ray.is_initialized():
        yield
        return
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Slots:
    """What a trial gets, and how many trials run at once."""

    cpus: int
    gpus: float
    count: int


def _slots(sweep: SweepConfig, resources: dict[str, float]) -> _Slots:
    """With GPUs one trial a GPU and an equal share of the CPUs; without, one trial a CPU."""
    all_cpus, all_gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    gpus = sweep.gpus_per_trial if sweep.gpus_per_trial is not None else float(all_gpus > 0)
    if gpus > all_gpus:
        raise UserError(f"gpus_per_trial is {gpus:g}, but Ray has {all_gpus:g} GPUs here.")
    by_gpu = int(all_gpus / gpus) if gpus else all_cpus
    cpus = sweep.cpus_per_trial or max(1, all_cpus // max(1, by_gpu))
    if cpus > all_cpus:
        raise UserError(f"cpus_per_trial is {cpus}, but Ray has {all_cpus} CPUs here.")
    return _Slots(cpus, gpus, max(1, min(by_gpu, all_cpus // cpus)))


def _run_trials(
    sweep: SweepConfig,
    slots: _Slots,
    folder: SweepFolder,
    log: Log,
    studies: Studies,
    rungs: Rungs,
    shared: Shared,
) -> None:
    os.environ.update(TUNE_ENVIRONMENT)

    def configure(cell: Cell, number: int, settings: dict[str, Any]) -> dict[str, Any]:
        return shared.settings(_trial_config(sweep, cell, number, settings)).model_dump()

    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train_trial, askers=shared.askers),
            {"cpu": slots.cpus, "gpu": slots.gpus},
        ),
        param_space={"threads": slots.cpus},
        tune_config=tune.TuneConfig(
            search_alg=Search(studies, sweep.trials, configure, log.append),
            scheduler=Schedule(rungs, log.append),
            num_samples=1_000_000,  # out of reach: the search says when it is finished
            max_concurrent_trials=slots.count,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(folder.ray.resolve()),
            callbacks=[TBXLoggerCallback()],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial_name(trial: Any) -> str:
    return trial.config["trial_id"]


def write_tables(folder: SweepFolder) -> None:
    """Make all that follows from the log: tables, and the best configuration of each cell."""
    events = folder.events()
    trials, epochs = trials_table(events), epochs_table(events)
    leaderboard = leaderboard_table(trials)
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
