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

EVERY = 5.0
"""Seconds between copies; more if one takes long, so that it takes a twentieth of the time."""

LEASE = 20.0
"""Seconds for which a marker that nobody renews keeps others out."""

RETRIES = 3
"""Times that the last copy is tried."""

OWNER = "driver.json"
"""The marker's name."""

CHECKPOINTS = "checkpoints"
"""Folder of a storage for the checkpoints of trials, which their processes write themselves."""


T = TypeVar("T")


class Mirror:
    """The copy of one sweep, for as long as this process drives it. To be used in a ``with``.

    Args:
        folder: the sweep's, which need not be there yet.
        storage: with a folder for each sweep.
        say: takes a line for a person.
        lease: see `LEASE`.
        every: see `EVERY`.
    """

    def __init__(
        self,
        folder: SweepFolder,
        storage: Storage,
        say: Callable[[str], None],
        lease: float = LEASE,
        every: float = EVERY,
    ):
        name = folder.path.absolute().name
        self.folder, self.storage, self.say = folder, storage.at(name), say
        self.lease, self.every = lease, every
        self.failure: RunError | None = None
        """What ends the sweep, if anything does: mostly that another driver has it now."""
        self._taken = False
        self._own = {"driver": uuid.uuid4().hex, "pid": os.getpid(), "host": socket.gethostname()}
        self._count = 0
        self._copied: dict[str, Any] = {}
        self._fetched, self._failing = False, False
        self._unrenewed: StorageError | None = None
        self._no_copies, self._no_marker = threading.Event(), threading.Event()
        self._copier = threading.Thread(target=self._run, daemon=True)
        self._renewer = threading.Thread(target=self._keep_marker, daemon=True)
        if self.storage.folder == folder.path.absolute():
            raise UserError(f"The storage {storage} is where the sweep's folder is anyway.")

    def begin(self) -> None:
        """Make sure, once the marker is ours, that a new sweep may have its name.

        Raises:
            UserError: there is a sweep of that name, or the storage cannot be used.
        """
        if self._asked(partial(self.storage.read, self.folder.log.name)) is not None:
            raise UserError(
                f"{self.storage} holds a sweep already; give another name, or go on with it: "
                f"kdtune resume {self.folder.path} --storage {self.storage.uri}"
            )
        self._fetched = True

    def fetch(self) -> None:
        """Bring the folder, once the marker is ours, to the state that is further: its own, or
        that of the storage.

        Raises:
            UserError: there is neither, each has what the other lacks, or the storage cannot be
                used.
        """
        logs = [self.folder.log.name, self.folder.confirm_log.name]
        theirs = [self._asked(partial(self.storage.read, name)) or b"" for name in logs]
        ours = [p.read_bytes() if p.is_file() else b"" for p in map(self._path, logs)]
        if not theirs[0] and not ours[0]:
            raise UserError(f"There is no sweep in {self.folder.path} or in {self.storage}.")
        pairs = list(zip(ours, theirs, strict=True))
        if theirs[0] and not all(_whole(our).startswith(_whole(their)) for our, their in pairs):
            if not all(_whole(their).startswith(_whole(our)) for our, their in pairs):
                raise UserError(
                    f"{self.folder.path} and {self.storage} went on apart from each other: move "
                    "away the one that is not to count."
                )
            self.say(f"{self.folder.path} is fetched from {self.storage}")
            for name in sorted(self._asked(self._files), key=lambda name: name in logs):
                self._asked(partial(self.storage.get, name, self._path(name)))  # logs come last
                state = _state(self._path(name))
                self._copied[name] = state[0] if name in logs else state
        self._fetched = True

    def __enter__(self) -> Self:
        self._claim()
        self._renewer.start()
        self._copier.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._no_copies.set()
        self._copier.join()
        try:
            left = self._copy_last()
        finally:
            self._no_marker.set()
            self._renewer.join()
        with suppress(StorageError):
            if self._is_ours():
                self.storage.remove(OWNER)
        if self._taken and str(self.failure) not in str(error[1]):
            self.say(f"{self.failure} What is in {self.folder.path} is not copied any more.")
        elif left is not None:
            self.say(
                f"{left}; it lacks the last of the sweep, which is in {self.folder.path}: "
                "'kdtune resume' there, with the same --storage, adds it"
            )

    def _copy_last(self) -> Exception | None:
        """Copy what is left, if that is ours to do; gives why it did not go."""
        left: Exception | None = None
        for attempt in range(RETRIES if self._fetched else 0):
            try:
                if self._is_ours():
                    self._copy()
                return None
            except (StorageError, OSError) as error:
                left = error
                time.sleep(min(attempt, self.every))
        return left

    def check(self) -> None:
        """Raise what ends the sweep, if anything does."""
        if self.failure is not None:
            raise self.failure

    def _claim(self) -> None:
        """Wait until no other driver renews its marker, and write our own."""
        seen, since, told = self._asked(partial(self.storage.read, OWNER)), time.monotonic(), False
        while seen is not None and not self._is_dead(seen):
            if not told:
                self.say(f"{self.storage}: waiting for a sign of life of {_named(seen)}")
                told = True
            if time.monotonic() - since > self.lease:
                break
            time.sleep(min(1.0, self.lease / 4))
            now = self._asked(partial(self.storage.read, OWNER))
            if now is not None and now != seen:
                raise UserError(f"{self.storage} is being run by {_named(now)}.")
            seen = now
        self._asked(self._renew)
        time.sleep(min(1.0, self.lease / 4))  # of two that wrote at once, the last one has it
        if (now := self._asked(partial(self.storage.read, OWNER))) != self._marker():
            raise UserError(f"{self.storage} is being run by {_named(now or b'')}.")

    def _is_dead(self, marker: bytes) -> bool:
        """Whether a marker's driver ran on this machine, and runs no more."""
        about = _about(marker)
        if about.get("host") != self._own["host"] or not isinstance(about.get("pid"), int):
            return False
        try:
            os.kill(about["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return about["pid"] == os.getpid()

    def _marker(self) -> bytes:
        return json.dumps({**self._own, "count": self._count}).encode()

    def _renew(self) -> None:
        """Write our marker."""
        self._count += 1
        self.storage.write(OWNER, self._marker())

    def _is_ours(self) -> bool:
        """Whether no other driver has the sweep; else that is kept in `failure`.

        Raises:
            StorageError: the storage does not say.
        """
        there = self.storage.read(OWNER)
        if there is not None:
            self._taken |= _about(there).get("driver") != self._own["driver"]
        elif self._fetched:  # removed by hand, or by a driver that came and went
            for path in (self.folder.log, self.folder.confirm_log):
                ours = path.read_bytes() if path.is_file() else b""
                theirs = self.storage.read(path.name) or b""
                self._taken |= not ours.startswith(_whole(theirs))
        if self._taken and self.failure is None:
            self.failure = RunError(f"{self.storage} is being run by {_named(there or b'')} now.")
        return not self._taken

    def _keep_marker(self) -> None:
        """Renew our marker, until the end, however long a copy takes."""
        while not self._no_marker.wait(self.lease / 3):
            try:
                if not self._is_ours():
                    return
                self._renew()
                self._unrenewed = None
            except StorageError as error:
                self._unrenewed = error  # the other thread says it
            except OSError:
                continue  # of the folder, which the other thread meets, too

    def _run(self) -> None:
        """Copy, until the end."""
        wait = self.every
        while not self._no_copies.wait(wait):
            started = time.monotonic()
            try:
                if not self._is_ours():
                    return
                if self._fetched:
                    self._copy()
                if self._unrenewed is not None:
                    raise self._unrenewed
                if self._failing:
                    self.say(f"{self.storage} answers again, and has all that it lacked")
                self._failing = False
                wait = max(self.every, 20 * (time.monotonic() - started))
            except (StorageError, OSError) as error:
                if not self._failing:
                    self.say(f"{error}; the sweep goes on, and what is missing there follows")
                self._failing = True
            except Exception as error:
                self.failure = RunError(
                    f"{self.storage} is not kept up to date any more: "
                    f"{type(error).__name__}: {error}."
                )
                return

    def _copy(self) -> None:
        """Copy what has changed, and remove what is no more."""
        logs = {}  # as they are before the other files: what a log speaks of is there before it
        for path in (self.folder.log, self.folder.confirm_log):
            if path.is_file() and self._copied.get(path.name) != (size := path.stat().st_size):
                logs[path.name] = size, path.read_bytes()[:size]
        states = {}
        for path in self._mirrored():
            with suppress(OSError):  # removed meanwhile
                states[path.relative_to(self.folder.path).as_posix()] = _state(path)
        for name, state in states.items():
            if self._copied.get(name) != state:
                with suppress(FileNotFoundError):
                    self.storage.put(self._path(name), name)
                    self._copied[name] = state
        for name, (size, content) in logs.items():
            if not self._is_ours():  # what came before may have taken long
                return
            self.storage.write(name, content)
            self._copied[name] = size
        known = {self.folder.log.name, self.folder.confirm_log.name}
        for name in self._copied.keys() - states.keys() - known:
            self.storage.remove(name)
            del self._copied[name]

    def _mirrored(self) -> Iterator[Path]:
        """Files beside the logs that others need or want; what follows from a log is made anew."""
        own = self.folder
        left_out = {p.name for p in (own.checkpoints, own.tensorboard, own.mlflow, own.wandb)}
        for place, folders, files in os.walk(own.path):
            left = left_out if Path(place) == own.path else ()
            folders[:] = sorted(n for n in folders if n not in left and not n.startswith("."))
            for path in (Path(place, name) for name in sorted(files)):
                if path.name.startswith(".") or path.suffix == ".lock":
                    continue
                if path not in (own.log, own.confirm_log) and path.is_file():
                    yield path

    def _files(self) -> list[str]:
        """Files of the copy, without checkpoints and marker."""
        names = (n for n in self.storage.names() if not n.startswith(f"{CHECKPOINTS}/"))
        return [name for name in names if name != OWNER and ".." not in Path(name).parts]

    def _path(self, name: str) -> Path:
        return self.folder.path / name

    def _asked(self, question: Callable[[], T]) -> T:
        """What the storage says to somebody who waits for it.

        Raises:
            UserError: it cannot be used.
        """
        try:
            return question()
        except StorageError as error:
            raise UserError(f"{error}; see that it is there, and that its keys are.") from None


@contextmanager
def mirrored(
    folder: SweepFolder, uri: str | None, new: bool, say: Callable[[str], None]
) -> Iterator[Mirror | None]:
    """Have a sweep's folder mirrored meanwhile, if there is a storage.

    Args:
        folder: of the sweep.
        uri: of the storage; None, or ``none`` as a flag says it, without one.
        new: whether the sweep begins; else it is fetched, if the storage has more of it.
        say: takes a line for a person.

    Raises:
        UserError: the storage cannot be used, another driver uses it, or it holds what it should
            not hold, or does not hold what it should.
    """
    if uri in (None, "none"):
        yield None
        return
    with Mirror(folder, Storage(str(uri)), say) as mirror:
        mirror.begin() if new else mirror.fetch()
        yield mirror


def _whole(content: bytes) -> bytes:
    """The whole lines of a log."""
    return content[: content.rfind(b"\n") + 1]


def _state(path: Path) -> tuple[int, int]:
    """What shows that a file was changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _about(marker: bytes) -> dict[str, Any]:
    try:
        about = json.loads(marker)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _named(marker: bytes) -> str:
    about = _about(marker)
    if {"pid", "host"} <= about.keys():
        return f"process {about['pid']} on {str(about['host'])[:100]}"
    return "another driver"
