"""Augmented views that several processes make."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtune.data import augmented_views
from kdtune.data.augmented_views import (
    IMAGES_PER_CHUNK,
    count_idle_cores,
    count_processes,
    fill_in_processes,
    fill_view,
)
from kdtune.data.transforms import augment_images
from kdtune.errors import RunError


def mapped(path, count, values=None):
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 8, 8))
    if values is not None:
        array[:] = values
    return array


def random_images(path, count):
    return mapped(path, count, np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8)))


def expected_view(images, base_seed):
    """Augment each image in a call of its own."""
    single = (torch.from_numpy(image[None].copy()) for image in images)
    return np.concatenate([augment_images(x, [base_seed + i]) for i, x in enumerate(single)])


def cores(monkeypatch, count):
    monkeypatch.setattr(augmented_views, "limit_workers", lambda n=count: min(n, count))


def test_processes_give_each_image_what_its_seed_gives(tmp_path):
    count = 2 * IMAGES_PER_CHUNK + 5  # so the shares of two processes differ
    images, out = random_images(tmp_path / "a.npy", count), mapped(tmp_path / "b.npy", count)
    fill_in_processes(images, out, 7, processes=2, niceness=1)
    assert np.array_equal(out, expected_view(images, 7))


def test_a_process_that_fails_says_why(tmp_path):
    images, out = (mapped(tmp_path / f"{name}.npy", 1) for name in "ab")
    (tmp_path / "b.npy").write_bytes(b"no array")
    with pytest.raises(RunError, match="A view could not be built: .*pickle"):
        fill_in_processes(images, out, 0, processes=1)


@pytest.mark.parametrize("problem", [OSError, None])
def test_what_processes_cannot_do_is_done_here(tmp_path, monkeypatch, problem):
    def fail(*_, **__):
        if problem:
            raise problem
        return subprocess.CompletedProcess([], -9, stderr="")

    monkeypatch.setattr(augmented_views, "count_processes", lambda *_: 2)
    monkeypatch.setattr("subprocess.run", fail)
    images, out = random_images(tmp_path / "a.npy", 70), mapped(tmp_path / "b.npy", 70)
    fill_view(images, out, 3)
    assert np.array_equal(out, expected_view(images, 3))


def test_a_small_view_starts_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", None)
    images, out = random_images(tmp_path / "a.npy", 70), mapped(tmp_path / "b.npy", 70)
    fill_view(images, out, 3)
    assert np.array_equal(out, expected_view(images, 3))


def test_processes_start_where_they_save_more_than_their_start(monkeypatch):
    for name, seconds in {"SECONDS_PER_IMAGE": 1e-3, "SECONDS_PER_PIXEL": 1e-5}.items():
        monkeypatch.setattr(augmented_views, name, seconds)
    monkeypatch.setattr(augmented_views, "START_SECONDS", 3.0)
    cores(monkeypatch, 4)  # an image of 10 px takes 2 ms, and three quarters of it can be saved
    assert count_processes(2001, 10) == 4 and count_processes(1999, 10) == 0
    cores(monkeypatch, 2)
    assert count_processes(3001, 10) == 2 and count_processes(2999, 10) == 0
    cores(monkeypatch, 1)
    assert count_processes(10**9, 10) == 0


@pytest.mark.parametrize(
    ("ticks", "idle"),
    [  # user, nice, system, idle, then others, summed over 8 cores
        ((600, 0, 200, 0, 0, 0, 0, 0), 0),
        ((350, 0, 50, 400, 0, 0, 0, 0), 4),
        ((350, 300, 50, 100, 0, 0, 0, 0), 4),  # what runs at low priority makes room
        ((300, 0, 0, 100, 100, 100, 100, 100), 1),
        ((0, 0, 0, 800, 0, 0, 0, 0), 6),  # this process may use no more
    ],
)
def test_idle_cores_are_those_of_the_node_that_this_process_may_use(monkeypatch, ticks, idle):
    before = (1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000)
    after = (was + now for was, now in zip(before, ticks, strict=True))
    files = [f"cpu  {' '.join(map(str, times))} 9 9\ncpu0 1\n" for times in (before, after)]
    monkeypatch.setattr(
        augmented_views, "open", lambda path: io.StringIO(files.pop(0)), raising=False
    )
    monkeypatch.setattr(augmented_views, "IDLE_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    cores(monkeypatch, 6)
    assert count_idle_cores() == idle


def test_no_core_counts_as_idle_where_the_system_does_not_tell(monkeypatch):
    def refuse(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(augmented_views, "open", refuse, raising=False)
    assert count_idle_cores() == 0


FILLER = """
import sys
import numpy as np
from kdtune.data.augmented_views import fill_in_processes

images, out = (np.load(path, mmap_mode="r+") for path in sys.argv[1:])
fill_in_processes(images, out, 0, processes=2)
"""  # without a guard, which processes of `multiprocessing` would need


def processes_with(argument):
    """Return the processes that have an argument, which are not this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(argument) in (folder / "cmdline").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:  # it has ended
            pass
    return found


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the processes")
def test_processes_end_when_the_caller_is_killed(tmp_path):
    count, path = 300_000, str(tmp_path / "b.npy")  # 48 s of a core
    mapped(tmp_path / "a.npy", count)
    out = mapped(path, count)
    out[:, 0, 0, 0] = 9
    script = tmp_path / "fill.py"
    script.write_text(FILLER)
    process = subprocess.Popen([sys.executable, script, tmp_path / "a.npy", path])
    wait_until(lambda: out[0, 0, 0, 0] != 9 and out[IMAGES_PER_CHUNK, 0, 0, 0] != 9)  # both fill
    assert len(processes_with(path)) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not processes_with(path))
    assert out[-1, 0, 0, 0] == 9
