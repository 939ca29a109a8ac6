"""Addresses of clusters, and slots on nodes that are made up."""

import socket
from types import SimpleNamespace

import pytest
from sweep_harness import sweep_config

from kdtune.errors import RunError, UserError
from kdtune.tuning.cluster.placement import Node, ResourceRequest
from kdtune.tuning.cluster.session import (
    ADDRESS_VARIABLE,
    LOCAL_ADDRESS,
    LivingNodes,
    find_slots,
    ray_session,
    resolve_address,
)


def node(name, cpus, gpus=0.0, alive=True):
    resources = {"CPU": float(cpus), "memory": 1e9, "node:10.0.0.1": 1.0}
    resources |= {"GPU": gpus} if gpus else {}
    return {"NodeID": name, "Alive": alive, "Resources": resources if alive else {}}


@pytest.fixture
def nodes(monkeypatch):
    """Ray's nodes, to be changed; `looks` is one entry for each time they were looked at."""
    there = Nodes()
    there.looks = []
    monkeypatch.setattr("ray.nodes", lambda: there.looks.append(1) or list(there))
    return there


class Nodes(list):
    """A list with room for a further name."""


def test_nodes_are_looked_at_once_a_second_and_dead_ones_are_none(nodes):
    now = [5.0]
    nodes += [node("a", 4), node("b", 8, 2.0), node("c", 8, alive=False)]
    living = LivingNodes(clock=lambda: now[0])
    assert living() == [Node("a", 4), Node("b", 8, 2)]
    nodes.pop(0)
    now[0] = 5.9
    assert len(living()) == 2 and len(nodes.looks) == 1
    now[0] = 6.0
    assert living() == [Node("b", 8, 2)] and len(nodes.looks) == 2


def test_nodes_have_the_kind_of_gpu_that_ray_found(nodes):
    nodes.append(node("a", 4, 2.0))
    nodes[0]["Resources"]["accelerator_type:A100"] = 1.0
    assert LivingNodes()() == [Node("a", 4, 2, "A100")]


BY_RECIPE = {"models": "A", "recipe": "seed,strong"}


@pytest.mark.parametrize(
    ("given", "gpus", "count"),
    [
        ({}, {"A": 1, "B": 1}, 3),
        ({"gpus_per_trial": "auto"}, {"A": 1, "B": 1}, 3),
        ({"max_concurrent": 1}, {"A": 1, "B": 1}, 1),
        ({"gpus_per_trial": 0.5}, {"A": 0.5, "B": 0.5}, 6),
        ({"gpus_per_trial": 0}, {"A": 0, "B": 0}, 16),
        ({"gpus_per_trial": "A=0.25"}, {"A": 0.25, "B": 1}, 6),
        ({"gpus_per_trial": "A=0.25", **BY_RECIPE}, {"A@seed": 0.25, "A@strong": 0.25}, 12),
        (
            {"gpus_per_trial": {"A@seed": 0.25, "A@strong": 0.25}, **BY_RECIPE},
            {"A@seed": 0.25, "A@strong": 0.25},
            12,
        ),
    ],
)
def test_the_requests_of_trials_on_nodes_with_gpus(nodes, given, gpus, count):
    nodes += [node("a", 8, 2.0), node("b", 4, 1.0), node("c", 4)]
    slots = find_slots(sweep_config(**given), nodes=LivingNodes())
    assert slots.requests == {name: ResourceRequest(None, gpu) for name, gpu in gpus.items()}
    assert slots.count == count


def test_the_cpus_of_a_trial_are_those_of_its_student(nodes):
    nodes.append(node("a", 8, 2.0))
    slots = find_slots(sweep_config(cpus_per_trial="B=2"), nodes=LivingNodes())
    assert slots.requests == {"A": ResourceRequest(None, 1.0), "B": ResourceRequest(2, 1.0)}


def test_without_gpus_a_trial_has_a_cpu(nodes):
    nodes += [node("a", 2), node("b", 3)]
    with pytest.raises(UserError, match="gpus_per_trial is 0.5 for B, but Ray has no GPU here"):
        find_slots(sweep_config(gpus_per_trial="A=0,B=0.5"), nodes=LivingNodes())
    slots = find_slots(sweep_config(), nodes=LivingNodes())
    assert slots.count == 5 and slots.is_uniform_cpu_only


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"cpus_per_trial": 9},
            "cpus_per_trial is 9 for A, but Ray has no node with more than 4 CPUs beside 1 GPU",
        ),
        (
            {"cpus_per_trial": 65, "gpus_per_trial": 0},
            "cpus_per_trial is 65 for A, but Ray has no node with more than 64 CPUs here.",
        ),
    ],
)
def test_more_than_a_node_has_is_a_mistake_however_many_nodes_there_are(nodes, given, sentence):
    nodes += [node("a", 4, 2.0), node("b", 4, 2.0), node("c", 64)]
    with pytest.raises(UserError) as error:
        find_slots(sweep_config(**given), nodes=LivingNodes())
    assert str(error.value).startswith(sentence)


def test_nodes_of_a_session_that_was_joined_before_are_asked(nodes, monkeypatch):
    here = SimpleNamespace(get_node_id=lambda: "a")
    monkeypatch.setattr("ray.get_runtime_context", lambda: here)
    nodes += [node("a", 4)]
    assert find_slots(sweep_config(), print).nodes() == [Node("a", 4)]
    nodes += [node("b", 4)]

    class Asked(list):
        def __init__(self, sweep, say):
            pass

        def wait_for_answers(self, nodes):
            self.extend(nodes())

        def __call__(self, nodes):
            return self[:1]

    monkeypatch.setattr("kdtune.tuning.cluster.session.NodeAdmission", Asked)
    assert find_slots(sweep_config(), print).nodes() == [Node("a", 4)]
    nodes.pop(0)  # the driver's has no CPU
    assert find_slots(sweep_config(), print).nodes() == [Node("b", 4)]


def refusal(address, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("kdtune.tuning.cluster.ray_private.is_ray_node", lambda: False)
    with pytest.raises(UserError) as refused, ray_session(address):
        pass
    return str(refused.value)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", "an address of Ray's client, which cannot run a sweep: give --addr"),
        ("head", "The address head is neither 'auto' nor host:port"),
        ("no-such-host.invalid:6379", "No Ray cluster answers at no-such-host.invalid:6379: "),
        ("127.0.0.1:99999", ":99999: "),
        ("auto", "make it one that runs no trials with 'ray start --address=HEAD:6379 --num-cpus"),
    ],
)
def test_an_address_that_leads_nowhere_is_a_sentence(address, sentence, monkeypatch):
    assert sentence in refusal(address, monkeypatch)


def test_a_machine_that_is_not_a_node_gets_the_commands_that_help(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        sentence = refusal(address, monkeypatch)
    assert f"'ray start --address={address} --num-cpus=0', or submit the sweep with" in sentence
    assert f"{address}: Connection refused." in refusal(address, monkeypatch)


def test_a_start_of_ray_that_takes_too_long_may_be_tried_again(monkeypatch):
    def time_out(**options):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", time_out)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(RunError, match="startup. This machine may be busy; running"):
        with ray_session(LOCAL_ADDRESS):
            pass


def test_the_address_is_that_of_the_flag_then_of_the_environment(monkeypatch):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert resolve_address(None) == LOCAL_ADDRESS and resolve_address("auto") == "auto"
    monkeypatch.setenv(ADDRESS_VARIABLE, "head:6379")
    assert resolve_address(None) == "head:6379" and resolve_address(LOCAL_ADDRESS) == LOCAL_ADDRESS
