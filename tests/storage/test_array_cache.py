"""The cache of arrays: built once, complete, and within its limit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from full_disk import file_size_limit

from kdtune.errors import DiskFullError, UserError
from kdtune.storage.array_cache import ArrayCache, CacheProgress, CacheState, cache_folder

GROUP = {"kind": "test", "made_by": 1}
WANTED = {"a": {"name": "a"}, "b": {"name": "b"}}

BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from kdtune.storage.array_cache import ArrayCache

place, seconds = Path(sys.argv[1]), float(sys.argv[2])

def build(names, make):
    array = make("a", (1000,), np.dtype(np.int64))
    array[:500] = 7
    with open(place / "building", "a") as file:
        file.write("x")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (place / "go").exists():
        time.sleep(0.01)
    array[500:] = 7

def report(progress):
    told.append(progress)
    if progress.state == "waiting":
        (place / "waiting").touch()

told = []
cache = ArrayCache(place / "cache")
opened = cache.open_arrays("it", {"kind": "test"}, {"a": {}}, build, report)
print(int(opened["a"].sum()), *(progress.state for progress in told))
"""


def build(names, make):
    for name in names:
        make(name, (2, 3), np.dtype(np.int32))[:] = ord(name)


def fail(names, make):
    raise AssertionError("it was built again")


def open_both(folder, build=build, group=GROUP, **given):
    told = []
    arrays = ArrayCache(folder, **given).open_arrays(
        "two arrays", group, WANTED, build, told.append
    )
    return arrays, [progress.state for progress in told]


@pytest.fixture
def arrays_of(tmp_path):
    """Folders of the two arrays, by name."""
    open_both(tmp_path)
    return {entry.label[-1]: entry.folder for entry in ArrayCache(tmp_path).list_entries()}


def test_built_arrays_are_opened(tmp_path):
    arrays, states = open_both(tmp_path)
    assert states == ["building", "built"]
    assert (arrays["a"] == ord("a")).all() and (arrays["b"] == ord("b")).all()
    again, states = open_both(tmp_path, fail)
    assert states == ["cached"] and again["a"].shape == (2, 3) and again["a"].dtype == np.int32
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)


def test_a_cache_knows_what_it_contains(tmp_path):
    keys = [{**GROUP, **key} for key in WANTED.values()]
    assert not any(ArrayCache(tmp_path).contains(key) for key in keys)
    open_both(tmp_path)
    assert all(ArrayCache(tmp_path).contains(key) for key in keys)
    assert not ArrayCache(tmp_path).contains({**keys[0], "made_by": 2})


def test_a_process_keeps_its_open_arrays_without_the_disk(tmp_path):
    cache = ArrayCache(tmp_path)
    cache.open_arrays("x", GROUP, WANTED, build)
    assert len(cache.prune(0)) == 2
    assert set(cache.open_arrays("x", GROUP, WANTED, fail)) == {"a", "b"}


def test_arrays_that_cannot_be_read_back_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("kdtune.storage.array_cache._load_array", lambda folder: None)
    with pytest.raises(UserError, match="two arrays: what was written to .* cannot be read back"):
        open_both(tmp_path)


def test_an_array_that_another_process_pruned_at_once_is_built_again(tmp_path, monkeypatch):
    built = []

    def build_and_lose(names, make):
        build(names, make)
        built.append(names)
        if len(built) == 1:
            monkeypatch.setattr("kdtune.storage.array_cache._load_array", lose)

    def lose(folder):
        monkeypatch.undo()
        shutil.rmtree(folder)

    assert open_both(tmp_path, build_and_lose)[1][-1] == "built"
    assert [len(names) for names in built] == [2, 1]


def test_another_key_is_another_array(tmp_path):
    open_both(tmp_path)
    with pytest.raises(AssertionError, match="built again"):
        open_both(tmp_path, fail, group={**GROUP, "made_by": 2})


