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

PARTS_PER_GPU = 10_000
"""Parts of a GPU, the smallest that Ray gives."""

MAX_PASSES = 2
"""Times that each cell may pass a trial that waits for room."""


@dataclass(frozen=True)
class Node:
    """A machine: its name, and how many CPUs and GPUs it has."""

    name: str
    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Allocation:
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
class ResourceRequest:
    """What a trial of a student needs.

    Attributes:
        cpus: None for one, or with GPUs for an equal share of its node's.
        gpus: a whole number, or a part of one.
    """

    cpus: int | None = None
    gpus: float = 0.0

    def allocation_on(self, node: Node) -> Allocation | None:
        """What a trial has on a node; None if the node is too small, even if it is empty.

        >>> ResourceRequest(gpus=0.5).allocation_on(Node("a", cpus=9, gpus=2))
        Allocation(node='a', cpus=2, threads=2, gpus=0.5, devices=())
        """
        cpus = self.cpus or 1
        if self.gpus:
            parts = _gpu_parts(self.gpus)
            trials_per_gpu, gpus_per_trial = PARTS_PER_GPU // parts, parts // PARTS_PER_GPU
            trials_per_node = (
                node.gpus * trials_per_gpu if trials_per_gpu else node.gpus // gpus_per_trial
            )
            if not trials_per_node:
                return None
            cpus = self.cpus or max(1, node.cpus // trials_per_node)
        return Allocation(node.name, cpus, cpus, self.gpus) if cpus <= node.cpus else None

    def exclusive_allocation_on(self, node: Node) -> Allocation | None:
        """What a trial has on a node that is to have its device to itself."""
        allocation = self.allocation_on(node)
        if allocation is None:
            return None
        if self.gpus:
            return replace(allocation, gpus=float(math.ceil(self.gpus)))
        return replace(allocation, cpus=node.cpus)


@dataclass(frozen=True)
class PendingTrial:
    """A trial that may begin, or begin again.

    Attributes:
        key: of the trial; of one that is not proposed yet it is the cell.
        cell: its cell.
        alone: whether it is to have its device to itself.
    """

    key: Hashable
    cell: Cell
    exclusive: bool = False


class _NodeCapacity:
    """What is free on a node."""

    def __init__(self, node: Node):
        self.node, self.free_cpus, self.free_parts = node, node.cpus, [PARTS_PER_GPU] * node.gpus

    def fits_when_empty(self, allocation: Allocation) -> bool:
        """Whether there would be room if all were free."""
        return allocation.cpus <= self.node.cpus and allocation.gpus <= self.node.gpus

    def try_allocate(self, allocation: Allocation) -> Allocation | None:
        """The place with devices, if there is room."""
        if allocation.cpus > self.free_cpus:
            return None
        devices = self.choose_devices(allocation.gpus)
        device_parts = [self.free_parts[device] for device in devices]
        fits = len(device_parts) == math.ceil(allocation.gpus) and all(
            parts >= min(PARTS_PER_GPU, _gpu_parts(allocation.gpus)) for parts in device_parts
        )
        return replace(allocation, devices=devices) if fits else None

    def choose_devices(self, gpus: float) -> tuple[int, ...]:
        """The GPUs for so many, or for a part: the fullest one with room, as Ray has it."""
        ranked = sorted(range(len(self.free_parts)), key=lambda device: -self.free_parts[device])
        if 0 < gpus < 1:
            large_enough = [
                device for device in sorted(ranked) if self.free_parts[device] >= _gpu_parts(gpus)
            ]
            ranked = sorted(large_enough, key=self.free_parts.__getitem__) or ranked
        return tuple(ranked[: math.ceil(gpus)])

    def reserve(self, allocation: Allocation) -> None:
        """Take what a trial has; it can be more than is free."""
        self.free_cpus -= allocation.cpus
        for device in allocation.devices:
            self.free_parts[device] -= min(PARTS_PER_GPU, _gpu_parts(allocation.gpus))

    def missing_resources(self, allocation: Allocation) -> tuple[int, int]:
        """GPUs, in parts, and CPUs that must become free before there is room."""
        devices, needed = (
            self.choose_devices(allocation.gpus),
            min(PARTS_PER_GPU, _gpu_parts(allocation.gpus)),
        )
        lacking = sum(max(0, needed - self.free_parts[device]) for device in devices)
        return lacking, max(0, allocation.cpus - self.free_cpus)

    def remaining_beside(self, allocation: Allocation) -> tuple[int, int]:
        """GPUs, in parts, and CPUs that are free beside a trial."""
        return sum(self.free_parts) - _gpu_parts(allocation.gpus), self.free_cpus - allocation.cpus


class Slots:
    """Has an account of what trials have, and says which may begin where.

    Args:
        needs: of a trial of each student.
        nodes: gives those there are now; they may come and go.
        max_concurrent: trials at once, at most; None without a limit.
    """

    def __init__(
        self,
        requests: Mapping[str, ResourceRequest],
        list_nodes: Callable[[], Sequence[Node]],
        max_concurrent: int | None = None,
    ):
        self.requests, self.max_concurrent = requests, max_concurrent
        self._list_nodes = list_nodes
        self._lost_nodes: set[str] = set()
        self._allocations: dict[str, Allocation] = {}
        self._passes: defaultdict[Hashable, Counter[Cell]] = defaultdict(Counter)

    def nodes(self) -> Sequence[Node]:
        """Those there are now."""
        return [node for node in self._list_nodes() if node.name not in self._lost_nodes]

    def mark_lost(self, node: str) -> None:
        """A node is no more, whatever is said of it."""
        self._lost_nodes.add(node)

    @property
    def in_use(self) -> int:
        """Trials that have a place; one whose node was lost has none until it begins elsewhere."""
        node_names = {node.name for node in self.nodes()}
        return sum(allocation.node in node_names for allocation in self._allocations.values())

    @property
    def count(self) -> int:
        """Trials at once: those that have a place, and as many as would fit beside them.

        Where students need different things, that is if they take turns.
        """
        capacities, count, remaining_models = (
            self._free_capacity(),
            self.in_use,
            list(self.requests),
        )
        while remaining_models and count < self._max_trials:
            allocation = self._best_allocation(capacities, remaining_models[0])
            if allocation is None:
                remaining_models.pop(0)
            else:
                capacities[allocation.node].reserve(allocation)
                count += 1
                remaining_models.append(remaining_models.pop(0))
        return count

    def describe_resources(self) -> str:
        """What trials have, for people.

        >>> nodes = [Node("a", 8, 2)]
        >>> requests = {"A": ResourceRequest(gpus=1), "B": ResourceRequest(2, 0.25)}
        >>> Slots(requests, lambda: nodes).describe_resources()
        'A: 1 GPU, 4 CPUs; B: 0.25 GPUs, 2 CPUs'
        """
        descriptions, nodes = [], self.nodes()
        for model, request in self.requests.items():
            cpus = sorted(
                {allocation.cpus for node in nodes if (allocation := request.allocation_on(node))}
            )
            counts = f"{cpus[0]}" if len(cpus) == 1 else f"{cpus[0]} to {cpus[-1]}"
            gpu_text = f"{request.gpus:g} GPU{'s' * (request.gpus != 1)}, " if request.gpus else ""
            descriptions.append(f"{model}: {gpu_text}{counts} CPU{'s' * (cpus[-1] != 1)}")
        return "; ".join(descriptions)

    @property
    def is_uniform_cpu_only(self) -> bool:
        """Whether every trial has the same CPUs and no GPU."""
        return len(set(self.requests.values())) == 1 and not any(
            request.gpus for request in self.requests.values()
        )

    def smallest_allocation(self, model: str) -> Allocation | None:
        """What a trial of a student has where it has least; None if no node has room for one."""
        allocations = self._possible_allocations(self._free_capacity(), model)
        return min(allocations, key=lambda allocation: allocation.cpus, default=None)

    def has_larger_allocation(self, model: str) -> bool:
        """Whether a trial of the student can have more of a device than it has."""
        capacities = self._free_capacity()
        usual = {
            allocation.node: allocation
            for allocation in self._possible_allocations(capacities, model)
        }
        return any(
            allocation != usual[allocation.node]
            for allocation in self._possible_allocations(capacities, model, exclusive=True)
        )

    def unplaceable_models(self) -> list[str]:
        """Students for a trial of which no node has room, even if it is empty."""
        capacities = self._free_capacity()
        return [
            model for model in self.requests if not self._possible_allocations(capacities, model)
        ]

    def has_room(self) -> bool:
        """Whether there is room for a trial of any student."""
        capacities = self._free_capacity(include_lost=True)
        fits = any(self._best_allocation(capacities, model) for model in self.requests)
        return fits and len(self._allocations) < self._max_trials

    def release_finished(self, running: Collection[str]) -> None:
        """Free what trials had on which no process works any more; `at_work` are the others."""
        self._allocations = {
            name: allocation for name, allocation in self._allocations.items() if name in running
        }

    def has_node(self, node: str) -> bool:
        """Whether a node is one of those there are now."""
        return any(known.name == node for known in self.nodes())

    def node_of(self, trial_id: str) -> str | None:
        """Of the place that a trial has; None if it has none."""
        allocation = self._allocations.get(trial_id)
        return allocation.node if allocation is not None else None

    def record_node(self, trial_id: str, node: str) -> None:
        """A trial's process runs on a node, which need not be the one that was meant."""
        allocation = self._allocations[trial_id]
        if node != allocation.node:
            capacities = self._free_capacity()
            devices = (
                capacities[node].choose_devices(allocation.gpus) if node in capacities else ()
            )
            self._allocations[trial_id] = replace(allocation, node=node, devices=devices)

    def allocate(self, trial_id: str, allocation: Allocation) -> None:
        """A trial has a place from now on."""
        self._allocations[trial_id] = allocation

    def choose_next(
        self, pending: Iterable[PendingTrial]
    ) -> tuple[PendingTrial, Allocation] | None:
        """Choose who begins, and where; None if nobody has room, or must wait for others.

        Args:
            waiting: those whose turn it is first.
        """
        if len(self._allocations) >= self._max_trials:
            return None
        capacities = self._free_capacity(include_lost=True)
        blocked: list[tuple[PendingTrial, str]] = []
        without_room: dict[
            tuple[str, bool], Allocation | None
        ] = {}  # a thousand nodes are asked once for each
        for trial in pending:
            model_and_exclusive = trial.cell[1], trial.exclusive
            soonest = without_room.get(model_and_exclusive)
            if model_and_exclusive not in without_room:
                reserved_nodes = {
                    n
                    for blocked_trial, n in blocked
                    if self._passes[blocked_trial.key][trial.cell] >= MAX_PASSES
                }
                allocation = self._best_allocation(
                    capacities, *model_and_exclusive, reserved_nodes
                )
                if allocation is not None:
                    for blocked_trial, node in blocked:
                        self._passes[blocked_trial.key][trial.cell] += node == allocation.node
                    self._passes.pop(trial.key, None)
                    return trial, allocation
                allocations = self._possible_allocations(capacities, *model_and_exclusive)
                soonest = min(
                    allocations,
                    key=lambda p: capacities[p.node].missing_resources(p),
                    default=None,
                )
                if not reserved_nodes:
                    without_room[model_and_exclusive] = soonest
            if soonest is not None:
                blocked.append((trial, soonest.node))
        return None

    @property
    def _max_trials(self) -> float:
        return math.inf if self.max_concurrent is None else self.max_concurrent

    def _free_capacity(self, include_lost: bool = False) -> dict[str, _NodeCapacity]:
        """What is free on each node.

        Args:
            with_lost: take what a trial whose node was lost needs from where it lacks least: Ray
                begins it wherever it has room.
        """
        capacities = {node.name: _NodeCapacity(node) for node in self.nodes()}
        for allocation in self._allocations.values():
            if allocation.node in capacities:
                capacities[allocation.node].reserve(allocation)
        for allocation in self._allocations.values():
            if include_lost and allocation.node not in capacities:
                candidates = [
                    capacity
                    for capacity in capacities.values()
                    if capacity.fits_when_empty(allocation)
                ]
                for capacity in sorted(
                    candidates, key=lambda capacity: capacity.missing_resources(allocation)
                )[:1]:
                    capacity.reserve(
                        replace(allocation, devices=capacity.choose_devices(allocation.gpus))
                    )
        return capacities

    def _possible_allocations(
        self, capacities: Mapping[str, _NodeCapacity], model: str, exclusive: bool = False
    ) -> list[Allocation]:
        """What a trial has on each node that is large enough, if that is empty."""
        request, nodes = self.requests[model], [capacity.node for capacity in capacities.values()]
        if not exclusive:
            return [allocation for node in nodes if (allocation := request.allocation_on(node))]
        allocations = [
            allocation for node in nodes if (allocation := request.exclusive_allocation_on(node))
        ]
        largest = max((allocation.cpus for allocation in allocations), default=0)
        return [
            allocation for allocation in allocations if request.gpus or allocation.cpus == largest
        ]

    def _best_allocation(
        self,
        capacities: Mapping[str, _NodeCapacity],
        model: str,
        exclusive: bool = False,
        reserved_nodes: Collection[str] = (),
    ) -> Allocation | None:
        """The place that leaves least beside it, so that larger trials have room elsewhere."""
        fitting = [
            allocation
            for possible in self._possible_allocations(capacities, model, exclusive)
            if possible.node not in reserved_nodes
            and (allocation := capacities[possible.node].try_allocate(possible))
        ]
        return min(
            fitting,
            key=lambda allocation: capacities[allocation.node].remaining_beside(allocation),
            default=None,
        )


def _gpu_parts(gpus: float) -> int:
    return round(gpus * PARTS_PER_GPU)
