"""Ray as a sweep uses it: a session or a cluster, its nodes, and one run of Tune."""

import logging
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import ray
from ray import tune

import kdtune
import search_spaces
from kdtune.config.field_types import value_for_model
from kdtune.config.sweep import SweepConfig
from kdtune.errors import RunError, UserError
from kdtune.runtime.console import say, waiting
from kdtune.runtime.signals import defer_interrupt
from kdtune.tuning.cluster import ray_private
from kdtune.tuning.cluster.admission import NodeAdmission, NodeInfo
from kdtune.tuning.cluster.placement import Allocation, Node, ResourceRequest, Slots

ADDRESS_VARIABLE = "RAY_ADDRESS"  # names a cluster; `ray job submit` sets it
LOCAL_ADDRESS = "local"  # a Ray session on this machine alone
_TYPE_PREFIX = "accelerator_type:"  # of Ray's resources that name a node's kind of GPU
_COMPUTE_NODE_TIMEOUT_SECONDS = 60


def resolve_address(requested: str | None) -> str:
    """Return the requested address, else that of the environment, else `LOCAL_ADDRESS`."""
    return requested or os.environ.get(ADDRESS_VARIABLE) or LOCAL_ADDRESS


@contextmanager
def ray_session(
    address: str | None = None,
    verbose: bool = False,
    say: Callable[[str], None] = say,
    detail: Callable[[str], None] = say,
) -> Iterator[None]:
    """Connect to a cluster or start a local session; one that this process has is used as it is.

    Args:
        address: ``auto`` or host:port of a cluster of which this machine is a node, or ``local``;
            None for that of the environment.
        verbose: show all of Ray's output, not only its errors.
        say: takes a line for the user.
        detail: takes a line that a quiet sweep leaves out.
    """
    if ray.is_initialized():
        yield
        return
    cluster_address = resolve_address(address)
    is_local = cluster_address == LOCAL_ADDRESS
    options: dict[str, Any] = {"address": cluster_address, "log_to_driver": verbose}
    with ExitStack() as stack:
        if is_local:
            stack.enter_context(ray_private.loopback_only())
            stack.enter_context(ray_private.own_process_group())
            ray_private.disable_memory_monitor()
            options["include_dashboard"] = False
            failure, advice = "Ray could not start", ""
        else:
            _check_address(cluster_address)
            options["runtime_env"] = {"py_modules": _list_packages()}
            failure = f"The Ray cluster {cluster_address} was not joined"
            advice = " (if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN)"
        stack.callback(ray.shutdown)
        # An interrupt while Ray starts can crash it.
        with waiting("starting Ray", detail), defer_interrupt():
            try:
                ray.init(logging_level="info" if verbose else "error", **options)
            except Exception as error:  # Ray's errors have no base class
                if is_local and "timed out" in str(error).lower():
                    advice = " This machine may be busy; running the command again often helps."
                raise RunError(f"{failure}: {error}{advice}") from error
        if not is_local:
            _wait_for_compute_node(cluster_address, say)
        yield


def _check_address(address: str) -> None:
    """Refuse, within seconds, an address to which Ray would try to connect for a minute."""
    if "://" in address:
        raise UserError(
            f"{address} is an address of Ray's client, which cannot run a sweep: give --address "
            "as 'auto' on a node of the cluster, or submit the sweep with 'ray job submit'."
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"The address {address} is neither 'auto' nor host:port.")
        endpoint = host.strip("[]"), int(port)
        try:
            socket.create_connection(endpoint, timeout=10).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"No Ray cluster answers at {address}: {reason}.") from None
    if not ray_private.is_ray_node():
        head = "HEAD:6379" if address == "auto" else address
        raise UserError(
            "This machine is not a node of a Ray cluster: make it one that runs no trials with "
            f"'ray start --address={head} --num-cpus=0', or submit the sweep with 'ray job "
            "submit'."
        )


def _list_packages() -> list[str]:
    """Return the folders that nodes get from here: kdtune's code and the record of its version."""
    records = [file for file in distribution("kdtune").files or [] if file.name == "METADATA"]
    folders = [str(module.__path__[0]) for module in (kdtune, search_spaces)]
    return folders + [str(Path(record.locate()).parent) for record in records]


def _wait_for_compute_node(address: str, say: Callable[[str], None]) -> None:
    """Wait for a node with CPUs, since workers start after their head."""
    deadline = time.monotonic() + _COMPUTE_NODE_TIMEOUT_SECONDS
    if not _list_compute_nodes():
        say(f"waiting at most {_COMPUTE_NODE_TIMEOUT_SECONDS} s for a node with CPUs")
    while not _list_compute_nodes():
        if time.monotonic() > deadline:
            raise UserError(
                f"The Ray cluster {address} has no node with CPUs: start a worker with 'ray "
                "start', or let the autoscaler keep one (min_workers)."
            )
        time.sleep(0.5)


