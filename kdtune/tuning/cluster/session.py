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

from kdtune.config.sweep import SweepConfig, of_model
from kdtune.errors import RunError, UserError
from kdtune.runtime.console import say
from kdtune.runtime.signals import deferred
from kdtune.tuning.cluster.admission import Admission
from kdtune.tuning.cluster.join import LOCAL, joined, wanted_address
from kdtune.tuning.cluster.placement import Need, Node, Slots

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV and JSON a trial: the log has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C has a meaning of ours
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nobody reads Tune's snapshots
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table even when it is silenced
}

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
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
    if (wanted := wanted_address(address)) != LOCAL:
        with joined(wanted, verbose, say):
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


class LivingNodes:
    """Ray's living nodes, looked at once a second at most.

    Args:
        admitted: of Ray's nodes, those that may get trials.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        admitted: Callable[[list[Any]], list[Any]] = lambda nodes: nodes,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._admitted, self._clock, self._looked = admitted, clock, -math.inf
        self._nodes: list[Node] = []

    def __call__(self) -> list[Node]:
        """Those there are."""
        if (now := self._clock()) - self._looked >= 1:
            self._looked = now
            self._nodes = [
                Node(node["NodeID"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))
                for node in self._admitted(computing_nodes())
                if (has := node["Resources"])
            ]
        return self._nodes


def computing_nodes() -> list[Any]:
    """Ray's living nodes that have a CPU, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def admitted_nodes(sweep: SweepConfig, say: Callable[[str], None]) -> LivingNodes:
    """Of a cluster, the nodes that have what trials need: see `kdtune.tuning.cluster.admission`.

    A session that this process has joined already is a cluster if it computes elsewhere, too.

    Raises:
        UserError: there is none.
    """
    if wanted_address(sweep.address) == LOCAL:
        here = ray.get_runtime_context().get_node_id()
        if all(node["NodeID"] == here for node in computing_nodes()):
            return LivingNodes()
    admission = Admission(sweep, say)
    admission.wait(computing_nodes)
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
    nodes = nodes or admitted_nodes(sweep, say)
    gpus = float(any(node.gpus for node in nodes()))
    needs = {
        model: Need(
            of_model(sweep.cpus_per_trial, model, None),
            of_model(sweep.gpus_per_trial, model, gpus),
        )
        for model in dict.fromkeys(sweep.models)
    }
    slots = Slots(needs, nodes, sweep.concurrent)
    for model in slots.lacking():
        raise UserError(_too_much(model, needs[model], nodes()))
    return slots


def _too_much(model: str, need: Need, nodes: Sequence[Node]) -> str:
    """Why no node has room for a trial."""
    gpus = max((node.gpus for node in nodes), default=0)
    if need.gpus > gpus:
        there = f"no node with more than {gpus} GPU{'s' * (gpus > 1)}" if gpus else "no GPU"
        return f"gpus_per_trial is {need.gpus:g} for {model}, but Ray has {there} here."
    beside = f" beside {need.gpus:g} GPU{'s' * (need.gpus != 1)}" if need.gpus else ""
    cpus = max((node.cpus for node in nodes if node.gpus >= need.gpus), default=0)
    return (
        f"cpus_per_trial is {need.cpus or 1} for {model}, but Ray has no node with more than "
        f"{cpus} CPU{'s' * (cpus != 1)}{beside} here."
    )


def run_trials(
    trainable: Any,
    search: Any,
    schedule: Any,
    *watches: tune.Callback,
    verbose: bool = False,
) -> None:
    """Run trials until the search is finished.

    Args:
        trainable: a class of Tune's; processes go from one trial to the next.
        search: proposes trials, each with its ``place`` (see
            `kdtune.tuning.cluster.placement.Place`),
            once there is room for it.
        schedule: ends them.
        watches: called at every turn of the loop.
        verbose: have Tune say on stderr all that it has to say.
    """
    os.environ.update(ENVIRONMENT)
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = str(int(verbose))

    level = logging.NOTSET if verbose else logging.CRITICAL  # it lists trials that failed
    logging.getLogger("ray.tune.tune").setLevel(level)
    with tempfile.TemporaryDirectory(prefix="kdtune-", ignore_cleanup_errors=True) as unread:
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=schedule,
                num_samples=1_000_000,  # out of reach: the search says when it is finished
                max_concurrent_trials=1_000_000,  # the same; without one they start one by one
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


def _resources(settings: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial needs, on the node that was meant for it if that is still there."""
    place = settings["place"]
    return tune.PlacementGroupFactory(
        [{"CPU": place["cpus"], "GPU": place["gpus"]}],
        strategy="STRICT_PACK",
        _soft_target_node_id=place["node"],
    )
