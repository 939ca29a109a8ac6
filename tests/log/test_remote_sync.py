"""The copy of a sweep's folder: what is in it, who may write it, and who goes on from it."""

import json
import os
import shutil
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from kdtune.errors import RunError, UserError
from kdtune.log.folder import SweepFolder
from kdtune.log.remote_sync import LEASE_FILE, RemoteSync, synced_to
from kdtune.storage.remote import Storage, StorageError

LINE = b'{"event": "complete", "time": 1, "session_seconds": 1}\n'


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder."""
    folder = SweepFolder(tmp_path / "results" / "x")
    folder.path.mkdir(parents=True)
    folder.log_path.write_bytes(LINE)
    return folder


@pytest.fixture
def said():
    return []


def mirror_of(folder, tmp_path, said, **given):
    given = {"lease_seconds": 0.4, "copy_interval": 0.05, **given}
    return RemoteSync(folder, Storage(str(tmp_path / "store")), said.append, **given)


@contextmanager
def mirroring(folder, tmp_path, said, **given):
    """The folder goes on, or begins, with a mirror."""
    with mirror_of(folder, tmp_path, said, **given) as mirror:
        mirror.fetch_latest()
        yield mirror


def until(happened):
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_copy_follows_the_folder(sweep, tmp_path, said):
    for name in ("checkpoints/t/epoch-1.pth", "tensorboard/t/x", ".part/x", "driver.lock"):
        path = sweep.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with mirroring(sweep, tmp_path, said) as mirror:
        copy = mirror.storage
        until(lambda: copy.read("log.jsonl") == LINE)
        with open(sweep.log_path, "ab") as log:
            log.write(LINE)
        (sweep.path / "best").mkdir()
        (sweep.path / "best" / "a.pth").write_bytes(b"network")
        until(lambda: copy.read("best/a.pth") == b"network")
        assert LEASE_FILE in copy.list_files()
        (sweep.path / "best" / "a.pth").unlink()
    assert copy.list_files() == ["log.jsonl"] and copy.read("log.jsonl") == LINE * 2
    assert said == []


def test_another_machine_goes_on_from_the_copy(sweep, tmp_path, said):
    (sweep.path / "best").mkdir()
    (sweep.path / "best" / "a.yaml").write_text("a: 1\n")
    with mirroring(sweep, tmp_path, said):
        pass
    shutil.rmtree(sweep.path)
    with mirroring(sweep, tmp_path, said) as mirror:
        pass
    assert sweep.log_path.read_bytes() == LINE
    assert (sweep.path / "best" / "a.yaml").read_text() == "a: 1\n"
    assert said == [f"{sweep.path} is fetched from {mirror.storage}"]


def test_the_longer_log_counts_and_two_that_differ_are_refused(sweep, tmp_path, said):
    with mirroring(sweep, tmp_path, said) as mirror:
        pass
    sweep.log_path.write_bytes(LINE * 2)
    mirror.fetch_latest()
    assert sweep.log_path.read_bytes() == LINE * 2  # ours was further
    mirror.storage.write("log.jsonl", LINE * 3)
    mirror.fetch_latest()
    assert sweep.log_path.read_bytes() == LINE * 3
    sweep.log_path.write_bytes(LINE * 3 + b'{"event": "comp')  # torn
    mirror.fetch_latest()
    sweep.log_path.write_bytes(LINE * 3 + LINE.replace(b"1", b"2"))
    mirror.storage.write("log.jsonl", LINE * 4)
    with pytest.raises(UserError, match="went on apart from each other: move away the one"):
        mirror.fetch_latest()


def test_where_nothing_is_nothing_goes_on(tmp_path, said):
    folder = SweepFolder(tmp_path / "none")
    with pytest.raises(UserError, match="There is no sweep in .*none or in .*store/none"):
        mirror_of(folder, tmp_path, said).fetch_latest()


def test_a_new_sweep_takes_no_name_that_is_taken(sweep, tmp_path, said):
    mirror_of(sweep, tmp_path, said).require_new()
    with mirroring(sweep, tmp_path, said) as mirror:
        pass
    with pytest.raises(UserError, match="holds a sweep already; .*--storage"):
        mirror.require_new()


def test_a_driver_that_lives_keeps_others_out(sweep, tmp_path, said):
    with mirroring(sweep, tmp_path, said) as mirror:
        mirror._identity["host"] = "elsewhere"  # as it looks from another machine
        until(lambda: b"elsewhere" in (mirror.storage.read(LEASE_FILE) or b""))
        with pytest.raises(UserError, match=f"is being run by process {os.getpid()} on elsew"):
            mirror_of(sweep, tmp_path, said, lease_seconds=30).__enter__()
    assert "waiting for a sign of life of process" in said[0]


@pytest.mark.parametrize("marker", [{"host": "gone", "pid": 1}, {"count": 3}, b"no JSON"])
def test_one_that_gives_no_sign_of_life_does_not(sweep, tmp_path, said, marker):
    content = marker if isinstance(marker, bytes) else json.dumps(marker).encode()
    mirror = mirror_of(sweep, tmp_path, said)
    mirror.storage.write(LEASE_FILE, content)
    started = time.monotonic()
    with mirror:
        assert time.monotonic() - started > 0.4
    assert len(said) == 1


def test_one_that_died_on_this_machine_does_not_for_a_moment(sweep, tmp_path, said):
    mirror = mirror_of(sweep, tmp_path, said, lease_seconds=100)
    mirror.lease_seconds = 2  # of the pause after our own marker
    dead = {**mirror._identity, "pid": 2**22 + 1}
    mirror.storage.write(LEASE_FILE, json.dumps(dead).encode())
    with mirror:
        pass
    assert said == []


def test_two_at_once_do_not_both_run(sweep, tmp_path, said):
    with mirroring(sweep, tmp_path, said) as mirror:
        mirror.storage.write(
            LEASE_FILE, json.dumps({"driver": "b", "pid": 7, "host": "h"}).encode()
        )
        until(lambda: mirror.failure is not None)
        with pytest.raises(RunError, match="is being run by process 7 on h now"):
            mirror.raise_failure()
        sweep.log_path.write_bytes(LINE * 2)
    assert mirror.storage.read("log.jsonl") != LINE * 2  # it is the other's now


def test_a_storage_that_fails_is_said_once_and_caught_up_with(sweep, tmp_path, said, monkeypatch):
    broken, write, put = threading.Event(), Storage.write, Storage.upload

    def fails(verb):
        def call(*arguments):
            if broken.is_set():
                raise StorageError("store cannot be written: it is away")
            return verb(*arguments)

        return call

    monkeypatch.setattr(Storage, "write", fails(write))
    monkeypatch.setattr(Storage, "upload", fails(put))
    with mirroring(sweep, tmp_path, said) as mirror:
        until(lambda: mirror.storage.read("log.jsonl") == LINE)
        broken.set()
        until(lambda: said)
        sweep.log_path.write_bytes(LINE * 2)
        time.sleep(0.3)
        assert mirror.storage.read("log.jsonl") == LINE
        broken.clear()
        until(lambda: mirror.storage.read("log.jsonl") == LINE * 2)
        until(lambda: len(said) == 2)
        assert "it is away; the sweep goes on" in said[0] and "answers again" in said[1]
        broken.set()
        sweep.log_path.write_bytes(LINE * 3)
    assert "it lacks the last of the sweep, which is in" in said[-1]


def test_without_a_storage_there_is_none(sweep):
    with synced_to(sweep, None, False, print) as mirror:
        assert mirror is None


def test_a_storage_is_elsewhere(sweep):
    with pytest.raises(UserError, match="is where the sweep's folder is anyway"):
        RemoteSync(sweep, Storage(str(sweep.path.parent)), print)


@pytest.fixture
def hasty(monkeypatch):
    """Mirrors that copy often, and whose markers expire soon."""
    monkeypatch.setattr(RemoteSync.__init__, "__defaults__", (0.6, 0.05))


def test_what_went_on_apart_is_left_as_it_is(sweep, tmp_path, said, hasty):
    there = Storage(str(tmp_path / "store")).subfolder("x")
    there.write("log.jsonl", LINE * 3)
    sweep.log_path.write_bytes(LINE.replace(b"1", b"2"))
    (sweep.path / "x.yaml").touch()
    with (
        pytest.raises(UserError, match="apart"),
        synced_to(sweep, there_uri(tmp_path), False, print),
    ):
        pass
    assert there.read("log.jsonl") == LINE * 3 and there.list_files() == ["log.jsonl"]


def there_uri(tmp_path):
    return str(tmp_path / "store")


def test_a_fetch_that_is_interrupted_or_slow_leaves_what_is_further(
    sweep, tmp_path, said, hasty, monkeypatch
):
    there = Storage(there_uri(tmp_path)).subfolder("x")
    there.write("log.jsonl", LINE * 3)
    there.write("best/a.pth", b"theirs")
    (sweep.path / "best").mkdir()
    (sweep.path / "best" / "a.pth").write_bytes(b"ours")
    get = Storage.download

    def slow(storage, name, path):
        time.sleep(1)  # longer than a marker lives, and than many copies take
        assert there.read("log.jsonl") == LINE * 3 and there.read("best/a.pth") == b"theirs"
        assert json.loads(there.read(LEASE_FILE))["count"] > 2
        get(storage, name, path)

    def interrupted(storage, name, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "download", interrupted)
    with suppress(KeyboardInterrupt), synced_to(sweep, there_uri(tmp_path), False, print):
        pass
    assert there.list_files() == ["best/a.pth", "log.jsonl"]
    assert there.read("log.jsonl") == LINE * 3 and there.read("best/a.pth") == b"theirs"
    monkeypatch.setattr(Storage, "download", slow)
    puts = []
    monkeypatch.setattr(Storage, "upload", lambda storage, path, name: puts.append(name))
    with synced_to(sweep, there_uri(tmp_path), False, print):
        assert sweep.log_path.read_bytes() == LINE * 3
    assert puts == []  # it is there as it was fetched


def test_a_name_that_is_taken_is_refused_and_left_as_it_is(sweep, tmp_path, said, hasty):
    there = Storage(there_uri(tmp_path)).subfolder("x")
    there.write("log.jsonl", LINE * 3)
    with (
        pytest.raises(UserError, match="holds"),
        synced_to(sweep, there_uri(tmp_path), True, print),
    ):
        pass
    assert there.list_files() == ["log.jsonl"] and there.read("log.jsonl") == LINE * 3


def test_a_long_copy_keeps_the_marker_alive(sweep, tmp_path, said, monkeypatch):
    (sweep.path / "x.yaml").touch()
    put = Storage.upload

    def slow(storage, path, name):
        time.sleep(1)
        put(storage, path, name)

    monkeypatch.setattr(Storage, "upload", slow)
    with mirroring(sweep, tmp_path, said) as mirror:
        mirror._identity["host"] = "elsewhere"
        until(lambda: b"elsewhere" in (mirror.storage.read(LEASE_FILE) or b""))
        with pytest.raises(UserError, match="is being run by"):
            mirror_of(sweep, tmp_path, said).__enter__()


def test_who_comes_meanwhile_keeps_log_and_marker(sweep, tmp_path, said):
    other = json.dumps({"driver": "b", "pid": 7, "host": "h"}).encode()
    with mirroring(sweep, tmp_path, said, copy_interval=60, lease_seconds=60) as mirror:
        mirror.storage.write(LEASE_FILE, other)
    assert mirror.storage.read(LEASE_FILE) == other and mirror.storage.read("log.jsonl") is None
    assert "is being run by process 7 on h now. What is in" in said[0]


def test_who_came_and_went_keeps_its_log(sweep, tmp_path, said):
    with mirroring(sweep, tmp_path, said, copy_interval=60, lease_seconds=2) as mirror:
        mirror.storage.write("log.jsonl", LINE * 5)
        mirror.storage.remove_file(LEASE_FILE)
    assert mirror.storage.read("log.jsonl") == LINE * 5


def test_files_that_vanish_meanwhile_are_passed_over(sweep, tmp_path, said, monkeypatch):
    for name in ("a.yaml", "b.yaml"):
        (sweep.path / name).touch()
    put = Storage.upload

    def removes(storage, path, name):
        if name == "a.yaml":
            path.unlink()
        put(storage, path, name)

    monkeypatch.setattr(Storage, "upload", removes)
    with mirroring(sweep, tmp_path, said) as mirror:
        until(lambda: mirror.storage.read("log.jsonl") == LINE)
    assert mirror.storage.list_files() == ["b.yaml", "log.jsonl"] and said == []


def test_a_mirror_that_ends_by_a_fault_of_its_own_ends_the_sweep(
    sweep, tmp_path, said, monkeypatch
):
    with mirroring(sweep, tmp_path, said) as mirror:
        with monkeypatch.context() as patch:
            patch.setattr(mirror, "_synced_files", lambda: 1 / 0)
            until(lambda: mirror.failure is not None)
        with pytest.raises(RunError, match="not kept up to date any more: ZeroDivisionError"):
            mirror.raise_failure()
    assert mirror.storage.list_files() == ["log.jsonl"]
