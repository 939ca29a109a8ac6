"""Admission of nodes."""

import shutil
from types import SimpleNamespace

import pytest

from kdtune.config.data import DataSource
from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.tuning.cluster import admission as cluster
from kdtune.tuning.cluster.admission import (
    NodeAdmission,
    NodeRequirements,
    describe_difference,
    inspect_node,
)


@pytest.fixture
def here(folder, teacher_file):
    return inspect_node(NodeRequirements(DataSource(str(folder)), str(teacher_file), None))


def test_a_node_that_sees_the_same_lacks_nothing(here, folder, teacher_file):
    assert (
        describe_difference(
            here, inspect_node(NodeRequirements(DataSource(str(folder)), str(teacher_file), None))
        )
        is None
    )


def test_a_difference_of_a_node_is_described(here, folder, teacher_file, tmp_path):
    def lack(data, teacher):
        return describe_difference(
            here, inspect_node(NodeRequirements(DataSource(str(data)), str(teacher), None))
        )

    assert lack("/none", teacher_file).startswith("There is no folder /none")
    fewer = shutil.copytree(folder, tmp_path / "fewer")
    next((fewer / "digit-0").iterdir()).unlink()
    assert "its data are 139+30+30 images, or other files" in lack(fewer, teacher_file)
    other = tmp_path / "other.pth"
    assert lack(folder, other) == f"There is no file {other}"
    trouble = {**here, "teacher": "0"}
    assert describe_difference(here, trouble) == "its teacher is not the same file as the driver's"
    assert describe_difference(here, {**here, "torch": "1.0"}).startswith(
        "it has torch 1.0; the driver has "
    )


@pytest.fixture
def asked(monkeypatch, here):
    """Nodes without Ray: what each answers, once it does."""
    answers = {}

    def get(node):
        if isinstance(answers[node], Exception):
            raise answers[node]
        return answers[node]

    def options(scheduling_strategy):
        return SimpleNamespace(remote=lambda question: scheduling_strategy.node_id)

    monkeypatch.setattr(cluster, "_inspect_node", SimpleNamespace(options=options))
    monkeypatch.setattr(cluster.ray, "get", get)
    monkeypatch.setattr(
        cluster.ray, "wait", lambda refs, **_: ([ref for ref in refs if ref in answers], [])
    )
    return answers


def node(number):
    name = f"{number:056x}"
    return {"NodeID": name, "NodeManagerHostname": f"n{number}", "NodeManagerAddress": "10.0.0.1"}


def test_nodes_get_trials_once_they_have_answered_well(asked, here, folder, teacher_file):
    said = []
    sweep = SweepConfig.parse({"name": "x", "data": str(folder), "teacher": str(teacher_file)})
    admission = NodeAdmission(sweep, said.append)
    nodes = [node(number) for number in range(4)]
    names = [n["NodeID"] for n in nodes]
    asked[names[0]] = here
    asked[names[1]] = {"problem": "There is no folder d"}
    admission.wait_for_answers(lambda: nodes[:2])
    assert said == ["the node n1 (10.0.0.1) gets no trials: There is no folder d"]
    assert admission(nodes[:3]) == nodes[:1]  # the third one has not answered
    asked[names[2]] = here
    assert admission(nodes[:3]) == [nodes[0], nodes[2]]
    assert said[1:] == ["the node n2 (10.0.0.1) has joined, and gets trials"]
    asked[names[3]] = RuntimeError("trace\nNo module named 'torch'")
    assert admission(nodes[1:]) == [nodes[2]]
    assert said[2:] == [
        "the node n3 (10.0.0.1) gets no trials: No module named 'torch'",
        "the node n0 (10.0.0.1) is lost",
    ]


def test_a_cluster_without_a_good_node_is_a_sentence(asked, folder):
    admission = NodeAdmission(SweepConfig.parse({"name": "x", "data": str(folder)}), print)
    asked[node(0)["NodeID"]] = {"problem": "There is no folder d"}
    with pytest.raises(UserError, match=r"can run trials; n0 \(10.0.0.1\): There is no folder d"):
        admission.wait_for_answers(lambda: [node(0)])


def test_a_trouble_that_passes_is_no_verdict_and_a_difference_is(
    asked, here, folder, teacher_file
):
    said, now = [], [0.0]
    sweep = SweepConfig.parse({"name": "x", "data": str(folder), "teacher": str(teacher_file)})
    admission = NodeAdmission(sweep, said.append, lambda: now[0])
    nodes = [node(number) for number in range(3)]
    names = [n["NodeID"] for n in nodes]
    asked |= {names[0]: here, names[1]: RuntimeError(""), names[2]: {**here, "torch": "1.0"}}
    admission.wait_for_answers(lambda: nodes)
    assert said[0] == "the node n1 (10.0.0.1) gets no trials: RuntimeError" and len(said) == 2
    now[0] = cluster.RETRY_SECONDS
    assert admission(nodes) == nodes[:1] and len(said) == 2  # said once
    asked |= {names[1]: here, names[2]: here}
    assert admission(nodes) == nodes[:1]
    now[0] = 2 * cluster.RETRY_SECONDS
    assert admission(nodes) == nodes[:2]
    assert said[2:] == ["the node n1 (10.0.0.1) has joined, and gets trials"]
