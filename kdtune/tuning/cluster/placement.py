"""Placement of trials: arithmetic on the CPUs and GPUs of each node, without Ray.

A trial has all its CPUs and GPUs on one node, and a part of a GPU on one GPU. The first pending
trial starts first. Where it does not fit, others may pass it, each cell at most twice; from then
on the node that it needs is reserved. Ray fills GPUs that are in use first, as is assumed here.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kdtune.config.recipes import split_student
from kdtune.log.events import Cell

_PARTS_PER_GPU = 10_000  # Ray gives no smaller ones
MAX_PASSES = 2  # of each cell, past a trial that waits for room


@dataclass(frozen=True)
class Node:
    """A machine of the cluster; its name is Ray's id of it."""

    name: str
    cpus: int
    gpus: int = 0
    gpu_type: str = ""  # as Ray names it; empty if unknown


@dataclass(frozen=True)
class Allocation:
    """The resources of a trial on a node, which is given by its name."""

    node: str
    cpus: int
    threads: int  # of its computation; fewer than `cpus` where it has the node to itself
    gpus: float  # a whole number, or a part of one GPU
    devices: tuple[int, ...] = ()  # indices of the node's GPUs


@dataclass(frozen=True)
class ResourceRequest:
    """The resources that a trial of a student needs."""

    cpus: int | None = None  # None: one CPU, or with GPUs an equal share of the node's CPUs
    gpus: float = 0.0  # a whole number, or a part of one GPU

    def allocation_on(self, node: Node, exclusive: bool = False) -> Allocation | None:
        """Return the allocation on an empty node; None if the node is too small.

        Args:
            node: the node.
            exclusive: reserve whole GPUs or, without GPUs, all CPUs of the node.
        """
        cpus = self.cpus or 1
        if self.gpus:
            trials_per_gpu = _PARTS_PER_GPU // _gpu_parts(self.gpus)
            trials = node.gpus * trials_per_gpu or node.gpus // math.ceil(self.gpus)
            if not trials:
                return None
            cpus = self.cpus or max(1, node.cpus // trials)
        if cpus > node.cpus:
            return None
        reserved_cpus = node.cpus if exclusive and not self.gpus else cpus
        gpus = float(math.ceil(self.gpus)) if exclusive else self.gpus
        return Allocation(node.name, reserved_cpus, cpus, gpus)


@dataclass(frozen=True)
class PendingTrial:
    """A trial that may start or restart; its key is its id, or the cell before it is proposed."""

    key: Hashable
    cell: Cell
    exclusive: bool = False


class _NodeCapacity:
    def __init__(self, node: Node):
        self.node, self.free_cpus, self.free_parts = node, node.cpus, [_PARTS_PER_GPU] * node.gpus

    def try_allocate(self, allocation: Allocation) -> Allocation | None:
        devices = self.choose_devices(allocation.gpus)
        has_room = self.missing(allocation) == (0, 0)
        fits = has_room and len(devices) == math.ceil(allocation.gpus)
        return replace(allocation, devices=devices) if fits else None

    def choose_devices(self, gpus: float) -> tuple[int, ...]:
        """Return the emptiest GPUs or, for a part of one, the fullest with room, as Ray does."""
        ranked = sorted(range(len(self.free_parts)), key=lambda device: -self.free_parts[device])
        if 0 < gpus < 1:
            fitting = [d for d in sorted(ranked) if self.free_parts[d] >= _gpu_parts(gpus)]
            ranked = sorted(fitting, key=self.free_parts.__getitem__) or ranked
        return tuple(ranked[: math.ceil(gpus)])

    def reserve(self, allocation: Allocation) -> None:
        """Subtract an allocation, which can be more than is free."""
        self.free_cpus -= allocation.cpus
        for device in allocation.devices:
            self.free_parts[device] -= min(_PARTS_PER_GPU, _gpu_parts(allocation.gpus))

    def missing(self, allocation: Allocation) -> tuple[int, int]:
        """Return the parts of GPUs and the CPUs that must become free before there is room."""
        needed = min(_PARTS_PER_GPU, _gpu_parts(allocation.gpus))
        devices = self.choose_devices(allocation.gpus)
        missing_parts = sum(max(0, needed - self.free_parts[device]) for device in devices)
        return missing_parts, max(0, allocation.cpus - self.free_cpus)

    def remaining_beside(self, allocation: Allocation) -> tuple[int, int]:
        return sum(self.free_parts) - _gpu_parts(allocation.gpus), self.free_cpus - allocation.cpus


@dataclass
class Slots:
    """The resources in use, and the choice of the next trial and its node."""

    requests: Mapping[str, ResourceRequest]  # by student
    list_nodes: Callable[[], Sequence[Node]]  # nodes may come and go
    max_concurrent: int | None = None
    allocations: dict[str, Allocation] = field(default_factory=dict)  # by trial

    def __post_init__(self) -> None:
        self._max_trials = self.max_concurrent or math.inf
        self._lost_nodes: set[str] = set()
        self._passes: defaultdict[Hashable, Counter[Cell]] = defaultdict(Counter)

    def nodes(self) -> Sequence[Node]:
        """Return the current nodes."""
        return [node for node in self.list_nodes() if node.name not in self._lost_nodes]

    def mark_lost(self, node: str) -> None:
        """Ignore a node from now on, even if Ray still lists it."""
        self._lost_nodes.add(node)

    @property
    def in_use(self) -> int:
        """Number of trials on current nodes."""
        node_names = {node.name for node in self.nodes()}
        return sum(allocation.node in node_names for allocation in self.allocations.values())

    @property
    def count(self) -> int:
        """Trials at once: those in use and as many as fit beside them, if students take turns."""
        free, count, models = self._free_capacity(), self.in_use, list(self.requests)
        nodes = [capacity.node for capacity in free.values()]
        while models and count < self._max_trials:
            possible = self._possible_allocations(nodes, model := models.pop(0))
            if (allocation := _choose_fitting(free, possible)) is not None:
                free[allocation.node].reserve(allocation)
                count += 1
                models.append(model)
        return count

    def describe_resources(self) -> str:
        """Return the resources of each student's trial, as ``A: 1 GPU, 4 CPUs; B: 2 CPUs``."""
        descriptions, nodes = [], self.nodes()
        for model, request in self.requests.items():
            cpus = sorted({a.cpus for a in self._possible_allocations(nodes, model)})
            counts = f"{cpus[0]}" if len(cpus) == 1 else f"{cpus[0]} to {cpus[-1]}"
            gpu_text = f"{request.gpus:g} GPU{'s' * (request.gpus != 1)}, " if request.gpus else ""
            descriptions.append(f"{model}: {gpu_text}{counts} CPU{'s' * (cpus[-1] != 1)}")
        return "; ".join(descriptions)

    @property
    def is_uniform_cpu_only(self) -> bool:
        """True if all trials have the same number of CPUs and no GPU."""
        requests = set(self.requests.values())
        return len(requests) == 1 and not any(request.gpus for request in requests)

    def smallest_allocation(self, model: str) -> Allocation | None:
        """Return the smallest allocation of a trial; None if no node is large enough.

        Args:
            model: a student, or the network of one; the first student counts.
        """
        student = next(name for name in self.requests if model in (name, split_student(name)[0]))
        allocations = self._possible_allocations(self.nodes(), student)
        return min(allocations, key=lambda allocation: allocation.cpus, default=None)

    def has_larger_allocation(self, model: str) -> bool:
        """Return True if a trial of the student gets more resources when it is exclusive."""
        nodes = self.nodes()
        usual = {a.node: a for a in self._possible_allocations(nodes, model)}
        exclusive = self._possible_allocations(nodes, model, exclusive=True)
        return any(allocation != usual[allocation.node] for allocation in exclusive)

    def unplaceable_models(self) -> list[str]:
        """Return the students whose trials fit on no node, even an empty one."""
        nodes = self.nodes()
        return [m for m in self.requests if not self._possible_allocations(nodes, m)]

    def has_room(self) -> bool:
        """Return True if a trial of any student fits now."""
        free = self._free_capacity(include_lost=True)
        nodes = [capacity.node for capacity in free.values()]
        possible = (a for model in self.requests for a in self._possible_allocations(nodes, model))
        has_fitting = any(free[a.node].try_allocate(a) for a in possible)
        return has_fitting and len(self.allocations) < self._max_trials

    def release_finished(self, running: Collection[str]) -> None:
        """Free the resources of all trials but the `running` ones."""
        allocations = self.allocations.items()
        self.allocations = {name: a for name, a in allocations if name in running}

    def has_node(self, node: str) -> bool:
        """Return True if the node is a current one."""
        return any(known.name == node for known in self.nodes())

    def can_run_on(self, node: str) -> bool:
        """Return True if a trial of any student fits on a node while that is empty."""
        nodes = [known for known in self.nodes() if known.name == node]
        return any(self._possible_allocations(nodes, model) for model in self.requests)

    def record_node(self, trial_id: str, node: str) -> None:
        """Record the node on which Ray started a trial.

        Args:
            trial_id: the trial.
            node: its node, which can differ from the chosen one.
        """
        allocation = self.allocations[trial_id]
        if node != allocation.node:
            capacity = self._free_capacity().get(node)
            devices = capacity.choose_devices(allocation.gpus) if capacity else ()
            self.allocations[trial_id] = replace(allocation, node=node, devices=devices)

    def choose_next(
        self, pending: Iterable[PendingTrial]
    ) -> tuple[PendingTrial, Allocation] | None:
        """Return the first trial that may start, with its resources; None if all must wait."""
        if len(self.allocations) >= self._max_trials:
            return None
        free = self._free_capacity(include_lost=True)
        nodes = [capacity.node for capacity in free.values()]
        blocked: list[tuple[Hashable, str]] = []
        # Nodes are searched once per student, since there may be a thousand.
        without_room: dict[tuple[str, bool], Allocation | None] = {}
        for trial in pending:
            kind, cell = (trial.cell[1], trial.exclusive), trial.cell
            if kind not in without_room:
                possible = self._possible_allocations(nodes, *kind)
                reserved = {n for key, n in blocked if self._passes[key][cell] >= MAX_PASSES}
                allowed = [a for a in possible if a.node not in reserved]
                if (allocation := _choose_fitting(free, allowed)) is not None:
                    for key, node in blocked:
                        self._passes[key][cell] += node == allocation.node
                    self._passes.pop(trial.key, None)
                    return trial, allocation
                soonest = min(possible, key=lambda a: free[a.node].missing(a), default=None)
                if not reserved:
                    without_room[kind] = soonest
            else:
                soonest = without_room[kind]
            if soonest is not None:
                blocked.append((trial.key, soonest.node))
        return None

    def _free_capacity(self, include_lost: bool = False) -> dict[str, _NodeCapacity]:
        capacities = {node.name: _NodeCapacity(node) for node in self.nodes()}
        lost = []
        for allocation in self.allocations.values():
            if allocation.node in capacities:
                capacities[allocation.node].reserve(allocation)
            elif include_lost:
                lost.append(allocation)
        for allocation in lost:  # Ray starts it wherever it fits, soonest where least is missing
            cpus, gpus = allocation.cpus, allocation.gpus
            large = [c for c in capacities.values() if cpus <= c.node.cpus and gpus <= c.node.gpus]
            if large:
                nearest = min(large, key=lambda capacity: capacity.missing(allocation))
                nearest.reserve(replace(allocation, devices=nearest.choose_devices(gpus)))
        return capacities

    def _possible_allocations(
        self, nodes: Iterable[Node], model: str, exclusive: bool = False
    ) -> list[Allocation]:
        """Return the allocation on each node that would be large enough if it were empty."""
        request = self.requests[model]
        allocations = [a for node in nodes if (a := request.allocation_on(node, exclusive))]
        if exclusive and not request.gpus:
            largest = max((allocation.cpus for allocation in allocations), default=0)
            allocations = [a for a in allocations if a.cpus == largest]
        return allocations


def _choose_fitting(
    free: Mapping[str, _NodeCapacity], possible: Iterable[Allocation]
) -> Allocation | None:
    """Return the allocation that leaves least free, so that larger trials fit elsewhere."""
    fitting = [fit for a in possible if (fit := free[a.node].try_allocate(a)) is not None]
    return min(fitting, key=lambda a: free[a.node].remaining_beside(a), default=None)


def _gpu_parts(gpus: float) -> int:
    return round(gpus * _PARTS_PER_GPU)
