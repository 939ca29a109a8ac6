"""Where trials fit: arithmetic on CPUs and parts of GPUs, node by node. It knows nothing of Ray.

A trial has its CPUs and GPUs on one node, and a part of a GPU on one GPU. The trial whose turn it
is comes first. Where it has no room, others may pass it, but each cell twice at most; from then on
the node that it needs is kept for it. Which GPU of a node a trial gets is Ray's to say: that Ray
fills GPUs that are in use first, as is done here, is relied upon, and at worst a trial waits.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdtune.log.events import Cell

PARTS = 10_000
"""Parts of a GPU, the smallest that Ray gives."""

PASSES = 2
"""Times that each cell may pass a trial that waits for room."""


@dataclass(frozen=True)
class Node:
    """A machine: its name, and how many CPUs and GPUs it has."""

    name: str
    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Place:
    """What a trial has.

    Attributes:
        node: its node's name.
        cpus: that are kept for it.
        threads: with which it computes; fewer than `cpus` where it has a whole node to itself.
        gpus: a whole number, or a part of one.
        devices: which of the node's GPUs.
    """

    node: str
    cpus: int
    threads: int
    gpus: float
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Need:
    """What a trial of a student needs.

    Attributes:
        cpus: None for one, or with GPUs for an equal share of its node's.
        gpus: a whole number, or a part of one.
    """

    cpus: int | None = None
    gpus: float = 0.0

    def on(self, node: Node) -> Place | None:
        """What a trial has on a node; None if the node is too small, even if it is empty.

        >>> Need(gpus=0.5).on(Node("a", cpus=9, gpus=2))
        Place(node='a', cpus=2, threads=2, gpus=0.5, devices=())
        """
        cpus = self.cpus or 1
        if self.gpus:
            parts = _parts(self.gpus)
            of_one, whole = PARTS // parts, parts // PARTS
            at_once = node.gpus * of_one if of_one else node.gpus // whole
            if not at_once:
                return None
            cpus = self.cpus or max(1, node.cpus // at_once)
        return Place(node.name, cpus, cpus, self.gpus) if cpus <= node.cpus else None

    def alone_on(self, node: Node) -> Place | None:
        """What a trial has on a node that is to have its device to itself."""
        place = self.on(node)
        if place is None:
            return None
        if self.gpus:
            return replace(place, gpus=float(math.ceil(self.gpus)))
        return replace(place, cpus=node.cpus)


@dataclass(frozen=True)
class Waiting:
    """A trial that may begin, or begin again.

    Attributes:
        key: of the trial; of one that is not proposed yet it is the cell.
        cell: its cell.
        alone: whether it is to have its device to itself.
    """

    key: Hashable
    cell: Cell
    alone: bool = False


class _Room:
    """What is free on a node."""

    def __init__(self, node: Node):
        self.node, self.cpus, self.parts = node, node.cpus, [PARTS] * node.gpus

    def could_have(self, place: Place) -> bool:
        """Whether there would be room if all were free."""
        return place.cpus <= self.node.cpus and place.gpus <= self.node.gpus

    def find(self, place: Place) -> Place | None:
        """The place with devices, if there is room."""
        if place.cpus > self.cpus:
            return None
        devices = self.devices(place.gpus)
        found = [self.parts[device] for device in devices]
        room = len(found) == math.ceil(place.gpus) and all(
            parts >= min(PARTS, _parts(place.gpus)) for parts in found
        )
        return replace(place, devices=devices) if room else None

    def devices(self, gpus: float) -> tuple[int, ...]:
        """The GPUs for so many, or for a part: the fullest one with room, as Ray has it."""
        ranked = sorted(range(len(self.parts)), key=lambda device: -self.parts[device])
        if 0 < gpus < 1:
            enough = [device for device in sorted(ranked) if self.parts[device] >= _parts(gpus)]
            ranked = sorted(enough, key=self.parts.__getitem__) or ranked
        return tuple(ranked[: math.ceil(gpus)])

    def use(self, place: Place) -> None:
        """Take what a trial has; it can be more than is free."""
        self.cpus -= place.cpus
        for device in place.devices:
            self.parts[device] -= min(PARTS, _parts(place.gpus))

    def lacks(self, place: Place) -> tuple[int, int]:
        """GPUs, in parts, and CPUs that must become free before there is room."""
        devices, each = self.devices(place.gpus), min(PARTS, _parts(place.gpus))
        lacking = sum(max(0, each - self.parts[device]) for device in devices)
        return lacking, max(0, place.cpus - self.cpus)

    def left(self, place: Place) -> tuple[int, int]:
        """GPUs, in parts, and CPUs that are free beside a trial."""
        return sum(self.parts) - _parts(place.gpus), self.cpus - place.cpus


class Slots:
    """Has an account of what trials have, and says which may begin where.

    Args:
        needs: of a trial of each student.
        nodes: gives those there are now; they may come and go.
        concurrent: trials at once, at most; None without a limit.
    """

    def __init__(
        self,
        needs: Mapping[str, Need],
        nodes: Callable[[], Sequence[Node]],
        concurrent: int | None = None,
    ):
        self.needs, self.concurrent = needs, concurrent
        self._nodes = nodes
        self._lost: set[str] = set()
        self._held: dict[str, Place] = {}
        self._passed: defaultdict[Hashable, Counter[Cell]] = defaultdict(Counter)

    def nodes(self) -> Sequence[Node]:
        """Those there are now."""
        return [node for node in self._nodes() if node.name not in self._lost]

    def lose(self, node: str) -> None:
        """A node is no more, whatever is said of it."""
        self._lost.add(node)

    @property
    def used(self) -> int:
        """Trials that have a place; one whose node was lost has none until it begins elsewhere."""
        there = {node.name for node in self.nodes()}
        return sum(place.node in there for place in self._held.values())

    @property
    def count(self) -> int:
        """Trials at once: those that have a place, and as many as would fit beside them.

        Where students need different things, that is if they take turns.
        """
        rooms, count, going = self._rooms(), self.used, list(self.needs)
        while going and count < self._most:
            place = self._best(rooms, going[0])
            if place is None:
                going.pop(0)
            else:
                rooms[place.node].use(place)
                count += 1
                going.append(going.pop(0))
        return count

    def describe(self) -> str:
        """What trials have, for people.

        >>> nodes, needs = [Node("a", 8, 2)], {"A": Need(gpus=1), "B": Need(2, 0.25)}
        >>> Slots(needs, lambda: nodes).describe()
        'A: 1 GPU, 4 CPUs; B: 0.25 GPUs, 2 CPUs'
        """
        words, nodes = [], self.nodes()
        for model, need in self.needs.items():
            cpus = sorted({place.cpus for node in nodes if (place := need.on(node))})
            counts = f"{cpus[0]}" if len(cpus) == 1 else f"{cpus[0]} to {cpus[-1]}"
            of_gpus = f"{need.gpus:g} GPU{'s' * (need.gpus != 1)}, " if need.gpus else ""
            words.append(f"{model}: {of_gpus}{counts} CPU{'s' * (cpus[-1] != 1)}")
        return "; ".join(words)

    @property
    def are_plain(self) -> bool:
        """Whether every trial has the same CPUs and no GPU."""
        return len(set(self.needs.values())) == 1 and not any(
            need.gpus for need in self.needs.values()
        )

    def place(self, model: str) -> Place | None:
        """What a trial of a student has where it has least; None if no node has room for one."""
        places = self._places(self._rooms(), model)
        return min(places, key=lambda place: place.cpus, default=None)

    def has_spare(self, model: str) -> bool:
        """Whether a trial of the student can have more of a device than it has."""
        rooms = self._rooms()
        usual = {place.node: place for place in self._places(rooms, model)}
        return any(place != usual[place.node] for place in self._places(rooms, model, alone=True))

    def lacking(self) -> list[str]:
        """Students for a trial of which no node has room, even if it is empty."""
        rooms = self._rooms()
        return [model for model in self.needs if not self._places(rooms, model)]

    def any_room(self) -> bool:
        """Whether there is room for a trial of any student."""
        rooms = self._rooms(with_lost=True)
        fits = any(self._best(rooms, model) for model in self.needs)
        return fits and len(self._held) < self._most

    def settle(self, at_work: Collection[str]) -> None:
        """Free what trials had on which no process works any more; `at_work` are the others."""
        self._held = {name: place for name, place in self._held.items() if name in at_work}

    def may_use(self, node: str) -> bool:
        """Whether a node is one of those there are now."""
        return any(known.name == node for known in self.nodes())

    def node(self, trial_id: str) -> str | None:
        """Of the place that a trial has; None if it has none."""
        place = self._held.get(trial_id)
        return place.node if place is not None else None

    def begun(self, trial_id: str, node: str) -> None:
        """A trial's process runs on a node, which need not be the one that was meant."""
        place = self._held[trial_id]
        if node != place.node:
            rooms = self._rooms()
            devices = rooms[node].devices(place.gpus) if node in rooms else ()
            self._held[trial_id] = replace(place, node=node, devices=devices)

    def hold(self, trial_id: str, place: Place) -> None:
        """A trial has a place from now on."""
        self._held[trial_id] = place

    def choose(self, waiting: Iterable[Waiting]) -> tuple[Waiting, Place] | None:
        """Choose who begins, and where; None if nobody has room, or must wait for others.

        Args:
            waiting: those whose turn it is first.
        """
        if len(self._held) >= self._most:
            return None
        rooms = self._rooms(with_lost=True)
        ahead: list[tuple[Waiting, str]] = []
        full: dict[tuple[str, bool], Place | None] = {}  # a thousand nodes are asked once for each
        for one in waiting:
            wanted = one.cell[1], one.alone
            soonest = full.get(wanted)
            if wanted not in full:
                kept = {n for first, n in ahead if self._passed[first.key][one.cell] >= PASSES}
                place = self._best(rooms, *wanted, kept)
                if place is not None:
                    for first, node in ahead:
                        self._passed[first.key][one.cell] += node == place.node
                    self._passed.pop(one.key, None)
                    return one, place
                places = self._places(rooms, *wanted)
                soonest = min(places, key=lambda p: rooms[p.node].lacks(p), default=None)
                if not kept:
                    full[wanted] = soonest
            if soonest is not None:
                ahead.append((one, soonest.node))
        return None

    @property
    def _most(self) -> float:
        return math.inf if self.concurrent is None else self.concurrent

    def _rooms(self, with_lost: bool = False) -> dict[str, _Room]:
        """What is free on each node.

        Args:
            with_lost: take what a trial whose node was lost needs from where it lacks least: Ray
                begins it wherever it has room.
        """
        rooms = {node.name: _Room(node) for node in self.nodes()}
        for place in self._held.values():
            if place.node in rooms:
                rooms[place.node].use(place)
        for place in self._held.values():
            if with_lost and place.node not in rooms:
                large = [room for room in rooms.values() if room.could_have(place)]
                for room in sorted(large, key=lambda room: room.lacks(place))[:1]:
                    room.use(replace(place, devices=room.devices(place.gpus)))
        return rooms

    def _places(self, rooms: Mapping[str, _Room], model: str, alone: bool = False) -> list[Place]:
        """What a trial has on each node that is large enough, if that is empty."""
        need, nodes = self.needs[model], [room.node for room in rooms.values()]
        if not alone:
            return [place for node in nodes if (place := need.on(node))]
        places = [place for node in nodes if (place := need.alone_on(node))]
        largest = max((place.cpus for place in places), default=0)
        return [place for place in places if need.gpus or place.cpus == largest]

    def _best(
        self,
        rooms: Mapping[str, _Room],
        model: str,
        alone: bool = False,
        kept: Collection[str] = (),
    ) -> Place | None:
        """The place that leaves least beside it, so that larger trials have room elsewhere."""
        found = [
            place
            for wanted in self._places(rooms, model, alone)
            if wanted.node not in kept and (place := rooms[wanted.node].find(wanted))
        ]
        return min(found, key=lambda place: rooms[place.node].left(place), default=None)


def _parts(gpus: float) -> int:
    return round(gpus * PARTS)
