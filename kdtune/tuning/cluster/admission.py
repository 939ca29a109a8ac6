"""Admission of cluster nodes: only those that see the data, teacher and versions of the driver.

A node that differs is left out for good; one that fails to answer, or lacks data or storage, is
asked again later. Files are compared by name and size, not by content.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.config.data import DataSource
from kdtune.config.sweep import SweepConfig
from kdtune.data.folders import find_images
from kdtune.errors import UserError, last_line
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.environment import describe_environment
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.teacher import teacher_sha256
from kdtune.tuning.cluster.pack_plugins import pack_plugins

RETRY_SECONDS = 60
_ANSWER_TIMEOUT_SECONDS = 120

_COMPARED_PACKAGES = ("kdtune", "torch", "torchvision", "numpy", "pillow")
"""Packages whose versions can change the results."""

NodeInfo = Mapping[str, Any]  # a node as `ray.nodes` describes it


@dataclass(frozen=True)
class NodeRequirements:
    """Requirements of a sweep on its nodes, which must be able to write to its storage."""

    data: DataSource
    teacher: str | None
    storage: str | None
    plugins: tuple[Plugin, ...] = ()


def inspect_node(requirements: NodeRequirements) -> dict[str, Any]:
    """Return what this process sees of data, teacher and versions, or only a ``problem``."""
    try:
        PLUGINS.sync(requirements.plugins)
        data = find_images(requirements.data)
        versions = describe_environment()
        if requirements.storage is not None:
            folder = Storage(requirements.storage).subfolder("nodes")
            folder.write(name := f"{socket.gethostname()}.{os.getpid()}", b"")
            with suppress(StorageError):
                folder.remove_file(name)
        return {
            "images": data.summary(),
            "teacher": requirements.teacher and teacher_sha256(requirements.teacher),
            **{name: versions[name].partition("+")[0] for name in _COMPARED_PACKAGES},
        }
    except (UserError, StorageError, OSError) as error:
        return {"problem": str(error).rstrip(".")}


_inspect_node = ray.remote(num_cpus=0, max_retries=0)(inspect_node)


def describe_difference(driver: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """Return in words what a node lacks; None if it has what the driver has.

    Args:
        driver: result of `inspect_node` in the driver.
        node: the result on the node.
    """
    if "problem" in node:
        return str(node["problem"])
    if node["images"] != driver["images"]:
        counts = ("train_images", "validation_images", "test_images")
        theirs, ours = ("+".join(str(a["images"][c]) for c in counts) for a in (node, driver))
        return f"its data are {theirs} images, or other files; the driver has {ours}"
    if node["teacher"] != driver["teacher"]:
        return "its teacher is not the same file as the driver's"
    for name in _COMPARED_PACKAGES:
        if node[name] != driver[name]:
            return f"it has {name} {node[name]}; the driver has {driver[name]}"
    return None


@dataclass
class NodeAdmission:
    """The nodes that were inspected, and which of them may get trials."""

    sweep: SweepConfig
    say: Callable[[str], None]  # about nodes that are left out, join, or are lost
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        sweep, plugins = self.sweep, pack_plugins()
        images, teacher, storage = sweep.data_source, sweep.teacher, sweep.storage
        self._requirements = NodeRequirements(images, teacher, storage, plugins)
        self._driver_answer = inspect_node(replace(self._requirements, storage=None))
        self._pending_answers: dict[str, Any] = {}
        self._retry_at: dict[str, float] = {}
        self._problems: dict[str, str | None] = {}  # of the nodes that answered
        self._labels: dict[str, str] = {}
        self._living_nodes: set[str] = set()
        self._started = False

    def __call__(self, nodes: Iterable[NodeInfo]) -> list[NodeInfo]:
        """Return those of Ray's living compute nodes that may get trials; inspect new ones."""
        nodes, now = list(nodes), self.clock()
        for node in nodes:
            node_id = node["NodeID"]
            if node_id not in self._labels or self._retry_at.get(node_id, now + 1) <= now:
                self._retry_at.pop(node_id, None)
                host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
                self._labels[node_id] = f"{host} ({address})"
                on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
                inspection = _inspect_node.options(scheduling_strategy=on_node)
                self._pending_answers[node_id] = inspection.remote(self._requirements)
        self._collect_answers()
        living = {node["NodeID"] for node in nodes}
        if self._started:
            for node_id in self._living_nodes - living:
                self.say(f"the node {self._labels[node_id]} is lost")
        self._living_nodes = living & self._problems.keys()
        return [n for n in nodes if self._problems.get(n["NodeID"], "not asked") is None]

    def wait_for_answers(self, list_nodes: Callable[[], Iterable[NodeInfo]]) -> None:
        """Wait until the nodes that there are at the start have answered, one of them well."""
        deadline = time.monotonic() + _ANSWER_TIMEOUT_SECONDS
        admitted = self(list_nodes())
        while self._pending_answers and time.monotonic() <= deadline:
            time.sleep(0.1)
            admitted = self(list_nodes())
        if not admitted:
            reasons = [f"{self._labels[n]}: {p}" for n, p in self._problems.items() if p]
            reason = [*reasons, f"none answered within {_ANSWER_TIMEOUT_SECONDS} s"][0]
            raise UserError(f"No node of the Ray cluster can run trials; {reason}.")
        self._started = True

    def _collect_answers(self) -> None:
        answers = list(self._pending_answers.values())
        ready = ray.wait(answers, num_returns=len(answers), timeout=0)[0] if answers else []
        for node_id in [n for n, answer in self._pending_answers.items() if answer in ready]:
            try:
                answer = ray.get(self._pending_answers.pop(node_id))
            except Exception as error:  # whatever a node may raise, or that it is lost
                answer = {"problem": last_line(error)}
            if "problem" in answer:
                self._retry_at[node_id] = self.clock() + RETRY_SECONDS
            previous = self._problems.get(node_id)
            problem = describe_difference(self._driver_answer, answer)
            self._problems[node_id] = problem
            if problem is not None and problem != previous:
                self.say(f"the node {self._labels[node_id]} gets no trials: {problem}")
            elif problem is None and self._started:
                self.say(f"the node {self._labels[node_id]} has joined, and gets trials")


def is_node_lost(node_id: str) -> bool:
    """Return True if the node with this id of Ray's is lost; Ray notices about 10 s later."""
    for node in ray.nodes():
        if node["NodeID"] == node_id and node["Alive"]:
            endpoint = node["NodeManagerAddress"], node["NodeManagerPort"]
            with suppress(OSError):
                socket.create_connection(endpoint, timeout=2).close()
                return False
    return True
