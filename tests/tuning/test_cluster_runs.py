"""Sweeps on real clusters: processes of Ray's on this machine, each node with a cache of its own."""

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from kdtune.cache import VARIABLE
from kdtune.results import SweepFolder
from kdtune.storage import Storage
from kdtune.tuning.sweep import run_sweep

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from faults import outcomes  # noqa: E402


class Nodes:
    """A cluster whose head computes nothing; its workers have one CPU each."""

    def __init__(self, place):
        self.place, self.workers = place, []
        self.cluster = Cluster()
        self.cluster.add_node(num_cpus=0, wait=False)
        self.add(3)

    def add(self, count=1):
        """Add nodes."""
        for _ in range(count):
            cache = self.place / f"cache-{len(self.workers)}"
            variables = {VARIABLE: str(cache)}
            self.workers.append(self.cluster.add_node(wait=False, env_vars=variables))
        self.cluster.wait_for_nodes(timeout=60)

    def kill(self, number):
        """Kill all processes of a node."""
        self.cluster.remove_node(self.workers[number], allow_graceful=False)

    def views(self, number):
        """Arrays in a node's cache."""
        return list((self.place / f"cache-{number}").glob("*/about.json"))


@pytest.fixture(scope="module")
def bucket():
    """The URI of an empty bucket on an object store of its own; nodes have its keys, too."""
    keys = pytest.MonkeyPatch()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        keys.setenv(f"AWS_{name}", value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            made = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            urllib.request.urlopen(made).close()
            break
        except OSError:
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.1)
    yield f"s3://bucket/results?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.kill()
    server.wait()
    keys.undo()


@pytest.fixture(scope="module")
def nodes(bucket, tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.cluster.shutdown()


def start(place, *words):
    """Start a driver as a process."""
    err = open(place / "err", "a")
    return subprocess.Popen(
        [sys.executable, "-m", "kdtune", *words], cwd=place, stdout=subprocess.DEVNULL, stderr=err
    )


def until(driver, sweep, happened):
    """Wait until the events of a sweep are such."""
    deadline = time.monotonic() + 120
    while not (sweep.log.is_file() and happened(sweep.events())):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)


def kinds(events, kind):
    return [event for event in events if event["event"] == kind]


def words_of(folder, name, trials, epochs):
    words = f"sweep --name {name} --data {folder} --image-size 8 --methods student"
    words += f" --models MultiBranchNet --no-baselines --trials {trials} --epochs {epochs}"
    return (words + " --scheduler none --setting batch_size=16 --sampler random").split()


@pytest.mark.slow
def test_nodes_die_and_come_and_another_driver_goes_on(nodes, bucket, folder, tmp_path):
    epochs = 60
    words = words_of(folder, "x", 4, epochs)
    places = ["--address", nodes.cluster.address, "--storage", bucket]
    driver, sweep = start(tmp_path, *words, *places), SweepFolder(tmp_path / "results" / "x")

    def trained(events, epoch, trials):
        far = {e["trial_id"] for e in kinds(events, "epoch") if e["epoch"] >= epoch}
        return len(far) >= trials

    until(driver, sweep, lambda events: trained(events, 3, 3))  # all three work
    assert all(nodes.views(number) for number in range(3))
    nodes.kill(2)
    until(driver, sweep, lambda events: kinds(events, "restarted"))
    nodes.add()
    until(driver, sweep, lambda events: nodes.views(3))
    time.sleep(6)  # the copy follows
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    shutil.rmtree(sweep.path)

    driver = start(tmp_path, "resume", "results/x", *places)
    assert driver.wait(timeout=200) == 0, (tmp_path / "err").read_text()
    events = sweep.events()
    assert [e["state"] for e in kinds(events, "ended")] == ["finished"] * 4
    for trial_id, (_, accuracies, *_) in outcomes(sweep).items():
        assert len(accuracies) == epochs, trial_id
    assert {e["cause"] for e in kinds(events, "restarted")} == {"lost"}
    said = (tmp_path / "err").read_text()
    assert "is lost" in said and "has joined, and gets trials" in said
    assert "is fetched from s3://bucket/results/x" in said
    left = Storage(bucket).at("x").names()
    assert {"log.jsonl", "best/student-MultiBranchNet.pth"} <= set(left)
    assert not [n for n in left if n.startswith("checkpoints") or n == "driver.json"]


@pytest.mark.slow
def test_one_trial_at_a_time_gives_the_figures_of_one_machine(
    ray_session, nodes, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    driver = start(
        tmp_path, *words_of(folder, "there", 2, 3), "--concurrent", "1",
        "--address", nodes.cluster.address,
    )  # fmt: skip
    here = run_sweep(
        {
            "name": "here", "data": str(folder), "image_size": 8, "methods": ["student"],
            "models": ["MultiBranchNet"], "baselines": False, "trials": 2, "epochs": 3,
            "scheduler": "none", "settings": {"batch_size": 16}, "sampler": "random",
            "concurrent": 1, "cpus_per_trial": 1,
        }
    )  # fmt: skip
    assert driver.wait(timeout=200) == 0, (tmp_path / "err").read_text()
    assert outcomes(SweepFolder(tmp_path / "results" / "there")) == outcomes(here)
