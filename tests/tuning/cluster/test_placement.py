"""Placement of trials: numbers by hand, and properties for any nodes and students."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher
from sweep_harness import SweepHarness

from kdtune.tuning.cluster.placement import (
    MAX_PASSES,
    Allocation,
    Node,
    PendingTrial,
    ResourceRequest,
    Slots,
)

NUMBERS = itertools.count()
BIG, SMALL, OTHER = ("at", "Big"), ("at", "Small"), ("kd", "Small")


def place_of(need, *nodes):
    """Return node, CPUs, GPUs and devices of a trial on empty nodes."""
    slots = Slots({"M": need}, lambda: nodes)
    chosen = slots.choose_next([PendingTrial("x", ("at", "M"))])
    return chosen and (chosen[1].node, chosen[1].cpus, chosen[1].gpus, chosen[1].devices)


def start(slots, *waiting):
    """Start the first trial that may start; return its key."""
    chosen = slots.choose_next([PendingTrial(cell, cell) for cell in waiting])
    if chosen is None:
        return None
    slots.allocations[f"{next(NUMBERS)}"] = chosen[1]
    return chosen[0].key


@pytest.mark.parametrize(
    ("need", "nodes", "expected"),
    [
        (ResourceRequest(), [Node("a", 4)], ("a", 1, 0.0, ())),
        (ResourceRequest(3), [Node("a", 2), Node("b", 3)], ("b", 3, 0.0, ())),
        (ResourceRequest(3), [Node("a", 2), Node("b", 2)], None),  # in all there would be enough
        (ResourceRequest(gpus=1), [Node("a", 9), Node("b", 9, 2)], ("b", 4, 1, (0,))),
        (ResourceRequest(gpus=1), [Node("a", 1, 2)], ("a", 1, 1, (0,))),
        (ResourceRequest(gpus=2), [Node("a", 9, 1), Node("b", 9, 1)], None),
        (ResourceRequest(gpus=2), [Node("a", 9, 1), Node("b", 9, 5)], ("b", 4, 2, (0, 1))),
        (ResourceRequest(gpus=0.4), [Node("a", 8, 2)], ("a", 2, 0.4, (0,))),
        (ResourceRequest(2, 0.4), [Node("a", 1, 2)], None),
        (ResourceRequest(1), [Node("a", 4, 2), Node("b", 4)], ("b", 1, 0.0, ())),  # GPUs stay free
        (
            ResourceRequest(2),
            [Node("a", 8), Node("b", 2)],
            ("b", 2, 0.0, ()),
        ),  # and room for larger ones
        (ResourceRequest(1), [Node("a", 0)], None),
        (ResourceRequest(1), [], None),
    ],
)
def test_the_allocation_of_a_trial(need, nodes, expected):
    assert place_of(need, *nodes) == expected


@pytest.mark.parametrize(
    ("needs", "nodes", "concurrent", "count"),
    [
        ([ResourceRequest()], [Node("a", 2)], None, 2),
        ([ResourceRequest()], [Node("a", 2), Node("b", 3)], None, 5),
        ([ResourceRequest()], [Node("a", 2), Node("b", 3)], 4, 4),
        ([ResourceRequest(gpus=1)], [Node("a", 8, 2), Node("b", 8)], None, 2),
        ([ResourceRequest(gpus=0.5)], [Node("a", 8, 2)], None, 4),
        ([ResourceRequest(gpus=0.3)], [Node("a", 8, 1)], None, 3),
        (
            [ResourceRequest(gpus=0.4)],
            [Node("a", 8, 5)],
            None,
            8,
        ),  # a fifth of each GPU stays free
        ([ResourceRequest(3)], [Node("a", 4), Node("b", 4)], None, 2),
        ([ResourceRequest(gpus=1), ResourceRequest(gpus=0.25)], [Node("a", 8, 2)], None, 5),
        ([ResourceRequest(2), ResourceRequest(1)], [Node("a", 4)], None, 3),
        ([ResourceRequest(gpus=1)], [Node("a", 2, 4)], None, 2),  # CPUs are fewer
    ],
)
def test_how_many_trials_run_at_once(needs, nodes, concurrent, count):
    slots = Slots({str(n): need for n, need in enumerate(needs)}, lambda: nodes, concurrent)
    assert slots.count == count


def test_a_part_of_a_gpu_is_of_one_gpu_and_the_fullest_with_room_comes_first():
    nodes = [Node("a", 16, 2)]
    slots = Slots(
        {"Big": ResourceRequest(1, 1.0), "Small": ResourceRequest(1, 0.6)}, lambda: nodes
    )
    assert [start(slots, SMALL), start(slots, SMALL), start(slots, SMALL)] == [SMALL, SMALL, None]
    slots = Slots(
        {"Big": ResourceRequest(1, 1.0), "Small": ResourceRequest(1, 0.5)}, lambda: nodes
    )
    assert [start(slots, SMALL), start(slots, SMALL), start(slots, BIG)] == [SMALL, SMALL, BIG]
    assert [place.devices for place in slots.allocations.values()] == [(0,), (0,), (1,)]


def test_a_network_has_the_resources_of_the_first_student_that_is_trained_with_it():
    needs = {"A@seed": ResourceRequest(2), "A@strong": ResourceRequest(3), "B": ResourceRequest()}
    slots = Slots(needs, lambda: [Node("a", 4)])
    cpus = {name: slots.smallest_allocation(name).cpus for name in (*needs, "A")}
    assert cpus == {"A@seed": 2, "A@strong": 3, "B": 1, "A": 2}
    assert slots.describe_resources() == "A@seed: 2 CPUs; A@strong: 3 CPUs; B: 1 CPU"


def test_nodes_come_and_go():
    nodes = [Node("a", 2)]
    slots = Slots({"Small": ResourceRequest(2)}, lambda: nodes)
    assert start(slots, SMALL) and start(slots, SMALL) is None
    assert (slots.count, slots.has_room()) == (1, False)
    nodes.append(Node("b", 4))
    assert (slots.count, slots.has_room()) == (3, True)
    assert start(slots, SMALL)
    del nodes[0]  # its trial has no place now, but Ray begins it where it has room
    assert (slots.in_use, slots.count, slots.has_room()) == (1, 2, False)
    slots.release_finished(list(slots.allocations)[1:])
    assert (slots.in_use, slots.count, slots.has_room()) == (1, 2, True)
    nodes.clear()
    assert slots.unplaceable_models() == ["Small"] and slots.smallest_allocation("Small") is None


def test_a_process_on_another_node_is_counted_there():
    nodes = [Node("a", 2), Node("b", 2)]
    slots = Slots({"M": ResourceRequest(2)}, lambda: nodes)
    place = Allocation("a", 2, 2, 0.0)
    slots.allocations["one"] = place
    slots.record_node("one", "b")
    chosen = slots.choose_next([PendingTrial("x", ("at", "M"))])
    assert chosen[1].node == "a"


def test_max_concurrent_limits_running_trials():
    slots = Slots({"Small": ResourceRequest()}, lambda: [Node("a", 9)], max_concurrent=2)
    assert [start(slots, SMALL) for _ in range(3)] == [SMALL, SMALL, None]
    assert not slots.has_room() and slots.count == 2


def test_an_exclusive_device_is_a_whole_gpu_or_the_cpus_of_the_largest_node():
    nodes = [Node("a", 4, 1), Node("b", 8)]
    slots = Slots(
        {"G": ResourceRequest(1, 0.5), "C": ResourceRequest(2), "W": ResourceRequest(1, 1.0)},
        lambda: nodes,
    )
    assert [slots.has_larger_allocation(model) for model in slots.requests] == [True, True, False]
    [gpu, cpu] = [
        slots.choose_next([PendingTrial("x", ("at", model), exclusive=True)])[1]
        for model in ("G", "C")
    ]
    assert (gpu.cpus, gpu.gpus, gpu.threads) == (1, 1.0, 1)
    assert (cpu.node, cpu.cpus, cpu.threads) == ("b", 8, 2)
    assert not Slots({"C": ResourceRequest(2)}, lambda: [Node("a", 2)]).has_larger_allocation("C")


def test_each_cell_passes_a_waiting_trial_twice_and_then_waits_too():
    """There are two CPUs: the big trial needs both, the small ones release one at a time."""
    slots = Slots({"Big": ResourceRequest(2), "Small": ResourceRequest(1)}, lambda: [Node("a", 2)])
    assert start(slots, SMALL) and start(slots, OTHER)
    started = []
    for _ in range(20):
        slots.release_finished(list(slots.allocations)[1:])  # the oldest ends
        started.append(start(slots, BIG, SMALL, OTHER) or start(slots, BIG, OTHER, SMALL))
        if started[-1] == BIG:
            break
    assert started.count(SMALL) == started.count(OTHER) == MAX_PASSES
    assert started[-2:] == [None, BIG]  # one CPU was kept for it meanwhile
    assert BIG not in slots._passes  # it begins to count anew


def test_no_room_is_reserved_on_a_node_that_the_waiting_trial_does_not_need():
    nodes = [Node("a", 4), Node("b", 1)]
    slots = Slots({"Big": ResourceRequest(4), "Small": ResourceRequest(1)}, lambda: nodes)
    slots.allocations["one"] = Allocation("a", 1, 1, 0.0)
    for _ in range(10):  # on b; that is no pass
        assert start(slots, BIG, SMALL) == SMALL
        slots.release_finished(["one"])
    assert not sum(slots._passes[BIG].values())


def test_a_trial_that_fits_on_no_node_blocks_no_other():
    slots = Slots({"Big": ResourceRequest(4), "Small": ResourceRequest(1)}, lambda: [Node("a", 2)])
    for _ in range(10):
        assert start(slots, BIG, SMALL) == SMALL
        slots.release_finished([])


def test_resources_in_words():
    nodes = [Node("a", 8, 2), Node("b", 6, 1)]
    needs = {"A": ResourceRequest(gpus=1), "B": ResourceRequest(1, 0.25)}
    assert (
        Slots(needs, lambda: nodes).describe_resources()
        == "A: 1 GPU, 4 to 6 CPUs; B: 0.25 GPUs, 1 CPU"
    )


# Properties

NODES = st.lists(
    st.builds(Node, st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 3)),
    min_size=1,
    max_size=3,
    unique_by=lambda node: node.name,
)
NEEDS = st.builds(
    ResourceRequest,
    st.one_of(st.none(), st.integers(1, 6)),
    st.sampled_from([0.0, 0.01, 0.25, 0.3333, 0.4, 0.5, 1.0, 2.0]),
)
CELLS = [(method, model) for model in "XYZ" for method in ("at", "kd")]


class Cluster:
    """Trials of three students that start and end on nodes, with its own accounts."""

    def __init__(self, needs, nodes, concurrent):
        self.nodes = list(nodes)
        self.slots = Slots(dict(zip("XYZ", needs, strict=True)), lambda: self.nodes, concurrent)
        self.running: dict[str, tuple[tuple[str, str], Allocation]] = {}
        self.started = Counter({cell: 0 for cell in CELLS})
        self.concurrent = concurrent

    def turns(self):
        return sorted(CELLS, key=lambda cell: self.started[cell])

    def start(self):
        waiting = [PendingTrial(cell, cell) for cell in self.turns()]
        if (chosen := self.slots.choose_next(waiting)) is None:
            return None
        one, place = chosen
        name = f"{one.cell}-{self.started[one.cell]}"
        self.slots.allocations[name] = place
        self.running[name] = one.cell, place
        self.started[one.cell] += 1
        return one.cell

    def end(self, number):
        names = sorted(self.running)
        del self.running[names[number % len(names)]]
        self.slots.release_finished(self.running)

    def free(self):
        """Return the free CPUs and the free share of each GPU, by node."""
        cpus = {node.name: node.cpus for node in self.nodes}
        gpus = {node.name: [1.0] * node.gpus for node in self.nodes}
        for _, place in self.running.values():
            cpus[place.node] -= place.cpus
            for device in place.devices:
                gpus[place.node][device] -= min(1.0, place.gpus)
        return cpus, gpus

    def fits(self, cell):
        """Return True if a trial of the cell fits, computed independently."""
        cpus, gpus = self.free()
        for node in self.nodes:
            if (place := self.slots.requests[cell[1]].allocation_on(node)) is None:
                continue
            each = min(1.0, place.gpus)
            devices = sum(part >= each - 1e-6 for part in gpus[node.name]) if each else 0
            if place.cpus <= cpus[node.name] and devices >= place.gpus:
                return True
        return False


@given(
    st.lists(NEEDS, min_size=3, max_size=3),
    NODES,
    st.one_of(st.none(), st.integers(1, 5)),
    st.lists(st.integers(0, 99), max_size=40),
)
def test_no_node_is_over_full_and_no_device_idle_without_reason(needs, nodes, concurrent, ends):
    cluster = Cluster(needs, nodes, concurrent)
    for number in ends:
        while cluster.start() is not None:
            cpus, gpus = cluster.free()
            assert min(cpus.values()) >= 0
            assert all(part >= -1e-6 for parts in gpus.values() for part in parts)
            assert len(cluster.running) <= (concurrent or 999)
        if len(cluster.running) != concurrent and not any(
            cluster.slots._passes[cell][other] >= MAX_PASSES for cell in CELLS for other in CELLS
        ):
            assert not any(map(cluster.fits, CELLS))
        if cluster.running:
            cluster.end(number)


@given(st.lists(NEEDS, min_size=3, max_size=3), NODES, st.lists(st.integers(0, 99), max_size=120))
def test_no_cell_waits_for_ever(needs, nodes, ends):
    """On one node, while a cell waits, each that has had more starts at most twice."""
    cluster = Cluster(needs, nodes[:1], None)
    able = [cell for cell in CELLS if cell[1] not in cluster.slots.unplaceable_models()]
    since = {cell: Counter() for cell in able}
    for number in ends:
        while (started_cell := cluster.start()) is not None:
            since[started_cell].clear()
            for cell in able:
                if cluster.started[cell] < cluster.started[started_cell] - 1:
                    since[cell][started_cell] += 1
                    assert since[cell][started_cell] <= MAX_PASSES
        if cluster.running:
            cluster.end(number)


@given(st.lists(NEEDS, min_size=3, max_size=3), NODES)
def test_the_count_is_the_number_of_trials_that_can_start(needs, nodes):
    """Tested with one student; with several it depends on the order of cells."""
    slots = Slots({"X": needs[0]}, lambda: nodes)
    count, started = slots.count, 0
    while start(slots, ("at", "X")):
        started += 1
    assert started == count == slots.count and not slots.has_room()


# In a sweep


def test_a_sweep_hands_out_trials_that_fit_and_warns_when_none_can(tmp_path):
    nodes = [Node("n", 2)]
    slots = Slots({"A": ResourceRequest(2), "B": ResourceRequest(1)}, lambda: nodes)
    machinery = SweepHarness(tmp_path / "log.jsonl", methods="at", trials=9, slots=slots)
    first = machinery.suggest()
    assert first.config["config"]["model"] == "A" and first.config["allocation"]["cpus"] == 2
    assert machinery.suggest() is None
    nodes.append(Node("m", 1))  # one that has no room for A
    second = machinery.suggest()
    assert (second.config["config"]["model"], second.config["allocation"]["node"]) == ("B", "m")
    del nodes[0]
    assert machinery.suggest() is None and machinery.suggest() is None
    assert machinery.messages == ["no node has room for trials of A now: they wait until one has"]
    machinery.scheduler.on_trial_error(None, first)  # its node was lost
    nodes.append(Node("o", 3))
    again = machinery.suggest()
    assert again.config["trial_id"] == first.config["trial_id"]
    assert again.config["allocation"]["node"] == "o"
    assert machinery.suggest().config["config"]["model"] == "B"


def test_a_big_trial_starts_in_time_in_a_sweep(tmp_path):
    """B needs one CPU and A two: after two more of B the next trial of A fits."""
    slots = Slots({"A": ResourceRequest(2), "B": ResourceRequest(1)}, lambda: [Node("n", 2)])
    machinery = SweepHarness(
        tmp_path / "log.jsonl", methods="at", trials=9, slots=slots, scheduler="none"
    )
    machinery.train(machinery.suggest(), [0.5] * 9)
    running, order = [], []
    while len(order) < 9:
        while (trial := machinery.suggest()) is not None:
            running.append(trial)
            order.append(trial.config["config"]["model"])
        machinery.train(running.pop(0), [0.5] * 9)
    assert "".join(order).startswith("BBBA")
    assert max(len(run) for run in "".join(order).split("A")) <= 2 + MAX_PASSES


def test_a_spent_time_budget_ends_a_sweep_without_nodes(tmp_path):
    nodes = [Node("n", 2)]
    slots = Slots({"A": ResourceRequest(1)}, lambda: nodes)
    given = {"methods": "at", "models": "A", "trials": None, "time_budget": 10}
    machinery = SweepHarness(tmp_path / "log.jsonl", slots=slots, **given)
    trial = machinery.suggest()
    machinery.report(trial, 1, 0.5)
    nodes.clear()
    machinery.scheduler.on_trial_error(None, trial)
    assert machinery.searcher.suggest("x") is None
    machinery.clock = 11
    assert machinery.searcher.suggest("x") == Searcher.FINISHED


def test_a_node_can_run_trials_if_one_fits_while_it_is_empty():
    nodes = [Node("head", 4), Node("gpu", 2, 1), Node("small", 1)]
    slots = Slots({"A": ResourceRequest(2, 1.0), "B": ResourceRequest(2, 0.0)}, lambda: nodes)
    slots.allocations = {"x": ResourceRequest(2, 1.0).allocation_on(nodes[1])}
    assert [slots.can_run_on(n) for n in ("head", "gpu", "small", "?")] == [
        True,
        True,
        False,
        False,
    ]
    slots.requests.pop("B")
    assert not slots.can_run_on("head") and slots.can_run_on("gpu")
    slots.mark_lost("gpu")
    assert not slots.can_run_on("gpu")
