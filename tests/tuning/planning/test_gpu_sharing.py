"""Sharing of GPUs: choice and table, and a real measurement on simulated GPUs."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from sweep_harness import EPOCHS, sweep_config

from kdtune.errors import RunError
from kdtune.log.events import EpochFinished
from kdtune.log.folder import SweepFolder
from kdtune.runtime.device import GpuMemory
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.planning import gpu_sharing as sharing
from kdtune.tuning.planning.gpu_sharing import (
    SharingMeasurement,
    choose_gpu_sharing,
    find_fastest_fitting,
    format_measurements,
)
from kdtune.units import BYTES_PER_GB


def memory(used):
    return GpuMemory(40 * BYTES_PER_GB, int(used * BYTES_PER_GB))


def test_the_most_epochs_an_hour_are_taken_that_leave_a_tenth_of_the_memory():
    rows = [
        SharingMeasurement("A", 1, 100, memory(9)),
        SharingMeasurement("A", 2, 180, memory(18)),
        SharingMeasurement("A", 4, 240, memory(36.1)),
    ]
    assert [row.fits_in_memory for row in rows] == [True, True, False]
    assert find_fastest_fitting(rows) is rows[1]
    assert (
        find_fastest_fitting([*rows[:2], SharingMeasurement("A", 4, 170, memory(30))]) is rows[1]
    )
    assert (
        find_fastest_fitting(
            [SharingMeasurement("A", 1, 100), SharingMeasurement("A", 2, 100)]
        ).trials_per_gpu
        == 1
    )
    assert find_fastest_fitting([SharingMeasurement("A", 1, None)]) is None


def test_one_trial_alone_may_have_all_of_the_memory():
    rows = [SharingMeasurement("A", 1, 100, memory(39.9)), SharingMeasurement("A", 2, None)]
    assert find_fastest_fitting(rows) is rows[0]


def test_the_table_marks_the_best_row():
    rows = [
        SharingMeasurement("ResNet50", 1, 1234.4, memory(21)),
        SharingMeasurement("ResNet50", 2, None),
        SharingMeasurement("B", 1, 9.6),
        SharingMeasurement("B", 2, 19.4),
    ]
    assert list(format_measurements(rows)) == [
        "student   together  epochs/h  GB used",
        "ResNet50         1     1,234  21.0 of 40.0  <- 1 GPUs a trial",
        "ResNet50         2   no room  unknown",
        "B                1        10  unknown",
        "B                2        19  unknown  <- 0.5 GPUs a trial",
    ]


def test_nothing_is_measured_that_was_not_asked_for_or_cannot_be():
    said = []
    slots = Slots({"A": ResourceRequest()}, lambda: [Node("n", 2)])
    for gpus in (None, 0.0, "auto"):
        sweep = sweep_config(gpus_per_trial=gpus)
        assert choose_gpu_sharing(sweep, slots, lambda: {}["never"], (), said.append) is slots
    assert said == ["gpus_per_trial is auto, but Ray has no GPU here: trials use CPUs"]


def test_what_does_not_fit_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(
        sharing, "_measure_sharing", lambda model, *rest: [SharingMeasurement(model, 1, None)]
    )
    slots = Slots({"A": ResourceRequest(gpus=1.0)}, lambda: [Node("n", 2, 1)])
    sweep = sweep_config(models="A", gpus_per_trial="auto")
    with pytest.raises(RunError, match="A does not fit into a GPU's memory"):
        choose_gpu_sharing(sweep, slots, lambda: {"A": None}, (), print)


def test_a_gpu_of_each_kind_is_measured_and_the_largest_share_counts(monkeypatch):
    """Rates and memory are those of the parameters; no process trains."""
    fitting = {"A": {"A100": 4, "T4": 2}, "B": {"A100": 1, "T4": 4}}
    measured = []

    def measure(model, config, requests, node, slots, say):
        measured.append((model, node.name))
        for count in (1, 2, 4):
            rate = 100.0 * count if count <= fitting[model][node.gpu_type] else None
            yield SharingMeasurement(model, count, rate, None, node.gpu_type)

    monkeypatch.setattr(sharing, "_measure_sharing", measure)
    nodes = [Node("cpu", 8), Node("a", 8, 2, "A100"), Node("b", 8, 1, "T4"), Node("c", 8, 1, "T4")]
    whole = ResourceRequest(gpus=1.0)
    slots, said = Slots({"A": whole, "B": whole}, lambda: nodes), []
    sweep = sweep_config(models="A,B", gpus_per_trial="auto")
    chosen = choose_gpu_sharing(sweep, slots, lambda: {"A": None, "B": None}, (), said.append)
    assert measured == [("A", "a"), ("A", "c"), ("B", "a"), ("B", "c")]
    assert {model: need.gpus for model, need in chosen.requests.items()} == {"A": 0.5, "B": 1.0}
    assert "A on T4           2       200  unknown  <- 0.5 GPUs a trial" in said
    fitting["B"]["T4"] = 0
    with pytest.raises(RunError, match="B on T4 does not fit into a GPU's memory"):
        choose_gpu_sharing(sweep, slots, lambda: {"A": None, "B": None}, (), said.append)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A log of trials with mixed needs on logical GPUs, and what a measurement said."""
    place = tmp_path_factory.mktemp("logical")
    here = Path(__file__).parents[2]
    paths = os.pathsep.join([str(here), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, str(here / "logical_gpus.py"), str(place)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return SweepFolder(place).load_events(), done.stdout


@pytest.mark.slow
class TestOnLogicalGpus:
    def test_all_gpus_are_busy_with_trials_of_different_needs(self, ran):
        """From the log's times."""
        needs = {"A": 1.0, "B": 0.5, "C": 0.0}
        spans = defaultdict(list)
        for event in ran[0]:
            if isinstance(event, EpochFinished):
                spans[event.trial_id].append(event.time)
        assert len(spans) == 6 and all(len(times) == EPOCHS for times in spans.values())
        moments = sorted(time for times in spans.values() for time in times)
        running = [
            sorted(t[3] for t, times in spans.items() if times[0] <= moment < times[-1])
            for moment in moments
        ]
        assert max(sum(needs[model] for model in models) for models in running) == 2.0
        assert ["A", "B", "B", "C"] in running

    def test_a_process_sees_its_own_gpu_alone_and_has_its_threads(self, ran):
        seen = defaultdict(set)
        for event in ran[0]:
            if isinstance(event, EpochFinished):
                seen[event.model].add((event.device, event.threads))
        assert seen.pop("C") == {("", 1)}
        assert {threads for _, threads in seen["A"]} == {2}
        assert {threads for _, threads in seen["B"]} == {1}
        assert {device for found in seen.values() for device, _ in found} <= {"0", "1"}

    def test_sharing_is_measured_on_them_but_no_memory(self, ran):
        said = ran[1]
        assert "MultiBranchNet trains for 0.2 s at a time on a simulated GPU" in said
        assert "it trains on CPUs, and no memory can be measured" in said
        rates = re.findall(r"^MultiBranchNet +([124]) +([\d,]+)  unknown(.*)$", said, re.MULTILINE)
        assert [together for together, *_ in rates] == ["1", "2"]
        assert max(rates, key=lambda row: int(row[1].replace(",", "")))[2].startswith("  <- ")
        assert re.search(
            r"\{'MultiBranchNet': ResourceRequest\(cpus=None, gpus=(1.0|0.5)\)\}", said
        )
