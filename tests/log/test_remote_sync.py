"""The copy of a sweep's folder in a storage, and the marker of its driver."""

import json
import os
import shutil
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from event_logs import sweep_opening

from kdtune.errors import RunError, UserError
from kdtune.log import remote_sync
from kdtune.log.folder import SweepFolder
from kdtune.log.remote_sync import MARKER_FILE, synced_to
from kdtune.storage.remote import Storage, StorageError

LINE = sweep_opening().model_dump_json().encode() + b"\n"
OTHER_LINE = LINE.replace(b"0.0", b"2.0")
OTHER_MARKER = json.dumps({"driver": "b", "pid": 7, "host": "h"}).encode()


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(remote_sync, "MARKER_TIMEOUT_SECONDS", 0.4)
    monkeypatch.setattr(remote_sync, "LAST_COPY_DELAYS_SECONDS", (0, 0))


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


@pytest.fixture
def copy(tmp_path):
    """The storage's folder of the sweep."""
    return Storage(str(tmp_path / "store")).subfolder("x")


@contextmanager
def synced(folder, said, is_new=False):
    uri = str(folder.path.parent.parent / "store")
    with synced_to(folder, uri, is_new, said.append) as sync:
        yield sync


def test_the_copy_follows_the_folder(sweep, copy, said):
    for name in ("checkpoints/t/epoch-1.pth", "tensorboard/t/x", ".part/x", "driver.lock"):
        path = sweep.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with synced(sweep, said) as sync:
        sync.sync_if_due()
        assert copy.list_files() == [MARKER_FILE, "log.jsonl"] and copy.read("log.jsonl") == LINE
        sweep.log_path.write_bytes(LINE * 2)
        (sweep.path / "best").mkdir()
        (sweep.path / "best" / "a.pth").write_bytes(b"network")
        sync.sync_if_due()  # too soon
        assert copy.read("log.jsonl") == LINE
        sync.sync()
        assert copy.read("log.jsonl") == LINE * 2 and copy.read("best/a.pth") == b"network"
        (sweep.path / "best" / "a.pth").unlink()
    assert copy.list_files() == ["log.jsonl"] and said == []


def test_only_what_changed_is_copied_and_the_log_is_the_last(sweep, said, monkeypatch):
    for name in ("a.yaml", "z.yaml"):
        (sweep.path / name).touch()
    uploads, upload = [], Storage.upload

    def recorded(storage, path, name):
        uploads.append(name)
        upload(storage, path, name)

    monkeypatch.setattr(Storage, "upload", recorded)
    with synced(sweep, said) as sync:
        sync.sync()
        assert sorted(uploads[:2]) == ["a.yaml", "z.yaml"] and uploads[2:] == ["log.jsonl"]
        sync.sync()
    assert len(uploads) == 3


def test_another_machine_resumes_from_the_copy(sweep, copy, said):
    (sweep.path / "best").mkdir()
    (sweep.path / "best" / "a.yaml").write_text("a: 1\n")
    with synced(sweep, said):
        pass
    copy.write("checkpoints/t/epoch-1.pth", b"")
    shutil.rmtree(sweep.path)
    with synced(sweep, said):
        pass
    assert sweep.log_path.read_bytes() == LINE and not sweep.checkpoints_folder.exists()
    assert (sweep.path / "best" / "a.yaml").read_text() == "a: 1\n"
    assert said == [f"fetching {sweep.path} from {copy}"]


def test_the_longer_log_is_used_and_different_ones_are_refused(sweep, copy, said):
    with synced(sweep, said):
        sweep.log_path.write_bytes(LINE * 2)
    sweep.log_path.write_bytes(LINE * 3)
    with synced(sweep, said):
        assert sweep.log_path.read_bytes() == LINE * 3  # ours was longer
    assert copy.read("log.jsonl") == LINE * 3
    copy.write("log.jsonl", LINE * 4)
    with synced(sweep, said):
        assert sweep.log_path.read_bytes() == LINE * 4
    sweep.log_path.write_bytes(LINE * 4 + b'{"kind": "comp')  # torn
    with synced(sweep, said):
        pass
    sweep.log_path.write_bytes(LINE * 4 + OTHER_LINE)
    copy.write("log.jsonl", LINE * 5)
    with pytest.raises(UserError, match="independently .* away the copy"), synced(sweep, said):
        pass
    assert copy.read("log.jsonl") == LINE * 5 and copy.list_files() == ["log.jsonl"]


def test_a_folder_that_is_removed_leaves_the_copy_as_it_was(sweep, copy, said):
    (sweep.path / "a.yaml").touch()
    with synced(sweep, said) as sync:
        sync.sync()
        shutil.rmtree(sweep.path)
    assert copy.list_files() == ["a.yaml", "log.jsonl"]


def test_without_a_sweep_nothing_is_resumed(tmp_path, said):
    folder = SweepFolder(tmp_path / "results" / "none")
    with pytest.raises(UserError, match=r"no sweep in .*none or in .*store/none"):
        with synced(folder, said):
            pass


