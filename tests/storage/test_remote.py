"""A storage's folder, on a disk and in an object store."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
from object_store import object_store

from kdtune.errors import UserError
from kdtune.storage.remote import Storage, StorageError


@pytest.fixture(scope="module")
def bucket():
    with object_store() as uri:
        yield uri


@pytest.fixture(params=["folder", "file", "s3"])
def storage(request, bucket, tmp_path):
    """An empty folder."""
    places = {"folder": str(tmp_path / "a"), "file": f"file://{tmp_path}/b", "s3": bucket}
    return Storage(places[request.param]).subfolder(f"{os.getpid()}/{time.time_ns()}")


def test_files_are_written_read_listed_and_removed(storage, tmp_path):
    assert storage.list_files() == [] and storage.read("x/y") is None
    storage.write("x/y", b"first")
    storage.write("x/y", b"second")
    (tmp_path / "file").write_bytes(bytes(9_000_000))
    storage.upload(tmp_path / "file", "z")
    storage.subfolder("x").write("w", b"")
    assert storage.list_files() == ["x/w", "x/y", "z"]
    assert storage.read("x/y") == b"second" and storage.subfolder("x").read("w") == b""
    storage.download("z", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == bytes(9_000_000)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["copy"]
    storage.remove_file("z")
    storage.remove_file("z")
    storage.subfolder("x").remove_folder()
    storage.subfolder("x").remove_folder()
    assert storage.list_files() == []


def test_a_storage_can_be_pickled(storage):
    storage.write("x", b"1")
    assert pickle.loads(pickle.dumps(storage)).list_files() == ["x"]
    assert str(storage).endswith(storage.relative_path) and "endpoint" not in str(storage)


def test_a_missing_file_cannot_be_downloaded(storage, tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        storage.download("nothing", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("uri", ["nosuch://x/y", "s3://"])
def test_a_wrong_uri_is_an_error(uri):
    with pytest.raises(UserError, match=f"The storage {uri} cannot be used"):
        Storage(uri).list_files()


def test_uris_with_keys_are_refused():
    with pytest.raises(UserError, match="must not contain keys"):
        Storage("s3://key:secret@bucket/x")
    assert "account" in str(Storage("abfs://files@account.dfs.core.windows.net/x"))


def test_a_missing_bucket_is_an_error(bucket):
    with pytest.raises(StorageError, match="cannot be written: .*bucket does not exist"):
        Storage(bucket.replace("bucket", "other", 1)).write("x", b"")


def test_a_process_that_is_killed_while_it_writes_leaves_no_visible_file(tmp_path):
    program = (
        "import resource, signal\n"
        "from kdtune.storage.remote import Storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills at the limit of a file's size\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"Storage({str(tmp_path)!r}).write('x', bytes(5000))\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGXFSZ
    [part] = tmp_path.iterdir()
    assert part.stat().st_size == 1000 and Storage(str(tmp_path)).list_files() == []
