"""Join a Ray cluster that runs already: find it, be let in, and bring kdtune's code along.

Ray takes a driver only on a machine that is a node of the cluster. Where this one is none, it
becomes one for as long as the sweep runs, a node that offers nothing: so no trial runs here. The
nodes must be able to reach this machine, too; through a firewall that lets nothing in, a sweep is
submitted as a job. What Ray waits for minutes, and for a missing token dies of, is tried before.
"""

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private.authentication.authentication_token_setup import (
    AUTH_MODE_ENV_VAR,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]

import kdtune
import search_spaces
from kdtune.errors import RunError, UserError
from kdtune.runtime.signals import defer_interrupt

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Environment variable that names a cluster, as Ray has it; `ray job submit` sets it."""

LOCAL_ADDRESS = "local"
"""The address of no cluster: a session of Ray's on this machine alone."""

CONNECT_TIMEOUT_SECONDS = 10
"""Seconds in which a machine must answer."""

COMPUTE_NODE_TIMEOUT_SECONDS = 60
"""Seconds in which a cluster must get a node that computes."""

TOKEN_HINT = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH as the file that holds it"
"""What to do about a token."""


def resolve_address(requested: str | None) -> str:
    """The cluster that is meant: the one that is given, or that of the environment, or none."""
    return requested or os.environ.get(ADDRESS_VARIABLE) or LOCAL_ADDRESS


@contextmanager
def cluster_connection(address: str, verbose: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Be a driver of a running cluster meanwhile.

    Args:
        address: ``auto`` for the cluster of which this machine is a node, or host:port.
        verbose: show what the trials' processes print.
        say: takes a line for a person.

    Raises:
        UserError: there is no such cluster, it does not let us in, has other versions, or no node
            that computes.
    """
    _enable_token(address)
    _require_token()
    head_address = _find_head(address)
    client = _connect_head(head_address)
    is_node = services.find_node_ids() & {node.hex() for node in _list_nodes(client)}
    idle_node, print_to_stdstream = None, ray._private.worker.print_to_stdstream
    try:
        if not verbose:  # else the loss of a node is thirty lines of Ray's, beside ours
            ray._private.worker.print_to_stdstream = lambda *arguments, **options: None
        with defer_interrupt():
            if not is_node:
                say(
                    f"this machine is no node of {head_address}; it joins as one that computes nothing"
                )
                idle_node = _start_idle_node(head_address)
            try:
                ray.init(
                    address=head_address,
                    log_to_driver=verbose,
                    logging_level="info" if verbose else "error",
                    runtime_env={"py_modules": _list_packages()},
                )
            except Exception as error:  # Ray raises plain ones
                raise RunError(
                    f"The Ray cluster {head_address} was not joined: {error}"
                ) from error
        _wait_for_compute_node(head_address, say)
        yield
    finally:
        ray.shutdown()
        ray._private.worker.print_to_stdstream = print_to_stdstream
        if idle_node is not None:
            idle_node.kill_all_processes(check_alive=False, allow_graceful=True)


def _find_head(address: str) -> str:
    """The host:port of a cluster."""
    if "://" in address:
        raise UserError(
            f"{address} is an address of Ray's client, which cannot run a sweep: give --address "
            "as host:port of the head node (its port is 6379 if none was given), or submit the "
            "sweep with 'ray job submit'."
        )
    try:
        head_address = services.canonicalize_bootstrap_address(address)
    except ConnectionError:
        head_address = None
    except ValueError:
        raise UserError(f"The address {address} is neither 'auto' nor host:port.") from None
    if head_address is None:
        raise UserError(
            "This machine is no node of a running Ray cluster: give --address as host:port of "
            "its head, or leave it out for a session on this machine."
        )
    return str(head_address)


def _connect_head(address: str) -> GcsClient:
    """A client of the cluster's head, which has the same versions as we have."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"No Ray cluster answers at {address}: {reason}.") from None
    try:
        client = GcsClient(address=address)
        metadata = client.internal_kv_get(
            b"CLUSTER_METADATA", namespace=b"cluster", timeout=CONNECT_TIMEOUT_SECONDS
        )
    except ray.exceptions.AuthenticationError:
        problem = "this is another one" if is_token_auth_enabled() else "none was given"
        raise UserError(
            f"The Ray cluster {address} wants its token, and {problem}: {TOKEN_HINT}."
        ) from None
    except Exception as error:  # Ray raises plain ones
        raise UserError(
            f"What answers at {address} is no Ray cluster of version {ray.__version__}: {error}"
        ) from None
    cluster_versions = json.loads(metadata or b"{}")
    versions = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    for name, version in versions.items():
        if cluster_versions.get(name, version) != version:
            label = name.split("_")[0].capitalize()
            raise UserError(
                f"The Ray cluster {address} has {label} {cluster_versions[name]}, and {label} is {version} "
                "here: install the same on both."
            )
    return client


def _enable_token(address: str) -> None:
    """Have a token used that is given; Ray itself wants its mode set, too, but for ``auto``."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault(AUTH_MODE_ENV_VAR, "token")
        Config.initialize("")
    elif address == "auto":
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _require_token() -> None:
    """Refuse a token that is missing: with one that it does not find Ray ends the process."""
    if not is_token_auth_enabled():
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_file = Path(path).is_file() if path else (Path.home() / ".ray" / "auth_token").is_file()
    if not os.environ.get("RAY_AUTH_TOKEN") and not has_file:
        raise UserError(f"RAY_AUTH_MODE is token, but there is no token: {TOKEN_HINT}.")


def _list_nodes(client: GcsClient) -> list[Any]:
    return list(client.get_all_node_info(timeout=CONNECT_TIMEOUT_SECONDS))


def _start_idle_node(address: str) -> Node:
    """Make this machine a node that offers nothing; it ends with this process."""
    parameters = RayParams(
        gcs_address=address,
        node_ip_address=services.get_node_ip_address(address),
        num_cpus=0,
        num_gpus=0,
        object_store_memory=200 * 1024**2,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        include_log_monitor=False,
        temp_dir=os.environ.get("RAY_TMPDIR"),
    )
    return Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=True)


def _list_packages() -> list[str]:
    """What the nodes need of ours, and need not have: code, and its version's record."""
    folders = [str(Path(str(module.__file__)).parent) for module in (kdtune, search_spaces)]
    return [*folders, str(distribution("kdtune")._path)]  # type: ignore[attr-defined]


def _wait_for_compute_node(address: str, say: Callable[[str], None]) -> None:
    """Wait for a node that computes: workers start after their head."""
    deadline, announced = time.monotonic() + COMPUTE_NODE_TIMEOUT_SECONDS, False
    while not ray.cluster_resources().get("CPU"):
        if not announced:
            say(
                f"no node of {address} computes yet; waiting for one, {COMPUTE_NODE_TIMEOUT_SECONDS} s at most"
            )
            announced = True
        if time.monotonic() > deadline:
            raise UserError(
                f"The Ray cluster {address} has no node with CPUs: start a worker with 'ray start "
                f"--address={address}', or let the autoscaler keep one (min_workers)."
            )
        time.sleep(0.5)
