"""Disturbances of a running driver from outside: signals, broken disks and lost nodes.

Functions with a driver, its sweep and a fault return False if they came too late.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from fault_campaign import Driver, load_all_events
from fault_injection import Fault
from ray.cluster_utils import Cluster

from kdtune.log.events import EpochFinished, TrialRestarted
from kdtune.log.folder import SweepFolder


def count_epochs(sweep: SweepFolder, after: str | None = None) -> int:
    """Return the number of finished epochs.

    Args:
        sweep: the sweep.
        after: kind of an event, or origin of a trial, before which none counts.
    """
    events = load_all_events(sweep)
    first = 0
    if after is not None:
        names = [{event.kind, getattr(event, "origin", None)} for event in events]
        first = next((i for i, name in enumerate(names) if after in name), len(events))
    return sum(isinstance(event, EpochFinished) for event in events[first:])


def wait_for_epochs(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Wait until this driver has logged some epochs; return False if it ended before."""
    after = fault.get("after")
    num_before = count_epochs(sweep, after)
    while driver.poll() is None:
        if count_epochs(sweep, after) >= num_before + fault["epochs"]:
            return True
        time.sleep(0.03)
    return False


def kill_later(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Kill a driver after some seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(fault["seconds"])
        return False
    driver.kill()
    return True


def kill_after_epochs(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Kill the driver, once it has logged some epochs."""
    if is_there := wait_for_epochs(driver, sweep, fault):
        driver.kill()
    return is_there


def terminate_group(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Send SIGTERM to the process group of a driver, once it has logged some epochs."""
    if is_there := wait_for_epochs(driver, sweep, fault):
        os.killpg(driver.pid, signal.SIGTERM)
    return is_there


def find_child_processes(pid: int, pattern: str) -> list[psutil.Process]:
    """Return descendants of a process whose command contains a word."""
    matching = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if pattern in " ".join(process.cmdline()):
                matching.append(process)
    return matching


def kill_child(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Kill a process below the driver, once it has logged some epochs."""
    if wait_for_epochs(driver, sweep, fault):
        for process in find_child_processes(driver.pid, fault["part"])[:1]:
            process.kill()
            return True
    return False


def kill_while_view_is_built(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Kill the process that builds a view ahead, its trial, or the driver, meanwhile."""
    while driver.poll() is None:
        with contextlib.suppress(psutil.Error):
            for builder in find_child_processes(driver.pid, "kdtune.data.augmented_views"):
                time.sleep(fault["seconds"])
                trial = builder.ppid()  # raises if the view is complete
                victims = {"builder": builder.pid, "trial": trial, "driver": driver.pid}
                os.kill(victims[fault["part"]], signal.SIGKILL)
                return True
        time.sleep(0.1)
    return False


def restarted(reason: str) -> Callable[[SweepFolder], bool]:
    """Return a function that says if the log of a sweep has a restart with such a reason."""

    def has_restart(sweep: SweepFolder) -> bool:
        restarts = (e for e in sweep.load_events() if isinstance(e, TrialRestarted))
        return any(reason in event.reason for event in restarts)

    return has_restart


# Files and disks


def append_garbage(sweep: SweepFolder, fault: Fault) -> None:
    """Append bytes to the log."""
    with open(sweep.log_path, "ab") as log:
        log.write(bytes(fault["bytes"]))


def tear_log(sweep: SweepFolder, fault: Fault) -> None:
    """Cut a share off the last line of the log."""
    content = sweep.log_path.read_bytes()
    last = len(content) - (content.rstrip(b"\n").rfind(b"\n") + 1)
    os.truncate(sweep.log_path, len(content) - 1 - int(fault["share"] * (last - 1)))


def break_storage(driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Put a file in the place of the storage; kill the driver some epochs later, if it lives."""
    if not wait_for_epochs(driver, sweep, fault):
        return False
    storage = _storage_of(sweep)
    storage.rename(storage.with_name("moved"))
    storage.touch()
    kill_after_epochs(driver, sweep, {"epochs": fault["later"]})
    return True


def restore_storage(sweep: SweepFolder, fault: Fault) -> None:
    """Put the storage back."""
    _storage_of(sweep).unlink()
    _storage_of(sweep).with_name("moved").rename(_storage_of(sweep))


def is_copied(sweep: SweepFolder) -> bool:
    """Return True if the storage has the whole log."""
    copy = _storage_of(sweep) / sweep.path.name / sweep.log_path.name
    return copy.read_bytes() == sweep.log_path.read_bytes()


def _storage_of(sweep: SweepFolder) -> Path:
    return sweep.path.parents[1] / "storage"


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[bool]:
    """Mount a file system of this size while the block runs; yield False if that is impossible."""
    folder.mkdir(parents=True)
    is_mounted = _mount(folder, f"size={size}")
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill_tmpfs(folder: Path, driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
    """Leave no room in a file system when the log has begun, if the fault says so."""
    while fault["shrinks"] and driver.poll() is None:
        if sweep.log_path.is_file():
            status = os.statvfs(folder)
            used = (status.f_blocks - status.f_bfree) * status.f_frsize
            return _mount(folder, f"remount,size={used}")
        time.sleep(0.03)
    return False


def enlarge_tmpfs(folder: Path, sweep: SweepFolder, fault: Fault) -> None:
    """Give a file system the size that the fault has for later."""
    assert _mount(folder, f"remount,size={fault['later']}")


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    with contextlib.suppress(OSError):  # there is no such command
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


# Nodes


class Nodes:
    """A cluster of processes on this machine: a head without CPUs, and two nodes that run trials.

    Args:
        folder: for the nodes' caches; each has its own.
    """

    def __init__(self, folder: Path):
        self._folder, self._caches, self._numbers = folder, dict[Any, Path](), count(1)
        self._cluster = Cluster(shutdown_at_exit=False)
        self._cluster.add_node(num_cpus=0, wait=False)
        self._add(2)

    @property
    def address(self) -> str:
        """Host and port of the head."""
        return str(self._cluster.address)

    def _add(self, number: int) -> None:
        for _ in range(number):
            cache = self._folder / f"cache-{next(self._numbers)}"
            variables = {"KDTUNE_CACHE": str(cache)}
            self._caches[self._cluster.add_node(num_cpus=2, env_vars=variables)] = cache

    def _replace(self, nodes: list[Any]) -> None:
        for node in nodes:
            self._cluster.remove_node(node, allow_graceful=False)
            del self._caches[node]
        self._add(len(nodes))

    def kill_during_pass(self, driver: Driver, sweep: SweepFolder, fault: Fault) -> bool:
        """Kill a node while the teacher computes its targets there, and add another one.

        After ``epochs``, if the fault has some, the nodes with targets are killed, too, so that
        the process of a trial computes them.
        """
        if fault["epochs"]:
            if not wait_for_epochs(driver, sweep, fault):
                return False
            self._replace([node for node, cache in self._caches.items() if _has_targets(cache)])
        while driver.poll() is None:
            if nodes := [node for node, cache in self._caches.items() if _is_in_pass(cache)]:
                self._replace(nodes)
                return True
            time.sleep(0.001)
        return False

    def shutdown(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


def _is_in_pass(cache: Path) -> bool:
    return any(path.parent.name != "pixels" for path in cache.glob("*.part/*/array.npy"))


def _has_targets(cache: Path) -> bool:
    return len(list(cache.glob("*/about.json"))) > 2  # besides training and validation images
