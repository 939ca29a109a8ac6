"""Sweeps on real clusters of processes on this machine, each node with a cache of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from object_store import object_store
from ray.cluster_utils import Cluster

from kdtune.config.train import TrainConfig
from kdtune.log.event_log import parse_events
from kdtune.log.events import EpochFinished, TrialEnded, TrialProposed, TrialRestarted
from kdtune.log.folder import SweepFolder
from kdtune.storage.array_cache import CACHE_FOLDER_VARIABLE
from kdtune.storage.remote import Storage
from kdtune.training.run import run_training

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from fault_campaign import outcomes  # noqa: E402


class Nodes:
    """A cluster whose head has no CPU; its two workers have one CPU each."""

    def __init__(self, place):
        self.place, self.workers = place, []
        self.cluster = Cluster()
        self.cluster.add_node(num_cpus=0, wait=False)
        self.add(2)

    def add(self, count=1):
        """Add nodes."""
        for _ in range(count):
            cache = self.place / f"cache-{len(self.workers)}"
            variables = {CACHE_FOLDER_VARIABLE: str(cache)}
            self.workers.append(self.cluster.add_node(wait=False, env_vars=variables))
        self.cluster.wait_for_nodes(timeout=60)

    def kill(self, number):
        """Kill all processes of a node."""
        self.cluster.remove_node(self.workers[number], allow_graceful=False)

    def arrays(self, number):
        """Return the arrays in a node's cache."""
        return list((self.place / f"cache-{number}").glob("*/about.json"))


@pytest.fixture(scope="module")
def bucket():
    """Yield a folder in an object store; nodes that start later have its keys, too."""
    with object_store() as uri:
        yield uri


@pytest.fixture(scope="module")
def nodes(bucket, tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.cluster.shutdown()


def start(place, *words):
    """Start a driver as a process."""
    command = [sys.executable, "-m", "kdtune", *words]
    with open(place / "err", "a") as err:
        return subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=err)


def until(driver, sweep, happened):
    """Wait until `happened` is true of the events of a sweep."""
    deadline = time.monotonic() + 300
    while not (sweep.log_path.is_file() and happened(sweep.load_events())):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)


def select(events, event_type):
    return [event for event in events if isinstance(event, event_type)]


def words_of(folder, name, trials, epochs):
    words = f"sweep --name {name} --data {folder} --image-size 8 --methods student"
    words += f" --models MultiBranchNet --no-baselines --trials {trials} --epochs {epochs}"
    return (words + " --scheduler none --setting batch_size=16 --sampler random").split()


@pytest.mark.slow
def test_nodes_die_and_join_and_another_driver_continues_with_the_results_of_one_machine(
    nodes, bucket, folder, tmp_path, monkeypatch
):
    words = words_of(folder, "x", 3, 9999)
    places = ["--address", nodes.cluster.address, "--storage", bucket]
    driver, sweep = start(tmp_path, *words, *places), SweepFolder(tmp_path / "results" / "x")
    store = Storage(bucket).subfolder("x")

    def at_work(events):
        return {e.trial_id for e in select(events, EpochFinished) if e.epoch >= 3}

    until(driver, sweep, lambda events: len(at_work(events)) == 2)  # all slots are busy
    assert all(nodes.arrays(number) for number in range(2))
    kept = [name for name in store.list_files() if name.startswith("checkpoints/")]
    assert {name.split("/")[1] for name in kept} == at_work(sweep.load_events())
    nodes.kill(1)
    until(driver, sweep, lambda events: select(events, TrialRestarted))
    nodes.add()
    until(driver, sweep, lambda events: nodes.arrays(2))
    there, deadline = store.read("log.jsonl"), time.monotonic() + 60
    while store.read("log.jsonl") == there:  # the copy follows
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    shutil.rmtree(sweep.path)

    known, _ = parse_events(store.read("log.jsonl"), sweep.log_path)
    total = str(len(select(known, EpochFinished)) + 20)
    driver = start(tmp_path, "resume", "results/x", *places, "--total-epochs", total)
    assert driver.wait(timeout=400) == 0, (tmp_path / "err").read_text()
    events = sweep.load_events()
    assert events[: len(known)] == known  # nothing is lost
    assert {e.state for e in select(events, TrialEnded)} == {"stopped"}
    assert {e.cause for e in select(events, TrialRestarted)} == {"node_lost"}
    for trial_id, (_, accuracies, *_) in outcomes(sweep).items():
        before = [e for e in select(known, EpochFinished) if e.trial_id == trial_id]
        assert len(accuracies) >= len(before)
    monkeypatch.chdir(tmp_path)
    restart = select(events, TrialRestarted)[0]
    own = [e for e in events if getattr(e, "trial_id", None) == restart.trial_id]
    logged = select(own[: own.index(restart) + 2], EpochFinished)  # one more
    [proposed] = select(own, TrialProposed)
    alone = run_training(TrainConfig.parse({**proposed.config, "epochs": len(logged)}))
    for figure in ("train_loss", "validation_accuracy"):
        alone_too = [row[figure] for row in alone["training_history"]]
        assert [getattr(e, figure) for e in logged] == alone_too
    said = (tmp_path / "err").read_text()
    assert "is lost" in said and "has joined, and gets trials" in said
    assert "from s3://bucket/results/x" in said
    left = store.list_files()
    assert {"log.jsonl", "best/student-MultiBranchNet.pth"} <= set(left)
    assert not [n for n in left if n.startswith("checkpoints") or n == "driver.json"]


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "k" * 32}