def test_only_missing_arrays_are_built(tmp_path, arrays_of):
    (arrays_of["b"] / "about.json").unlink()
    asked = []
    open_both(tmp_path, lambda names, make: (asked.extend(names), build(names, make)))
    assert asked == ["b"]


def spoil_by_cutting(folder):
    with open(folder / "array.npy", "r+b") as file:
        file.truncate(140)


def spoil_a_byte(folder):
    content = bytearray((folder / "array.npy").read_bytes())
    content[-1] ^= 1
    (folder / "array.npy").write_bytes(content)


def spoil_a_byte_silently(folder):
    """Change a byte as a failing disk does."""
    status = (folder / "array.npy").stat()
    spoil_a_byte(folder)
    os.utime(folder / "array.npy", ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_by_cutting,
        spoil_a_byte,
        lambda folder: (folder / "array.npy").write_bytes(b""),
        lambda folder: (folder / "array.npy").unlink(),
        lambda folder: (folder / "about.json").write_text("[]"),
        lambda folder: (folder / "about.json").write_text("{"),
    ],
)
def test_a_broken_array_is_built_again(tmp_path, arrays_of, spoil):
    spoil(arrays_of["a"])
    arrays, states = open_both(tmp_path)
    assert states == ["building", "built"] and (arrays["a"] == ord("a")).all()
    assert open_both(tmp_path, fail)[1] == ["cached"]


def test_changed_content_is_found_by_its_checksum_only(tmp_path, arrays_of):
    cache = ArrayCache(tmp_path)
    assert cache.remove_damaged() == []
    spoil_a_byte_silently(arrays_of["a"])
    assert open_both(tmp_path, fail)[1] == ["cached"]
    assert [entry.folder for entry in cache.remove_damaged()] == [arrays_of["a"]]
    assert (open_both(tmp_path)[0]["a"] == ord("a")).all()


def test_arrays_that_cannot_be_read_are_listed_and_pruned(tmp_path, arrays_of):
    (arrays_of["a"] / "about.json").write_text('{"what": "x", "crc32": 1}')
    labels = [entry.label for entry in ArrayCache(tmp_path).prune(0)]
    assert sorted(labels) == ["damaged, or from another version", "two arrays: b"]


def test_writing_to_an_opened_array_leaves_the_file_alone(tmp_path):
    arrays, _ = open_both(tmp_path)
    arrays["a"][:] = 0
    assert (open_both(tmp_path, fail)[0]["a"] == ord("a")).all()


def test_a_builder_that_fails_leaves_nothing(tmp_path):
    def half(names, make):
        make("a", (2, 3), np.dtype(np.int32))
        raise UserError("an image cannot be read")

    with pytest.raises(UserError, match="an image cannot be read"):
        open_both(tmp_path, half)
    assert ArrayCache(tmp_path).list_entries() == [] and not list(tmp_path.glob("*.part"))


def start(place, seconds):
    command = [sys.executable, "-c", BUILDER, str(place), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_that_need_one_array_build_it_once(tmp_path):
    first = start(tmp_path, 60)
    wait_for(tmp_path / "building")
    second = start(tmp_path, 60)
    wait_for(tmp_path / "waiting")
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60)[0].split() for process in (first, second)]
    assert outputs == [["7000", "building", "built"], ["7000", "waiting", "cached"]]
    assert (tmp_path / "building").read_text() == "x"


