"""Keeps a copy of a sweep's folder in a storage, from which another driver can go on.

A thread copies what has changed, every few seconds, so what the copy lacks after the driver's
machine is lost are the last of these seconds. A storage that fails holds nobody up: it is tried
again and again, and the copy catches up.

While a driver runs, a marker in the storage has its name and a count that it raises. Another one
waits until the count stands still. That is no lock: two drivers that begin in the same second, or
one that is cut off from the storage for longer than a marker lives and then comes back, can both
run for some seconds, until one sees the other's marker and stops. Beside the marker nothing is
written until it is known that the storage holds nothing that the folder lacks.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from kdtune.errors import RunError, UserError
from kdtune.log.folder import SweepFolder
from kdtune.storage.remote import Storage, StorageError

COPY_INTERVAL_SECONDS = 5.0
"""Seconds between copies; more if one takes long, so that it takes a twentieth of the time."""

LEASE_SECONDS = 20.0
"""Seconds for which a marker that nobody renews keeps others out."""

LAST_COPY_ATTEMPTS = 3
"""Times that the last copy is tried."""

LEASE_FILE = "driver.json"
"""The marker's name."""

CHECKPOINTS_FOLDER = "checkpoints"
"""Folder of a storage for the checkpoints of trials, which their processes write themselves."""


T = TypeVar("T")


