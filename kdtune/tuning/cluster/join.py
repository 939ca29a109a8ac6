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
from kdtune.runtime.signals import deferred

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names a cluster, as Ray has it; `ray job submit` sets it."""

LOCAL = "local"
"""The address of no cluster: a session of Ray's on this machine alone."""

PATIENCE = 10
"""Seconds in which a machine must answer."""

WAIT = 60
"""Seconds in which a cluster must get a node that computes."""

TOKEN = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH as the file that holds it"
"""What to do about a token."""


def wanted_address(given: str | None) -> str:
    """The cluster that is meant: the one that is given, or that of the environment, or none."""
    return given or os.environ.get(ADDRESS) or LOCAL


@contextmanager
def joined(address: str, verbose: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Be a driver of a running cluster meanwhile.

    Args:
        address: ``auto`` for the cluster of which this machine is a node, or host:port.
        verbose: show what the trials' processes print.
        say: takes a line for a person.

    Raises:
        UserError: there is no such cluster, it does not let us in, has other versions, or no node
            that computes.
    """
    _use_token(address)
    _check_token()
    found = _find(address)
    client = _enter(found)
    here = services.find_node_ids() & {node.hex() for node in _nodes(client)}
    own, prints = None, ray._private.worker.print_to_stdstream
    try:
        if not verbose:  # else the loss of a node is thirty lines of Ray's, beside ours
            ray._private.worker.print_to_stdstream = lambda *arguments, **options: None
        with deferred():
            if not here:
                say(f"this machine is no node of {found}; it joins as one that computes nothing")
                own = _idle_node(found)
            try:
                ray.init(
                    address=found,
                    log_to_driver=verbose,
                    logging_level="info" if verbose else "error",
                    runtime_env={"py_modules": _packages()},
                )
            except Exception as error:  # Ray raises plain ones
                raise RunError(f"The Ray cluster {found} was not joined: {error}") from error
        _await_room(found, say)
        yield
    finally:
        ray.shutdown()
        ray._private.worker.print_to_stdstream = prints
        if own is not None:
            own.kill_all_processes(check_alive=False, allow_graceful=True)


def _find(address: str) -> str:
    """The host:port of a cluster."""
    if "://" in address:
        raise UserError(
            f"{address} is an address of Ray's client, which cannot run a sweep: give --address "
            "as host:port of the head node (its port is 6379 if none was given), or submit the "
            "sweep with 'ray job submit'."
        )
    try:
        found = services.canonicalize_bootstrap_address(address)
    except ConnectionError:
        found = None
    except ValueError:
        raise UserError(f"The address {address} is neither 'auto' nor host:port.") from None
    if found is None:
        raise UserError(
            "This machine is no node of a running Ray cluster: give --address as host:port of "
            "its head, or leave it out for a session on this machine."
        )
    return str(found)


def _enter(address: str) -> GcsClient:
    """A client of the cluster's head, which has the same versions as we have."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"No Ray cluster answers at {address}: {why}.") from None
    try:
        client = GcsClient(address=address)
        about = client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=PATIENCE)
    except ray.exceptions.AuthenticationError:
        fault = "this is another one" if is_token_auth_enabled() else "none was given"
        raise UserError(
            f"The Ray cluster {address} wants its token, and {fault}: {TOKEN}."
        ) from None
    except Exception as error:  # Ray raises plain ones
        raise UserError(
            f"What answers at {address} is no Ray cluster of version {ray.__version__}: {error}"
        ) from None
    theirs = json.loads(about or b"{}")
    ours = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    for name, version in ours.items():
        if theirs.get(name, version) != version:
            what = name.split("_")[0].capitalize()
            raise UserError(
                f"The Ray cluster {address} has {what} {theirs[name]}, and {what} is {version} "
                "here: install the same on both."
            )
    return client


def _use_token(address: str) -> None:
    """Have a token used that is given; Ray itself wants its mode set, too, but for ``auto``."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault(AUTH_MODE_ENV_VAR, "token")
        Config.initialize("")
    elif address == "auto":
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_token() -> None:
    """Refuse a token that is missing: with one that it does not find Ray ends the process."""
    if not is_token_auth_enabled():
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    there = Path(path).is_file() if path else (Path.home() / ".ray" / "auth_token").is_file()
    if not os.environ.get("RAY_AUTH_TOKEN") and not there:
        raise UserError(f"RAY_AUTH_MODE is token, but there is no token: {TOKEN}.")


def _nodes(client: GcsClient) -> list[Any]:
    return list(client.get_all_node_info(timeout=PATIENCE))


def _idle_node(address: str) -> Node:
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


def _packages() -> list[str]:
    """What the nodes need of ours, and need not have: code, and its version's record."""
    folders = [str(Path(str(module.__file__)).parent) for module in (kdtune, search_spaces)]
    return [*folders, str(distribution("kdtune")._path)]  # type: ignore[attr-defined]


def _await_room(address: str, say: Callable[[str], None]) -> None:
    """Wait for a node that computes: workers start after their head."""
    deadline, told = time.monotonic() + WAIT, False
    while not ray.cluster_resources().get("CPU"):
        if not told:
            say(f"no node of {address} computes yet; waiting for one, {WAIT} s at most")
            told = True
        if time.monotonic() > deadline:
            raise UserError(
                f"The Ray cluster {address} has no node with CPUs: start a worker with 'ray start "
                f"--address={address}', or let the autoscaler keep one (min_workers)."
            )
        time.sleep(0.5)