@dataclass
class LivingNodes:
    """The living nodes that `filter_admitted` leaves, read from Ray at most once a second."""

    filter_admitted: Callable[[list[NodeInfo]], list[NodeInfo]] = lambda nodes: nodes
    clock: Callable[[], float] = time.monotonic
    _refreshed_at: float = -math.inf
    _nodes: list[Node] = field(default_factory=list)

    def __call__(self) -> list[Node]:
        if (now := self.clock()) - self._refreshed_at >= 1:
            self._refreshed_at = now
            self._nodes = [
                _make_node(node["NodeID"], node["Resources"])
                for node in self.filter_admitted(_list_compute_nodes())
            ]
        return self._nodes


def _make_node(name: str, resources: Mapping[str, float]) -> Node:
    types = [key.removeprefix(_TYPE_PREFIX) for key in resources if key.startswith(_TYPE_PREFIX)]
    gpu_type = ", ".join(sorted(types))
    return Node(name, int(resources["CPU"]), int(resources.get("GPU", 0)), gpu_type)


def _list_compute_nodes() -> list[NodeInfo]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _find_admitted_nodes(sweep: SweepConfig, say: Callable[[str], None]) -> LivingNodes:
    """Return the nodes that have what trials need; only a cluster's nodes are inspected."""
    # A session that this process had before is a cluster if it has other nodes.
    if resolve_address(sweep.address) == LOCAL_ADDRESS:
        driver_node = ray.get_runtime_context().get_node_id()
        if all(node["NodeID"] == driver_node for node in _list_compute_nodes()):
            return LivingNodes()
    admission = NodeAdmission(sweep, say)
    admission.wait_for_answers(_list_compute_nodes)
    nodes = LivingNodes(admission)
    if len(nodes()) > 1 and sweep.storage is None:
        say(
            "without --storage, a trial whose node is lost continues on another one only if the "
            "sweep's folder is on a disk that all nodes share; else it starts again"
        )
    return nodes


def find_slots(
    sweep: SweepConfig,
    say: Callable[[str], None] = say,
    nodes: Callable[[], Sequence[Node]] | None = None,
) -> Slots:
    """Return the slots: one trial per GPU with its share of the CPUs, else one trial per CPU.

    Args:
        sweep: complete settings.
        say: takes a line for the user about nodes that come, go, or are left out.
        nodes: returns the nodes that may get trials; None to find those of Ray.
    """
    nodes = nodes or _find_admitted_nodes(sweep, say)
    gpus = float(any(node.gpus for node in nodes()))
    requests = {}
    for student in sweep.students:
        model = sweep.settings_of(student)["model"]
        cpus_per_trial = value_for_model(sweep.cpus_per_trial, model, None)
        gpus_per_trial = value_for_model(sweep.gpus_per_trial, model, gpus)
        gpus_per_trial = value_for_model(sweep.gpus_per_trial, student, gpus_per_trial)
        requests[student] = ResourceRequest(cpus_per_trial, gpus_per_trial)
    slots = Slots(requests, nodes, sweep.max_concurrent)
    for model in slots.unplaceable_models():
        raise UserError(_describe_shortage(model, requests[model], nodes()))
    return slots


def _describe_shortage(model: str, request: ResourceRequest, nodes: Sequence[Node]) -> str:
    if request.gpus and not any(node.gpus for node in nodes):
        return f"gpus_per_trial is {request.gpus:g} for {model}, but Ray has no GPU here."
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
        trainable: a class of Tune's; a process can run one trial after another.
        searcher: proposes each trial with its ``allocation``, once there is room for it; see
            `kdtune.tuning.cluster.placement.Allocation`.
        scheduler: ends trials.
        callbacks: called at every turn of Tune's loop.
        verbose: print all of Tune's output on stderr.
    """
    level = logging.NOTSET if verbose else logging.CRITICAL
    for module in ("tune", "execution.experiment_state"):  # trials and snapshots that failed
        logging.getLogger(f"ray.tune.{module}").setLevel(level)
    with (
        ray_private.configure_tune(verbose),
        tempfile.TemporaryDirectory(prefix="kdtune-", ignore_cleanup_errors=True) as tune_folder,
    ):
        tuner = tune.Tuner(
            tune.with_resources(
                trainable, lambda c: ray_private.trial_resources(Allocation(**c["allocation"]))
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=1_000_000,  # out of reach: the searcher ends the run
                max_concurrent_trials=1_000_000,  # likewise; without it trials start one by one
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial_id"],
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=tune_folder,  # nothing that Tune writes is read back
                callbacks=list(callbacks),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # In a notebook, Tune's default clears the output of others.
                progress_reporter=tune.CLIReporter(),
                verbose=2 * verbose,
            ),
        )
        with redirect_stdout(sys.stderr):  # only results are written to stdout
            tuner.fit()
