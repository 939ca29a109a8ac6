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
from kdtune.plugins import Plugin, have_only, loaded
from kdtune.runtime.environment import environment
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.teacher import teacher_summary

PATIENCE = 120
"""Seconds for which a sweep that begins waits for the answers of nodes."""

AGAIN = 60
"""Seconds after which a node is asked again that did not answer, or lacked data or storage."""

KNOCK = 2
"""Seconds in which a living node takes a connection."""

VERSIONS = ("kdtune", "torch", "torchvision", "numpy", "pillow")
"""Packages on which figures depend."""


@dataclass(frozen=True)
class Question:
    """What a node is asked about: data, the teacher's path, a storage, or None, and plug-ins."""

    data: DataSource
    teacher: str | None
    storage: str | None
    plugins: tuple[Plugin, ...] = ()


def what_is_there(question: Question) -> dict[str, Any]:
    """What this process sees of the data, the teacher and the versions.

    Returns:
        Plain values, which are the same on nodes that are as good; under ``trouble`` a sentence,
        if something is missing.
    """
    try:
        have_only(question.plugins)
        data = find_images(*question.data)
        known = environment()
        return {
            "images": data.summary(),
            "teacher": question.teacher and teacher_summary(question.teacher)["sha256"],
            **{name: known[name].partition("+")[0] for name in VERSIONS},
        }
    except (UserError, OSError) as error:
        return {"trouble": str(error).rstrip(".")}


@ray.remote(num_cpus=0, max_retries=0)
def _ask(question: Question) -> dict[str, Any]:
    """What a node answers."""
    found = what_is_there(question)
    if question.storage is not None and "trouble" not in found:
        name = f"{socket.gethostname()}.{os.getpid()}"
        try:
            place = Storage(question.storage).at("nodes")
            place.write(name, b"")
            with suppress(StorageError):
                place.remove(name)
        except (UserError, StorageError) as error:
            return {"trouble": str(error).rstrip(".")}
    return found


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """What a node lacks, in words; None if it has what the driver has."""
    if "trouble" in there:
        return str(there["trouble"])
    if there["images"] != here["images"]:
        counts = ("train_images", "validation_images", "test_images")
        theirs, ours = ("+".join(str(a["images"][c]) for c in counts) for a in (there, here))
        return f"its data are {theirs} images, or other files, and not the driver's {ours}"
    if there["teacher"] != here["teacher"]:
        return "its teacher is another file than the driver's"
    for name in VERSIONS:
        if there[name] != here[name]:
            return f"it has {name} {there[name]}, and the driver has {here[name]}"
    return None


class Admission:
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
        self._question = Question(sweep.source, sweep.teacher, sweep.storage, loaded())
        self._here = what_is_there(self._question)
        self._say, self._clock = say, clock
        self._asked: dict[str, Any] = {}
        self._again: dict[str, float] = {}
        """When each node is asked again that is."""
        self._trouble: dict[str, str | None] = {}
        """What each node lacks that has answered."""
        self._names: dict[str, str] = {}
        self._living: set[str] = set()
        self._begun = False

    def __call__(self, nodes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Of Ray's living nodes that compute, those that may get trials; new ones are asked."""
        nodes, now = list(nodes), self._clock()
        for node in nodes:
            name = node["NodeID"]
            if name not in self._names or self._again.get(name, now + 1) <= now:
                self._again.pop(name, None)
                self._names[name] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                there = NodeAffinitySchedulingStrategy(name, soft=False)
                self._asked[name] = _ask.options(scheduling_strategy=there).remote(self._question)
        self._hear()
        living = {node["NodeID"] for node in nodes}
        if self._begun:
            for name in self._living - living:
                self._say(f"the node {self._names[name]} is lost")
        self._living = living & self._trouble.keys()
        return [n for n in nodes if self._trouble.get(n["NodeID"], "not asked") is None]

    def wait(self, nodes: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Wait for the answers of the nodes that there are when a sweep begins.

        Args:
            nodes: gives Ray's living nodes that compute.

        Raises:
            UserError: none of them may get trials; the text says why of the first.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            admitted = self(nodes())
            if not self._asked or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if not admitted:
            reasons = [f"{self._names[n]}: {t}" for n, t in self._trouble.items() if t is not None]
            why = reasons[0] if reasons else f"none answered within {PATIENCE} s"
            raise UserError(f"No node of the Ray cluster can run trials; {why}.")
        self._begun = True

    def _hear(self) -> None:
        """Take the answers that have come."""
        if not self._asked:
            return
        came, _ = ray.wait([*self._asked.values()], num_returns=len(self._asked), timeout=0)
        for name in [name for name, answer in self._asked.items() if answer in came]:
            try:
                there = ray.get(self._asked.pop(name))
            except Exception as error:  # whatever a node may raise, or that it is lost
                there = {"trouble": last_line(error)}
            trouble, before = difference(self._here, there), self._trouble.get(name)
            self._trouble[name] = trouble
            if "trouble" in there:
                self._again[name] = self._clock() + AGAIN
            if trouble is not None and trouble == before:
                continue
            if trouble is not None:
                self._say(f"the node {self._names[name]} gets no trials: {trouble}")
            elif self._begun:
                self._say(f"the node {self._names[name]} has joined, and gets trials")


def is_lost(node: str) -> bool:
    """Whether a node is no more; Ray itself finds that out some ten seconds later.

    Args:
        node: Ray's name of it.
    """
    known = next((known for known in ray.nodes() if known["NodeID"] == node), None)
    if known is None or not known["Alive"]:
        return True
    try:
        place = known["NodeManagerAddress"], known["NodeManagerPort"]
        socket.create_connection(place, KNOCK).close()
    except OSError:
        return True
    return False
