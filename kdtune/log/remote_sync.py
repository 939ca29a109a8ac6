"""Copy of a sweep's folder in a storage, from which another machine can resume the sweep.

The driver keeps a marker file there, and writes nothing once the marker is another driver's.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from kdtune.errors import RunError, UserError
from kdtune.log.folder import SweepFolder
from kdtune.storage.remote import Storage, StorageError

SYNC_INTERVAL_SECONDS = 10.0
MARKER_TIMEOUT_SECONDS = 30.0  # a marker that is not renewed for so long is replaced
PAUSE_FACTOR = 10  # pause after a failure, as a multiple of the time that the failure took
LAST_COPY_DELAYS_SECONDS = (0.0, 1.0, 5.0)  # before each attempt at the last copy
MARKER_FILE = "driver.json"
CHECKPOINTS_FOLDER = "checkpoints"  # the processes of trials write to it


class _Marker(BaseModel, frozen=True):
    driver: str
    host: str
    pid: int = Field(ge=0, lt=2**31)
    renewals: int = 0  # grows while the driver runs trials

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host[:100]}"

    def is_dead(self) -> bool:
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return self.pid == os.getpid()


@dataclass(eq=False)
class RemoteSync:
    """The copy of one sweep, while this process is its driver."""

    folder: SweepFolder  # need not exist yet
    storage: Storage
    say: Callable[[str], None]
    failure: RunError | None = field(default=None, init=False)  # Ray may wrap it if it is raised

    def __post_init__(self) -> None:
        self._marker = _Marker(driver=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid())
        self._copied_files: dict[str, tuple[int, int]] = {}
        self._next_sync_at, self._is_failing = 0.0, False
        self._log_paths = (self.folder.log_path, self.folder.confirm_log_path)

    def acquire_marker(self) -> None:
        """Write the marker, unless another driver renews its own."""
        marker, give_up_at = self._read_marker(), time.monotonic() + MARKER_TIMEOUT_SECONDS
        if marker is not None and not marker.is_dead():
            self.say(f"{self.storage}: waiting to see whether the sweep is still run by {marker}")
            while time.monotonic() < give_up_at:
                time.sleep(min(1.0, MARKER_TIMEOUT_SECONDS / 4))
                if (current := self._read_marker()) is None:
                    break
                if current != marker:
                    raise UserError(f"{self.storage} is being run by {current}.")
        self._renew_marker()

    def release_marker(self) -> None:
        with suppress(RunError):
            self._require_marker()
            self.storage.remove_file(MARKER_FILE)

    def _read_marker(self) -> _Marker | None:
        if (content := self.storage.read(MARKER_FILE)) is None:
            return None
        try:
            return _Marker.model_validate_json(content)
        except ValidationError:
            return _Marker(driver="", host="an unknown machine", pid=0)

    def _renew_marker(self) -> None:
        renewals = self._marker.renewals + 1
        self._marker = self._marker.model_copy(update={"renewals": renewals})
        self.storage.write(MARKER_FILE, self._marker.model_dump_json().encode())

    def require_new(self) -> None:
        if self.storage.read(self.folder.log_path.name) is not None:
            command = self.folder.command("resume", "--storage", self.storage.uri)
            advice = f"give another name, or resume it: {command}"
            raise UserError(f"{self.storage} already holds a sweep; {advice}")

    def fetch_latest(self) -> None:
        """Download the sweep if the storage holds more of it than the folder."""
        logs = self._log_paths
        local = [_complete_lines(p.read_bytes() if p.is_file() else b"") for p in logs]
        remote = [_complete_lines(self.storage.read(p.name) or b"") for p in logs]
        if not local[0] and not remote[0]:
            raise UserError(f"There is no sweep in {self.folder.path} or in {self.storage}.")
        if all(map(bytes.startswith, local, remote)):
            return
        if not all(map(bytes.startswith, remote, local)):
            apart = f"{self.folder.path} and {self.storage} continued independently of each other"
            raise UserError(f"{apart}: move away the copy that you do not want.")
        self.say(f"fetching {self.folder.path} from {self.storage}")
        paths = [self.folder.path / name for name in self.storage.list_files()]
        for path in sorted(paths, key=logs.__contains__):  # the logs are the last
            name = self._name(path)
            if name != MARKER_FILE and not name.startswith(f"{CHECKPOINTS_FOLDER}/"):
                self.storage.download(name, path)
                self._copied_files[name] = _size_and_time(path)

    def sync_if_due(self) -> None:
        if time.monotonic() >= self._next_sync_at:
            self.sync()

    def sync(self) -> None:
        """Copy what changed and renew the marker; print it if the storage fails."""
        started_at, pause = time.monotonic(), SYNC_INTERVAL_SECONDS
        try:
            self._copy_changes()
            if self._is_failing:
                self.say(f"{self.storage} is reachable again and up to date")
            self._is_failing = False
        except (StorageError, OSError) as error:
            if not self._is_failing:
                self.say(f"{error}; the sweep continues, and copies the missing files later")
            self._is_failing = True
            pause += PAUSE_FACTOR * (time.monotonic() - started_at)
        self._next_sync_at = time.monotonic() + pause

    def finish(self) -> None:
        """Copy what is left, and print it if that fails."""
        message = ""
        for delay in LAST_COPY_DELAYS_SECONDS if self.failure is None else ():
            time.sleep(delay)
            try:
                return self._copy_changes()
            except (StorageError, OSError) as error:
                lacking = f"it lacks the last of the sweep, which is in {self.folder.path}"
                resume = "'kdtune resume' there, with the same --storage, adds it"
                message = f"{error}; {lacking}: {resume}"
            except RunError as error:
                message = f"{error} What is in {self.folder.path} is not copied any more."
                break
        if message:
            self.say(message)

    def _copy_changes(self) -> None:
        self._require_marker()
        self._renew_marker()
        paths = {self._name(path): path for path in self._list_files()}
        for name, path in paths.items():
            if self._copied_files.get(name) != (state := _size_and_time(path)):
                if path in self._log_paths:
                    self._require_marker()  # copying the files before may have taken long
                self.storage.upload(path, name)
                self._copied_files[name] = state
        removed = self._copied_files.keys() - paths.keys()
        if not removed & {path.name for path in self._log_paths}:  # logs are never removed
            for name in removed:
                self.storage.remove_file(name)
                del self._copied_files[name]

    def _require_marker(self) -> None:
        marker = self._read_marker()
        if marker is None or marker.driver != self._marker.driver:
            owner = marker or "another driver"
            self.failure = RunError(f"{self.storage} is being run by {owner} now.")
            raise self.failure

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def _list_files(self) -> list[Path]:
        """Return the files to copy; the logs are the last: what they mention is copied before."""
        folder, paths = self.folder, list[Path]()
        excluded = (folder.checkpoints_folder, *folder.tracker_folders)
        for directory, names, files in os.walk(folder.path):
            names[:] = [name for name in names if Path(directory, name) not in excluded]
            paths += [Path(directory, name) for name in files if not name.endswith(".lock")]
        paths = [path for path in paths if "/." not in f"/{self._name(path)}" and path.is_file()]
        return sorted(paths, key=self._log_paths.__contains__)


@contextmanager
def synced_to(
    folder: SweepFolder, uri: str | None, is_new: bool, say: Callable[[str], None]
) -> Iterator[RemoteSync | None]:
    """Keep a copy of a sweep's folder in a storage, if there is one.

    Args:
        folder: the sweep's folder.
        uri: the storage's URI; None or ``none`` without one.
        is_new: False if the sweep is resumed, from the storage if need be.
        say: prints a line.
    """
    if uri in (None, "none"):
        yield None
        return
    storage, path = Storage(str(uri)), folder.path.absolute()
    if storage.subfolder(path.name).local_folder == path:
        raise UserError(f"The storage {storage} is the sweep's own folder; choose another one.")
    remote_sync = RemoteSync(folder, storage.subfolder(path.name), say)
    with ExitStack() as stack:
        stack.callback(remote_sync.release_marker)
        try:
            remote_sync.acquire_marker()
            remote_sync.require_new() if is_new else remote_sync.fetch_latest()
        except StorageError as error:
            advice = "check that it exists, and that its credentials are set"
            raise UserError(f"{error}; {advice}.") from None
        stack.callback(remote_sync.finish)
        yield remote_sync


def _complete_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
