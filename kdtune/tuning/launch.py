"""Ray Tune as a sweep uses it: a session, slots for trials, and one run of its loop."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.logger import TBXLoggerCallback

from kdtune.config import SweepConfig
from kdtune.errors import UserError
from kdtune.tuning.schedule import Schedule
from kdtune.tuning.search import Search

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and JSON a trial: the log has it all
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table even when it is silenced
}


@contextmanager
def ray_session() -> Iterator[None]:
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
class Slots:
    """What a trial gets, and how many trials run at once."""

    cpus: int
    gpus: float
    count: int


def find_slots(sweep: SweepConfig) -> Slots:
    """With GPUs one trial a GPU and an equal share of the CPUs; without, one trial a CPU.

    Raises:
        UserError: the sweep asks for more than Ray's session has.
    """
    resources = ray.cluster_resources()
    all_cpus, all_gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    gpus = sweep.gpus_per_trial if sweep.gpus_per_trial is not None else float(all_gpus > 0)
    if gpus > all_gpus:
        raise UserError(f"gpus_per_trial is {gpus:g}, but Ray has {all_gpus:g} GPUs here.")
    by_gpu = int(all_gpus / gpus) if gpus else all_cpus
    cpus = sweep.cpus_per_trial or max(1, all_cpus // max(1, by_gpu))
    if cpus > all_cpus:
        raise UserError(f"cpus_per_trial is {cpus}, but Ray has {all_cpus} CPUs here.")
    return Slots(cpus, gpus, max(1, min(by_gpu, all_cpus // cpus)))


def run_trials(
    trainable: Any, search: Search, schedule: Schedule, slots: Slots, folder: Path
) -> None:
    """Run trials until the search is finished, or until it is interrupted.

    Args:
        trainable: a class of Tune's; processes go from one trial to the next.
        search: proposes trials.
        schedule: ends them.
        slots: where they run.
        folder: for Ray's own files.
    """
    os.environ.update(ENVIRONMENT)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": slots.cpus, "gpu": slots.gpus}),
        param_space={"threads": slots.cpus},
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=schedule,
            num_samples=1_000_000,  # out of reach: the search says when it is finished
            max_concurrent_trials=slots.count,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(folder.resolve()),
            callbacks=[TBXLoggerCallback()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()


def _trial_name(trial: Any) -> str:
    return trial.config["trial_id"]
