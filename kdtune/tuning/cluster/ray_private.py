"""Private and undocumented parts of Ray that kdtune relies on, each behind one name."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution
from ray import tune
from ray._private import ray_constants, services
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from kdtune.tuning.cluster.placement import Allocation

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray session that starts here listen on the loopback interface, not on all of them.

    Ray's processes read the variable; this process read it when it imported ray.
    """
    previous, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ[LOOPBACK_VARIABLE] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = previous
        del os.environ[LOOPBACK_VARIABLE]


@contextmanager
def own_process_group() -> Iterator[None]:
    """Let a Ray session that starts here have a process group of its own.

    A signal to this process's group, such as that of ``timeout``, would end Ray before the trials
    can finish their epochs. Elsewhere than on Linux, Ray needs the group to end with this process.
    """
    popen = services.ConsolePopen
    if sys.platform == "linux":
        services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def disable_memory_monitor() -> None:
    """Keep Ray from killing trials when memory is short: Tune takes that for its own error."""
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")


def is_ray_node() -> bool:
    """Return True if a Ray node runs on this machine; `ray.init` waits a minute for one."""
    return bool(services._find_address_from_flag("--gcs-address"))


@contextmanager
def configure_tune(verbose: bool) -> Iterator[None]:
    """Switch off the files, the output and the signal handler of Tune in this process, for now.

    A Tuner of the user's own, later in the same process, has Tune's defaults again.
    """
    variables = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and JSON per trial: the log has it all
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # snapshots of Tune's are never read
        "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table even when it is silenced
        "TUNE_PRINT_ALL_TRIAL_ERRORS": str(int(verbose)),
    }
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ |= variables
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ |= before


def trial_resources(allocation: Allocation) -> tune.PlacementGroupFactory:
    """Return the resources of a trial, on its node if that is still alive, else anywhere."""
    bundles = [{"CPU": allocation.cpus, "GPU": allocation.gpus}]
    node = {"_soft_target_node_id": allocation.node}
    return tune.PlacementGroupFactory(bundles, strategy="STRICT_PACK", **node)


class NotSaved:
    """A base of what Tune pickles in its snapshots, which are never read back."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}


class TuneOrderScheduler(FIFOScheduler):
    """A scheduler that leaves the order of trials to Tune; `FIFOScheduler` goes over them all."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return None: Tune starts pending trials by itself."""


def to_optuna(domain: Domain) -> BaseDistribution:
    """Return the Optuna distribution of a range of Tune's; raise `ValueError` if there is none."""
    distribution: BaseDistribution = OptunaSearch.convert_search_space({"x": domain})["x"]
    return distribution