def test_the_files_of_a_killed_builder_are_not_opened_as_an_array(tmp_path):
    killed = start(tmp_path, 60)
    wait_for(tmp_path / "building")
    waiting = start(tmp_path, 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert waiting.communicate(timeout=60)[0].split()[0] == "7000"
    assert (tmp_path / "building").read_text() == "xx"
    assert not list((tmp_path / "cache").glob("*.part"))


def test_pruning_removes_the_files_of_killed_builders_only(tmp_path):
    process, cache = start(tmp_path, 60), ArrayCache(tmp_path / "cache")
    wait_for(tmp_path / "building")
    assert cache.prune(0) == [] and len(list(cache.folder.glob("*.part"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cache.prune(1e9) == [] and not list(cache.folder.glob("*.part"))


def fill(cache, name, size=1000):
    def build(names, make):
        make("x", (size,), np.dtype(np.uint8))[:] = 1

    cache.open_arrays(name, {"kind": "test", "name": name}, {"x": {}}, build)


def age(folder, order):
    """Set the times of last use so that they are in this order."""
    for entry in ArrayCache(folder).list_entries():
        when = 1e9 + order.index(entry.label.removesuffix(": x"))
        os.utime(entry.folder / "about.json", (when, when))


def names(folder):
    return [entry.label.removesuffix(": x") for entry in ArrayCache(folder).list_entries()]


def test_the_least_recently_used_array_is_removed(tmp_path):
    for name in "abc":
        fill(ArrayCache(tmp_path), name)
    age(tmp_path, "cab")
    assert names(tmp_path) == ["c", "a", "b"]
    fill(ArrayCache(tmp_path, max_bytes=3500), "d")  # an array is 1,128 bytes with its header
    assert names(tmp_path) == ["a", "b", "d"]


def test_opening_counts_as_use(tmp_path):
    for name in "abc":
        fill(ArrayCache(tmp_path), name)
    age(tmp_path, "abc")
    fill(ArrayCache(tmp_path), "a")
    assert names(tmp_path) == ["b", "c", "a"]


def test_the_limit_includes_open_arrays(tmp_path):
    cache = ArrayCache(tmp_path, max_bytes=1200)
    for name in "ab":
        fill(cache, name)
    assert names(tmp_path) == ["b"]


def test_arrays_of_one_build_count_for_each_other(tmp_path):
    for name in "xyz":
        fill(ArrayCache(tmp_path), name)

    def build(names, make):
        for name in names:
            make(name, (1000,), np.dtype(np.uint8))[:] = 1

    wanted = {name: {"name": name} for name in "ab"}
    ArrayCache(tmp_path, max_bytes=3400).open_arrays("new", {"kind": "test"}, wanted, build)
    assert len(names(tmp_path)) == 3  # the two, and one of the three


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path):
    open_both(tmp_path / "a")
    [lock] = (tmp_path / "a").glob("*.lock")
    (tmp_path / "b" / lock.name).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written .*; make room"):
        open_both(tmp_path / "b")


def test_pruning_keeps_what_fits(tmp_path):
    for name in "abc":
        fill(ArrayCache(tmp_path), name)
    age(tmp_path, "bca")
    assert [entry.label for entry in ArrayCache(tmp_path).prune(2300)] == ["b: x"]
    assert names(tmp_path) == ["c", "a"]
    assert len(ArrayCache(tmp_path).prune(0)) == 2 and names(tmp_path) == []


def test_a_full_disk_is_an_error(tmp_path):
    with file_size_limit(10_000):
        with pytest.raises(DiskFullError, match=r"cannot be written \(File too large\); make"):
            fill(ArrayCache(tmp_path), "large", size=100_000)
    assert ArrayCache(tmp_path).list_entries() == [] and not list(tmp_path.glob("*.part"))


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be created"):
        fill(ArrayCache(tmp_path / "file" / "cache"), "x")


def test_the_folder_is_the_environments(monkeypatch):
    monkeypatch.setenv("KDTUNE_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("KDTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    assert cache_folder() == Path("/users/kdtune")


def test_progress_is_one_line():
    def describe(state):
        progress = CacheProgress(
            content="images", label="9 images", state=state, num_bytes=2_000_000, seconds=1.25
        )
        return progress.describe()

    assert describe(CacheState.BUILDING) == "building: 9 images"
    assert describe(CacheState.BUILT) == "built in 1.2 s: 9 images, 2.0 MB"
    assert describe(CacheState.CACHED) == "cached: 9 images, 2.0 MB"
    waiting = "waiting for 9 images, which another process is building"
    assert describe(CacheState.WAITING) == waiting