def test_a_new_sweep_needs_a_new_name(sweep, copy, said):
    with synced(sweep, said, is_new=True):
        pass
    sweep.log_path.write_bytes(LINE * 2)
    with pytest.raises(UserError, match="already holds a sweep; .*--storage"):
        with synced(sweep, said, is_new=True):
            pass
    assert copy.read("log.jsonl") == LINE and copy.list_files() == ["log.jsonl"]


def test_a_driver_that_renews_its_marker_keeps_others_out(sweep, said, monkeypatch):
    with synced(sweep, said) as sync:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            timer = threading.Timer(0.15, sync._renew_marker)
            timer.start()
            with pytest.raises(UserError, match=rf"is being run by process {os.getpid()} on "):
                with synced(sweep, said):
                    pass
            timer.join()
        sync.sync()  # it still has its marker
    assert len(said) == 1 and "waiting to see whether the sweep is still run by process" in said[0]


@pytest.mark.parametrize("marker", [OTHER_MARKER, b'{"count": 3}', b"no JSON"])
def test_a_marker_that_nobody_renews_is_replaced(sweep, copy, said, marker):
    copy.write(MARKER_FILE, marker)
    started = time.monotonic()
    with synced(sweep, said):
        assert time.monotonic() - started > 0.4
    assert len(said) == 1


def test_the_marker_of_a_driver_that_died_here_is_replaced_at_once(sweep, copy, said):
    dead = {"driver": "b", "pid": 2**22 + 1, "host": socket.gethostname()}
    copy.write(MARKER_FILE, json.dumps(dead).encode())
    with synced(sweep, said):
        pass
    assert said == []


def test_a_driver_stops_and_writes_nothing_once_another_one_has_the_marker(sweep, copy, said):
    with pytest.raises(RunError, match="is being run by process 7 on h now"):
        with synced(sweep, said) as sync:
            copy.write(MARKER_FILE, OTHER_MARKER)
            sweep.log_path.write_bytes(LINE * 2)
            sync.sync()
    assert str(sync.failure).endswith("now.")
    assert copy.read(MARKER_FILE) == OTHER_MARKER and copy.read("log.jsonl") is None
    assert said == []


@pytest.mark.parametrize("marker", [OTHER_MARKER, None])  # None: it came and went
def test_a_driver_that_ends_leaves_log_and_marker_of_another_one(sweep, copy, said, marker):
    with synced(sweep, said):
        copy.write("log.jsonl", LINE * 5)
        copy.remove_file(MARKER_FILE)
        if marker is not None:
            copy.write(MARKER_FILE, marker)
    assert copy.read("log.jsonl") == LINE * 5 and copy.read(MARKER_FILE) == marker
    assert "now. What is in" in said[0]


def test_a_failure_of_the_storage_is_reported_once_and_made_up_for(sweep, copy, said, monkeypatch):
    broken, upload = threading.Event(), Storage.upload

    def fails(storage, path, name):
        if broken.is_set():
            raise StorageError("store cannot be written: it is away")
        upload(storage, path, name)

    monkeypatch.setattr(Storage, "upload", fails)
    with synced(sweep, said) as sync:
        sync.sync()
        broken.set()
        sweep.log_path.write_bytes(LINE * 2)
        sync.sync()
        sync.sync()
        assert copy.read("log.jsonl") == LINE
        broken.clear()
        sync.sync()
        assert copy.read("log.jsonl") == LINE * 2
        assert "it is away; the sweep continues" in said[0] and "reachable again" in said[1]
        broken.set()
        sweep.log_path.write_bytes(LINE * 3)
    assert len(said) == 3 and "it lacks the last of the sweep, which is in" in said[2]


def test_a_failure_of_the_storage_at_the_start_is_an_error(sweep, said, monkeypatch):
    def fails(storage, name):
        raise StorageError("store cannot be read: it is away")

    monkeypatch.setattr(Storage, "read", fails)
    with pytest.raises(UserError, match="it is away; check that it exists"), synced(sweep, said):
        pass


def test_without_a_storage_there_is_no_copy(sweep):
    for uri in (None, "none"):
        with synced_to(sweep, uri, False, print) as sync:
            assert sync is None


def test_the_parent_of_the_sweeps_folder_is_no_storage(sweep):
    with pytest.raises(UserError, match="is the sweep's own folder"):
        with synced_to(sweep, str(sweep.path.parent), True, print):
            pass


def test_a_download_that_is_interrupted_leaves_the_copy_as_it_was(sweep, copy, said, monkeypatch):
    copy.write("log.jsonl", LINE * 3)
    copy.write("best/a.pth", b"theirs")
    (sweep.path / "best").mkdir()
    (sweep.path / "best" / "a.pth").write_bytes(b"ours")

    def interrupted(storage, name, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "download", interrupted)
        with suppress(KeyboardInterrupt), synced(sweep, said):
            pass
    assert copy.list_files() == ["best/a.pth", "log.jsonl"]
    assert copy.read("log.jsonl") == LINE * 3 and copy.read("best/a.pth") == b"theirs"
    monkeypatch.setattr(Storage, "upload", lambda storage, path, name: pytest.fail(name))
    with synced(sweep, said):
        assert sweep.log_path.read_bytes() == LINE * 3
    assert (sweep.path / "best" / "a.pth").read_bytes() == b"theirs"
