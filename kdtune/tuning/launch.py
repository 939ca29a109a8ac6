"""Ray Tune as a sweep uses it: a session, slots for trials, and one run of its loop."""

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from kdtune.config import SweepConfig
from kdtune.errors import RunError, UserError
from kdtune.tuning.interrupts import deferred

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and JSON a trial: the log has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C has a meaning of ours
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nobody reads Tune's snapshots
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table even when it is silenced
}

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable that, if it is 0, has Ray listen to this machine alone, on any system."""


@contextmanager
def ray_session(verbose: bool = False) -> Iterator[None]:
    """Join the Ray session of this process, or have one of our own meanwhile.

    Args:
        verbose: have our own say all that Ray has to say, and not its errors alone.
    """
    if ray.is_initialized():
        yield
        return
    constants = ray._private.ray_constants  # the variable was read when ray was imported
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    os.environ[LOOPBACK] = "0"
    # What Ray ends for want of memory Tune takes for its own error; the system's way is safe.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    try:
        with deferred():  # while it starts, an interrupt can end in a crash
            try:
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=verbose,
                    logging_level="info" if verbose else "error",
                )
            except Exception as error:  # Ray raises plain ones
                raise RunError(f"Ray could not start: {error}") from error
        yield
    finally:
        ray.shutdown()
        constants.ENABLE_RAY_CLUSTER = before
        del os.environ[LOOPBACK]


@dataclass(frozen=True)
class Slots:
    """What a trial gets, and how many trials run at once.

    Attributes:
        cpus: of a trial, and its threads.
        gpus: of a trial, or a part of one.
        count: trials at once.
        alone: CPUs and GPUs of a trial that has a device to itself; None if every trial has.
    """

    cpus: int
    gpus: float
    count: int
    alone: tuple[int, float] | None = None


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
    count = max(1, min(by_gpu, all_cpus // cpus))
    largest = max(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"])
    whole = (cpus, float(math.ceil(gpus))) if gpus else (max(cpus, largest), 0.0)
    return Slots(cpus, gpus, count, whole if whole != (cpus, gpus) else None)


def run_trials(
    trainable: Any,
    search: Any,
    schedule: Any,
    slots: Slots,
    *watches: tune.Callback,
    verbose: bool = False,
) -> None:
    """Run trials until the search is finished.

    Args:
        trainable: a class of Tune's; processes go from one trial to the next.
        search: proposes trials.
        schedule: ends them.
        slots: where they run.
        watches: called at every turn of the loop.
        verbose: have Tune say on stderr all that it has to say.
    """
    os.environ.update(ENVIRONMENT)
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = str(int(verbose))

    def resources(settings: dict[str, Any]) -> tune.PlacementGroupFactory:
        whole = settings["alone"] and slots.alone
        cpus, gpus = whole or (slots.cpus, slots.gpus)
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus}])

    level = logging.NOTSET if verbose else logging.CRITICAL  # it lists trials that failed
    logging.getLogger("ray.tune.tune").setLevel(level)
    with tempfile.TemporaryDirectory(prefix="kdtune-", ignore_cleanup_errors=True) as unread:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"threads": slots.cpus},
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=schedule,
                num_samples=1_000_000,  # out of reach: the search says when it is finished
                max_concurrent_trials=slots.count,
                reuse_actors=True,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=unread,  # of what Tune writes nothing is read back
                callbacks=list(watches),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # The one that it takes in a notebook clears what others show there.
                progress_reporter=tune.CLIReporter(),
                verbose=2 * verbose,
            ),
        )
        with redirect_stdout(sys.stderr):  # results alone go to stdout
            tuner.fit()


def _trial_name(trial: Any) -> str:
    return trial.config["trial_id"]
