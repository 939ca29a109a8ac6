"""Which nodes of a cluster may get trials: those that see what the driver sees.

Each node is asked before it gets a trial, also one that joins while the sweep runs: whether data,
teacher and versions are the driver's, and whether the storage takes a file from there. One where
they are others is out for good; one that cannot say is asked again later. Files are compared by
names and sizes, as they are listed, not by what is in them. What a node finds when it has been
asked, such as a disk that is lost later, is for its trials to find out.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import DataSource
from kdtune.data.folders import find_images
from kdtune.errors import UserError, last_line
from kdtune.plugins import PLUGINS, Plugin
from kdtune.runtime.environment import describe_environment
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.teacher import describe_teacher
from kdtune.tuning.cluster.pack_plugins import pack_plugins

ANSWER_TIMEOUT_SECONDS = 120
"""Seconds for which a sweep that begins waits for the answers of nodes."""

RETRY_SECONDS = 60
"""Seconds after which a node is asked again that did not answer, or lacked data or storage."""

CONNECT_TIMEOUT_SECONDS = 2
"""Seconds in which a living node takes a connection."""

COMPARED_PACKAGES = ("kdtune", "torch", "torchvision", "numpy", "pillow")
"""Packages on which figures depend."""


@dataclass(frozen=True)
class NodeRequirements:
    """What a node is asked about: data, the teacher's path, a storage, or None, and plug-ins."""

    data: DataSource
    teacher: str | None
    storage: str | None
    plugins: tuple[Plugin, ...] = ()


def inspect_node(requirements: NodeRequirements) -> dict[str, Any]:
    """What this process sees of the data, the teacher and the versions.

    Returns:
        Plain values, which are the same on nodes that are as good; under ``trouble`` a sentence,
        if something is missing.
    """
    try:
        PLUGINS.sync(requirements.plugins)
        data = find_images(*requirements.data)
        versions = describe_environment()
        return {
            "images": data.summary(),
            "teacher": requirements.teacher and describe_teacher(requirements.teacher)["sha256"],
            **{name: versions[name].partition("+")[0] for name in COMPARED_PACKAGES},
        }
    except (UserError, OSError) as error:
        return {"problem": str(error).rstrip(".")}


@ray.remote(num_cpus=0, max_retries=0)
def _inspect_node(requirements: NodeRequirements) -> dict[str, Any]:
    """What a node answers."""
    answer = inspect_node(requirements)
    if requirements.storage is not None and "problem" not in answer:
        name = f"{socket.gethostname()}.{os.getpid()}"
        try:
            folder = Storage(requirements.storage).subfolder("nodes")
            folder.write(name, b"")
            with suppress(StorageError):
                folder.remove_file(name)
        except (UserError, StorageError) as error:
            return {"problem": str(error).rstrip(".")}
    return answer


def describe_difference(driver: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """What a node lacks, in words; None if it has what the driver has."""
    if "problem" in node:
        return str(node["problem"])
    if node["images"] != driver["images"]:
        counts = ("train_images", "validation_images", "test_images")
        theirs, ours = ("+".join(str(a["images"][c]) for c in counts) for a in (node, driver))
        return f"its data are {theirs} images, or other files, and not the driver's {ours}"
    if node["teacher"] != driver["teacher"]:
        return "its teacher is another file than the driver's"
    for name in COMPARED_PACKAGES:
        if node[name] != driver[name]:
            return f"it has {name} {node[name]}, and the driver has {driver[name]}"
    return None


class NodeAdmission:
    """Asks nodes, and remembers which may get trials.

    Args:
        sweep: complete settings.
        say: takes a line for a person about a node that is left out, joins, or is lost.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._requirements = NodeRequirements(
            sweep.data_source, sweep.teacher, sweep.storage, pack_plugins()
        )
        self._driver_answer = inspect_node(self._requirements)
        self._say, self._clock = say, clock
        self._pending_answers: dict[str, Any] = {}
        self._retry_at: dict[str, float] = {}
        """When each node is asked again that is."""
        self._problems: dict[str, str | None] = {}
        """What each node lacks that has answered."""
        self._labels: dict[str, str] = {}
        self._living_nodes: set[str] = set()
        self._started = False

    def __call__(self, nodes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Of Ray's living nodes that compute, those that may get trials; new ones are asked."""
        nodes, now = list(nodes), self._clock()
        for node in nodes:
            node_id = node["NodeID"]
            if node_id not in self._labels or self._retry_at.get(node_id, now + 1) <= now:
                self._retry_at.pop(node_id, None)
                self._labels[node_id] = (
                    f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                )
                on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
                self._pending_answers[node_id] = _inspect_node.options(
                    scheduling_strategy=on_node
                ).remote(self._requirements)
        self._collect_answers()
        living = {node["NodeID"] for node in nodes}
        if self._started:
            for node_id in self._living_nodes - living:
                self._say(f"the node {self._labels[node_id]} is lost")
        self._living_nodes = living & self._problems.keys()
        return [n for n in nodes if self._problems.get(n["NodeID"], "not asked") is None]

    def wait_for_answers(self, list_nodes: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Wait for the answers of the nodes that there are when a sweep begins.

        Args:
            nodes: gives Ray's living nodes that compute.

        Raises:
            UserError: none of them may get trials; the text says why of the first.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT_SECONDS
        while True:
            admitted = self(list_nodes())
            if not self._pending_answers or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if not admitted:
            reasons = [
                f"{self._labels[n]}: {t}" for n, t in self._problems.items() if t is not None
            ]
            reason = reasons[0] if reasons else f"none answered within {ANSWER_TIMEOUT_SECONDS} s"
            raise UserError(f"No node of the Ray cluster can run trials; {reason}.")
        self._started = True

    def _collect_answers(self) -> None:
        """Take the answers that have come."""
        if not self._pending_answers:
            return
        ready, _ = ray.wait(
            [*self._pending_answers.values()], num_returns=len(self._pending_answers), timeout=0
        )
        for node_id in [
            node_id for node_id, answer in self._pending_answers.items() if answer in ready
        ]:
            try:
                node_answer = ray.get(self._pending_answers.pop(node_id))
            except Exception as error:  # whatever a node may raise, or that it is lost
                node_answer = {"problem": last_line(error)}
            problem, previous = (
                describe_difference(self._driver_answer, node_answer),
                self._problems.get(node_id),
            )
            self._problems[node_id] = problem
            if "problem" in node_answer:
                self._retry_at[node_id] = self._clock() + RETRY_SECONDS
            if problem is not None and problem == previous:
                continue
            if problem is not None:
                self._say(f"the node {self._labels[node_id]} gets no trials: {problem}")
            elif self._started:
                self._say(f"the node {self._labels[node_id]} has joined, and gets trials")


def is_node_lost(node_id: str) -> bool:
    """Whether a node is no more; Ray itself finds that out some ten seconds later.

    Args:
        node: Ray's name of it.
    """
    info = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
    if info is None or not info["Alive"]:
        return True
    try:
        endpoint = info["NodeManagerAddress"], info["NodeManagerPort"]
        socket.create_connection(endpoint, CONNECT_TIMEOUT_SECONDS).close()
    except OSError:
        return True
    return False
