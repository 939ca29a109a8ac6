"""Ray Tune as a sweep uses it: a session, its nodes, and one run of its loop."""

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import ray
from ray import tune

from kdtune.config.sweep import SweepConfig, value_for_model
from kdtune.errors import RunError, UserError
from kdtune.runtime.console import say
from kdtune.runtime.signals import defer_interrupt
from kdtune.tuning.cluster.admission import NodeAdmission
from kdtune.tuning.cluster.join import LOCAL_ADDRESS, cluster_connection, resolve_address
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots

RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and JSON a trial: the log has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C has a meaning of ours
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nobody reads Tune's snapshots
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table even when it is silenced
}

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable that, if it is 0, has Ray listen to this machine alone, on any system."""


@contextmanager
def ray_session(
    address: str | None = None, verbose: bool = False, say: Callable[[str], None] = say
) -> Iterator[None]:
    """Join the Ray session of this process, or a cluster, or have one of our own meanwhile.

    Args:
        address: of a cluster; None for that of the environment, if there is one.
        verbose: have all said that Ray has to say, and not its errors alone.
        say: takes a line for a person.

    Raises:
        UserError: see `kdtune.tuning.cluster.join.joined`.
    """
    if ray.is_initialized():
        yield
        return
    if (cluster_address := resolve_address(address)) != LOCAL_ADDRESS:
        with cluster_connection(cluster_address, verbose, say):
            yield
        return
    constants = ray._private.ray_constants  # the variable was read when ray was imported
    previous, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    os.environ[LOOPBACK_VARIABLE] = "0"
    # What Ray ends for want of memory Tune takes for its own error; the system's way is safe.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    try:
        with defer_interrupt():  # while it starts, an interrupt can end in a crash
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
        constants.ENABLE_RAY_CLUSTER = previous
        del os.environ[LOOPBACK_VARIABLE]


class LivingNodes:
    """Ray's living nodes, looked at once a second at most.

    Args:
        admitted: of Ray's nodes, those that may get trials.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        filter_admitted: Callable[[list[Any]], list[Any]] = lambda nodes: nodes,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._filter_admitted, self._clock, self._refreshed_at = filter_admitted, clock, -math.inf
        self._nodes: list[Node] = []

    def __call__(self) -> list[Node]:
        """Those there are."""
        if (now := self._clock()) - self._refreshed_at >= 1:
            self._refreshed_at = now
            self._nodes = [
                Node(node["NodeID"], int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
                for node in self._filter_admitted(list_compute_nodes())
                if (resources := node["Resources"])
            ]
        return self._nodes


def list_compute_nodes() -> list[Any]:
    """Ray's living nodes that have a CPU, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def find_admitted_nodes(sweep: SweepConfig, say: Callable[[str], None]) -> LivingNodes:
    """Of a cluster, the nodes that have what trials need: see `kdtune.tuning.cluster.admission`.

    A session that this process has joined already is a cluster if it computes elsewhere, too.

    Raises:
        UserError: there is none.
    """
    if resolve_address(sweep.address) == LOCAL_ADDRESS:
        driver_node = ray.get_runtime_context().get_node_id()
        if all(node["NodeID"] == driver_node for node in list_compute_nodes()):
            return LivingNodes()
    admission = NodeAdmission(sweep, say)
    admission.wait_for_answers(list_compute_nodes)
    nodes = LivingNodes(admission)
    if len(nodes()) > 1 and sweep.storage is None:
        say(
            "without --storage, a trial whose node is lost goes on elsewhere only if the sweep's "
            "folder is on a disk that all nodes share; else it begins anew"
        )
    return nodes


def find_slots(
    sweep: SweepConfig,
    say: Callable[[str], None] = say,
    nodes: Callable[[], Sequence[Node]] | None = None,
) -> Slots:
    """With GPUs one trial a GPU and an equal share of its node's CPUs; without, one trial a CPU.

    Args:
        sweep: complete settings.
        say: takes a line for a person about nodes that come, go, or are left out.
        nodes: gives those that may get trials; those of `admitted_nodes` if None.

    Raises:
        UserError: the sweep asks for more than any node has, or no node has what trials need.
    """
    nodes = nodes or find_admitted_nodes(sweep, say)
    gpus = float(any(node.gpus for node in nodes()))
    requests = {
        model: ResourceRequest(
            value_for_model(sweep.cpus_per_trial, model, None),
            value_for_model(sweep.gpus_per_trial, model, gpus),
        )
        for model in dict.fromkeys(sweep.models)
    }
    slots = Slots(requests, nodes, sweep.max_concurrent)
    for model in slots.unplaceable_models():
        raise UserError(_describe_shortage(model, requests[model], nodes()))
    return slots


def _describe_shortage(model: str, request: ResourceRequest, nodes: Sequence[Node]) -> str:
    """Why no node has room for a trial."""
    gpus = max((node.gpus for node in nodes), default=0)
    if request.gpus > gpus:
        available = f"no node with more than {gpus} GPU{'s' * (gpus > 1)}" if gpus else "no GPU"
        return f"gpus_per_trial is {request.gpus:g} for {model}, but Ray has {available} here."
    with_gpus = f" beside {request.gpus:g} GPU{'s' * (request.gpus != 1)}" if request.gpus else ""
    cpus = max((node.cpus for node in nodes if node.gpus >= request.gpus), default=0)
    return (
        f"cpus_per_trial is {request.cpus or 1} for {model}, but Ray has no node with more than "
        f"{cpus} CPU{'s' * (cpus != 1)}{with_gpus} here."
    )


def run_trials(
    trainable: Any, searcher: Any, scheduler: Any, *callbacks: tune.Callback, verbose: bool = False
) -> None:
    """Run trials until the search is finished.

    Args:
        trainable: a class of Tune's; processes go from one trial to the next.
        search: proposes trials, each with its ``place`` (see
            `kdtune.tuning.cluster.placement.Allocation`),
            once there is room for it.
        schedule: ends them.
        watches: called at every turn of the loop.
        verbose: have Tune say on stderr all that it has to say.
    """
    os.environ.update(RAY_ENVIRONMENT)
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = str(int(verbose))

    level = logging.NOTSET if verbose else logging.CRITICAL  # it lists trials that failed
    logging.getLogger("ray.tune.tune").setLevel(level)
    with tempfile.TemporaryDirectory(prefix="kdtune-", ignore_cleanup_errors=True) as tune_folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, _placement_group),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=1_000_000,  # out of reach: the search says when it is finished
                max_concurrent_trials=1_000_000,  # the same; without one they start one by one
                reuse_actors=True,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=tune_folder,  # of what Tune writes nothing is read back
                callbacks=list(callbacks),
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


def _placement_group(ray_config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial needs, on the node that was meant for it if that is still there."""
    allocation = ray_config["allocation"]
    return tune.PlacementGroupFactory(
        [{"CPU": allocation["cpus"], "GPU": allocation["gpus"]}],
        strategy="STRICT_PACK",
        _soft_target_node_id=allocation["node"],
    )