class Hosts:
    """Three hosts with addresses and processes of their own, in network namespaces."""

    def __init__(self, place):
        self.place, self.started = place, []
        self.names = [f"kdtune{os.getpid()}-{number}" for number in range(3)]
        self.bridge = f"kd{os.getpid()}"

    def __enter__(self):
        try:
            self._do(f"link add {self.bridge} type bridge")
            self._do(f"link set {self.bridge} up")
            self._do(f"addr add 10.77.0.254/24 dev {self.bridge}")
            for number, name in enumerate(self.names):
                outside = f"{self.bridge}-{number}"
                self._do(f"netns add {name}")
                self._do(f"link add {outside} type veth peer name eth0 netns {name}")
                self._do(f"link set {outside} master {self.bridge} up")
                self._do(f"-n {name} addr add {self.address(number)}/24 dev eth0")
                self._do(f"-n {name} link set eth0 up")
                self._do(f"-n {name} link set lo up")
                self._do(f"-n {name} route add default via 10.77.0.254")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            pytest.skip(f"this machine has no network namespaces for us: {error}")
        return self

    def __exit__(self, *error):
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for words in (*(f"netns del {name}" for name in self.names), f"link del {self.bridge}"):
            subprocess.run(["ip", *words.split()], capture_output=True)

    def _do(self, words):
        subprocess.run(["ip", *words.split()], check=True, capture_output=True)

    def address(self, number):
        return f"10.77.0.{number + 1}"

    def run(self, number, *commands):
        """Start Python modules on a host, one after the other."""
        own = self.place / str(number)
        own.mkdir()
        variables = {
            "RAY_TMPDIR": str(own),
            "HOME": str(own),
            CACHE_FOLDER_VARIABLE: str(own / "cache"),
        }
        inside = ["ip", "netns", "exec", self.names[number], "unshare", "-pf", "--mount-proc"]
        with open(own / "said", "w") as said:
            process = subprocess.Popen(
                [*inside, "sh", "-c", " && ".join(f"{sys.executable} -m {c}" for c in commands)],
                cwd=own, stdout=said, stderr=said,
                env={**os.environ, **variables, **TOKEN}, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process


@pytest.mark.slow
def test_a_sweep_is_driven_from_a_node_without_cpus(folder):
    with tempfile.TemporaryDirectory(dir="/tmp") as place, Hosts(Path(place)) as hosts:
        head = f"{hosts.address(0)}:6379"

        def ray(number, flags):
            own = f"--node-ip-address={hosts.address(number)} --disable-usage-stats"
            return f"ray.scripts.scripts start {own} {flags}"

        worker = "--num-cpus=1 --block"
        hosts.run(0, ray(0, f"--head --port=6379 --include-dashboard=false {worker}"))
        hosts.run(1, ray(1, f"--address={head} {worker}"))
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (hosts.place / "1" / "said").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        words = " ".join(words_of(folder, "x", 2, 2))
        sweep = f"kdtune {words} --address {head} --storage {place}/shared"
        driver = hosts.run(2, ray(2, f"--address={head} --num-cpus=0"), sweep)
        code, said = driver.wait(timeout=400), (hosts.place / "2" / "said").read_text()
        assert code == 0, said
        assert "2 trials at once" in said
        assert not (hosts.place / "2" / "cache").exists()  # no trial ran there
        arrays = [list((hosts.place / str(n) / "cache").glob("*/about.json")) for n in range(2)]
        assert all(arrays)