class RemoteSync:
    """The copy of one sweep, for as long as this process drives it. To be used in a ``with``.

    Args:
        folder: the sweep's, which need not be there yet.
        storage: with a folder for each sweep.
        say: takes a line for a person.
        lease_seconds: see `LEASE_SECONDS`.
        copy_interval: see `COPY_INTERVAL_SECONDS`.
    """

    def __init__(
        self,
        folder: SweepFolder,
        storage: Storage,
        say: Callable[[str], None],
        lease_seconds: float = LEASE_SECONDS,
        copy_interval: float = COPY_INTERVAL_SECONDS,
    ):
        name = folder.path.absolute().name
        self.folder, self.storage, self.say = folder, storage.subfolder(name), say
        self.lease_seconds, self.copy_interval = lease_seconds, copy_interval
        self.failure: RunError | None = None
        """What ends the sweep, if anything does: mostly that another driver has it now."""
        self._lease_lost = False
        self._identity = {
            "driver": uuid.uuid4().hex,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._renewals = 0
        self._copied_states: dict[str, Any] = {}
        self._is_reconciled, self._is_failing = False, False
        self._renewal_error: StorageError | None = None
        self._stop_copying, self._stop_renewing = threading.Event(), threading.Event()
        self._copy_thread = threading.Thread(target=self._copy_until_stopped, daemon=True)
        self._renew_thread = threading.Thread(target=self._renew_until_stopped, daemon=True)
        if self.storage.local_folder == folder.path.absolute():
            raise UserError(f"The storage {storage} is where the sweep's folder is anyway.")

    def require_new(self) -> None:
        """Make sure, once the marker is ours, that a new sweep may have its name.

        Raises:
            UserError: there is a sweep of that name, or the storage cannot be used.
        """
        if self._call_storage(partial(self.storage.read, self.folder.log_path.name)) is not None:
            raise UserError(
                f"{self.storage} holds a sweep already; give another name, or go on with it: "
                f"kdtune resume {self.folder.path} --storage {self.storage.uri}"
            )
        self._is_reconciled = True

    def fetch_latest(self) -> None:
        """Bring the folder, once the marker is ours, to the state that is further: its own, or
        that of the storage.

        Raises:
            UserError: there is neither, each has what the other lacks, or the storage cannot be
                used.
        """
        log_names = [self.folder.log_path.name, self.folder.confirm_log_path.name]
        remote_logs = [
            self._call_storage(partial(self.storage.read, name)) or b"" for name in log_names
        ]
        local_logs = [
            p.read_bytes() if p.is_file() else b"" for p in map(self._local_path, log_names)
        ]
        if not remote_logs[0] and not local_logs[0]:
            raise UserError(f"There is no sweep in {self.folder.path} or in {self.storage}.")
        pairs = list(zip(local_logs, remote_logs, strict=True))
        if remote_logs[0] and not all(
            _complete_lines(local).startswith(_complete_lines(remote)) for local, remote in pairs
        ):
            if not all(
                _complete_lines(remote).startswith(_complete_lines(local))
                for local, remote in pairs
            ):
                raise UserError(
                    f"{self.folder.path} and {self.storage} went on apart from each other: move "
                    "away the one that is not to count."
                )
            self.say(f"{self.folder.path} is fetched from {self.storage}")
            for name in sorted(
                self._call_storage(self._remote_files), key=lambda name: name in log_names
            ):
                self._call_storage(
                    partial(self.storage.download, name, self._local_path(name))
                )  # logs come last
                state = _file_state(self._local_path(name))
                self._copied_states[name] = state[0] if name in log_names else state
        self._is_reconciled = True

    def __enter__(self) -> Self:
        self._acquire_lease()
        self._renew_thread.start()
        self._copy_thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_copying.set()
        self._copy_thread.join()
        try:
            copy_error = self._copy_remaining()
        finally:
            self._stop_renewing.set()
            self._renew_thread.join()
        with suppress(StorageError):
            if self._holds_lease():
                self.storage.remove_file(LEASE_FILE)
        if self._lease_lost and str(self.failure) not in str(error[1]):
            self.say(f"{self.failure} What is in {self.folder.path} is not copied any more.")
        elif copy_error is not None:
            self.say(
                f"{copy_error}; it lacks the last of the sweep, which is in {self.folder.path}: "
                "'kdtune resume' there, with the same --storage, adds it"
            )

    def _copy_remaining(self) -> Exception | None:
        """Copy what is left, if that is ours to do; gives why it did not go."""
        last_error: Exception | None = None
        for attempt in range(LAST_COPY_ATTEMPTS if self._is_reconciled else 0):
            try:
                if self._holds_lease():
                    self._copy_changes()
                return None
            except (StorageError, OSError) as error:
                last_error = error
                time.sleep(min(attempt, self.copy_interval))
        return last_error

    def raise_failure(self) -> None:
        """Raise what ends the sweep, if anything does."""
        if self.failure is not None:
            raise self.failure

    def _acquire_lease(self) -> None:
        """Wait until no other driver renews its marker, and write our own."""
        lease, unchanged_since, is_announced = (
            self._call_storage(partial(self.storage.read, LEASE_FILE)),
            time.monotonic(),
            False,
        )
        while lease is not None and not self._is_stale(lease):
            if not is_announced:
                self.say(f"{self.storage}: waiting for a sign of life of {_describe_owner(lease)}")
                is_announced = True
            if time.monotonic() - unchanged_since > self.lease_seconds:
                break
            time.sleep(min(1.0, self.lease_seconds / 4))
            current_lease = self._call_storage(partial(self.storage.read, LEASE_FILE))
            if current_lease is not None and current_lease != lease:
                raise UserError(
                    f"{self.storage} is being run by {_describe_owner(current_lease)}."
                )
            lease = current_lease
        self._call_storage(self._renew_lease)
        time.sleep(
            min(1.0, self.lease_seconds / 4)
        )  # of two that wrote at once, the last one has it
        if (
            current_lease := self._call_storage(partial(self.storage.read, LEASE_FILE))
        ) != self._lease_content():
            raise UserError(
                f"{self.storage} is being run by {_describe_owner(current_lease or b'')}."
            )

    def _is_stale(self, lease: bytes) -> bool:
        """Whether a marker's driver ran on this machine, and runs no more."""
        owner = _parse_lease(lease)
        if owner.get("host") != self._identity["host"] or not isinstance(owner.get("pid"), int):
            return False
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return owner["pid"] == os.getpid()

    def _lease_content(self) -> bytes:
        return json.dumps({**self._identity, "count": self._renewals}).encode()

    def _renew_lease(self) -> None:
        """Write our marker."""
        self._renewals += 1
        self.storage.write(LEASE_FILE, self._lease_content())

    def _holds_lease(self) -> bool:
        """Whether no other driver has the sweep; else that is kept in `failure`.

        Raises:
            StorageError: the storage does not say.
        """
        lease = self.storage.read(LEASE_FILE)
        if lease is not None:
            self._lease_lost |= _parse_lease(lease).get("driver") != self._identity["driver"]
        elif self._is_reconciled:  # removed by hand, or by a driver that came and went
            for path in (self.folder.log_path, self.folder.confirm_log_path):
                local = path.read_bytes() if path.is_file() else b""
                remote = self.storage.read(path.name) or b""
                self._lease_lost |= not local.startswith(_complete_lines(remote))
        if self._lease_lost and self.failure is None:
            self.failure = RunError(
                f"{self.storage} is being run by {_describe_owner(lease or b'')} now."
            )
        return not self._lease_lost

    def _renew_until_stopped(self) -> None:
        """Renew our marker, until the end, however long a copy takes."""
        while not self._stop_renewing.wait(self.lease_seconds / 3):
            try:
                if not self._holds_lease():
                    return
                self._renew_lease()
                self._renewal_error = None
            except StorageError as error:
                self._renewal_error = error  # the other thread says it
            except OSError:
                continue  # of the folder, which the other thread meets, too

    def _copy_until_stopped(self) -> None:
        """Copy, until the end."""
        wait = self.copy_interval
        while not self._stop_copying.wait(wait):
            started = time.monotonic()
            try:
                if not self._holds_lease():
                    return
                if self._is_reconciled:
                    self._copy_changes()
                if self._renewal_error is not None:
                    raise self._renewal_error
                if self._is_failing:
                    self.say(f"{self.storage} answers again, and has all that it lacked")
                self._is_failing = False
                wait = max(self.copy_interval, 20 * (time.monotonic() - started))
            except (StorageError, OSError) as error:
                if not self._is_failing:
                    self.say(f"{error}; the sweep goes on, and what is missing there follows")
                self._is_failing = True
            except Exception as error:
                self.failure = RunError(
                    f"{self.storage} is not kept up to date any more: "
                    f"{type(error).__name__}: {error}."
                )
                return

    def _copy_changes(self) -> None:
        """Copy what has changed, and remove what is no more."""
        logs = {}  # as they are before the other files: what a log speaks of is there before it
        for path in (self.folder.log_path, self.folder.confirm_log_path):
            if path.is_file() and self._copied_states.get(path.name) != (
                size := path.stat().st_size
            ):
                logs[path.name] = size, path.read_bytes()[:size]
        file_states = {}
        for path in self._synced_files():
            with suppress(OSError):  # removed meanwhile
                file_states[path.relative_to(self.folder.path).as_posix()] = _file_state(path)
        for name, state in file_states.items():
            if self._copied_states.get(name) != state:
                with suppress(FileNotFoundError):
                    self.storage.upload(self._local_path(name), name)
                    self._copied_states[name] = state
        for name, (size, content) in logs.items():
            if not self._holds_lease():  # what came before may have taken long
                return
            self.storage.write(name, content)
            self._copied_states[name] = size
        log_names = {self.folder.log_path.name, self.folder.confirm_log_path.name}
        for name in self._copied_states.keys() - file_states.keys() - log_names:
            self.storage.remove_file(name)
            del self._copied_states[name]

    def _synced_files(self) -> Iterator[Path]:
        """Files beside the logs that others need or want; what follows from a log is made anew."""
        folder = self.folder
        excluded_names = {
            p.name
            for p in (
                folder.checkpoints_folder,
                folder.tensorboard_folder,
                folder.mlflow_folder,
                folder.wandb_folder,
            )
        }
        for directory, folders, files in os.walk(folder.path):
            excluded = excluded_names if Path(directory) == folder.path else ()
            folders[:] = sorted(n for n in folders if n not in excluded and not n.startswith("."))
            for path in (Path(directory, name) for name in sorted(files)):
                if path.name.startswith(".") or path.suffix == ".lock":
                    continue
                if path not in (folder.log_path, folder.confirm_log_path) and path.is_file():
                    yield path

    def _remote_files(self) -> list[str]:
        """Files of the copy, without checkpoints and marker."""
        names = (
            n for n in self.storage.list_files() if not n.startswith(f"{CHECKPOINTS_FOLDER}/")
        )
        return [name for name in names if name != LEASE_FILE and ".." not in Path(name).parts]

    def _local_path(self, name: str) -> Path:
        return self.folder.path / name

    def _call_storage(self, operation: Callable[[], T]) -> T:
        """What the storage says to somebody who waits for it.

        Raises:
            UserError: it cannot be used.
        """
        try:
            return operation()
        except StorageError as error:
            raise UserError(f"{error}; see that it is there, and that its keys are.") from None


@contextmanager
def synced_to(
    folder: SweepFolder, uri: str | None, is_new: bool, say: Callable[[str], None]
) -> Iterator[RemoteSync | None]:
    """Have a sweep's folder mirrored meanwhile, if there is a storage.

    Args:
        folder: of the sweep.
        uri: of the storage; None, or ``none`` as a flag says it, without one.
        is_new: whether the sweep begins; else it is fetched, if the storage has more of it.
        say: takes a line for a person.

    Raises:
        UserError: the storage cannot be used, another driver uses it, or it holds what it should
            not hold, or does not hold what it should.
    """
    if uri in (None, "none"):
        yield None
        return
    with RemoteSync(folder, Storage(str(uri)), say) as sync:
        sync.require_new() if is_new else sync.fetch_latest()
        yield sync


def _complete_lines(content: bytes) -> bytes:
    """The whole lines of a log."""
    return content[: content.rfind(b"\n") + 1]


def _file_state(path: Path) -> tuple[int, int]:
    """What shows that a file was changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _parse_lease(lease: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(lease)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe_owner(lease: bytes) -> str:
    owner = _parse_lease(lease)
    if {"pid", "host"} <= owner.keys():
        return f"process {owner['pid']} on {str(owner['host'])[:100]}"
    return "another driver"
