"""Arrays on this node's disk: built once, by whoever needs one first, and shared by all.

An array is known by the facts that made it, and is mapped into memory by every process that opens
it, so processes share its pages. It appears whole or not at all: it is built under another name
and renamed. The lock of a builder dies with it; locks need a disk of this node, not a network's.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from kdtune.errors import DiskFullError, UserError
from kdtune.storage.files import FULL, make_folder, write_text
from kdtune.units import amount

VARIABLE = "KDTUNE_CACHE"
"""Environment variable that names the cache's folder; else it is in the user's cache folder."""

CHUNK = 1 << 24
"""Bytes of an array that are checked at once."""

Facts = Mapping[str, Any]
"""All that made an array, as plain values: another value is another array."""

Make = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""Makes an array to be filled, from its name, shape and type; asked again, it begins anew."""

Build = Callable[[Sequence[str], Make], None]
"""Makes and fills the arrays of these names."""

Tell = Callable[[dict[str, Any]], None]
"""Takes the ``kind`` of arrays, ``what`` they are, ``state`` (``building``, ``built``,
``waiting``, ``found``), ``bytes``, and ``seconds`` spent building, waiting or checking."""


def cache_folder() -> Path:
    """Where this node's cache is."""
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or Path(users) / "kdtune").expanduser()


def describe(event: Mapping[str, Any]) -> str:
    """Say in a line, to a person, what a `Tell` was told."""
    size = f"{event['what']}, {amount(event['bytes'])}"
    took = f" in {event['seconds']:.1f} s" if event["state"] == "built" else ""
    if event["state"] == "waiting":
        return f"waiting for {event['what']}, which another process is building"
    return f"{event['state']}{took}: {event['what'] if event['state'] == 'building' else size}"


@dataclass(frozen=True)
class Entry:
    """An array in the cache: what it is, its size in bytes, and when it was last opened."""

    folder: Path
    what: str
    bytes: int
    last_used: float


class Cache:
    """The arrays in one folder.

    Args:
        folder: made when something is built.
        limit: bytes that it may hold; what was not used for longest makes room for what is built.
            None is no limit.
    """

    def __init__(self, folder: Path, limit: float | None = None):
        self.folder, self.limit = folder, limit
        self._opened: dict[str, np.ndarray] = {}

    def open(
        self,
        what: str,
        group: Facts,
        wanted: Mapping[str, Facts],
        build: Build,
        tell: Tell = lambda event: None,
    ) -> dict[str, np.ndarray]:
        """Open arrays, and build those that are missing or broken.

        Of several processes that miss something in a group one builds it, and the others wait.

        Args:
            what: what the arrays are, for people.
            group: what the arrays have in common, their ``kind`` among it.
            wanted: what made each array, by name.
            build: fills the arrays that are missing.
            tell: told what happens.

        Returns:
            The arrays, mapped from the disk; what is written to them stays in this process.

        Raises:
            DiskFullError: there is no room.
            UserError: writing there is not allowed.
        """
        digests = {name: _digest({**group, **facts}) for name, facts in wanted.items()}

        def say(state: str, seconds: float = 0.0) -> None:
            size = sum(self._opened[d].nbytes for d in digests.values() if d in self._opened)
            about = {"kind": group["kind"], "what": what, "state": state}
            tell({**about, "bytes": size, "seconds": round(seconds, 3)})

        started, state = time.perf_counter(), "found"
        for _ in range(2):  # again, if another process made room with what was built
            if not self._missing(digests):
                break
            with self._locked(_digest(group), lambda: say("waiting")) as part:
                if missing := self._missing(digests):
                    state = "built"
                    say("building")
                    self._build(what, missing, digests, build, part)
        if self._missing(digests):
            raise UserError(f"{what}: what was written to {self.folder} cannot be read back.")
        say(state, time.perf_counter() - started)
        return {name: self._opened[digest] for name, digest in digests.items()}

    def _missing(self, digests: Mapping[str, str]) -> list[str]:
        """Open what is there and whole; the names of the rest."""
        for digest in digests.values():
            if digest not in self._opened and (array := _load(self.folder / digest)) is not None:
                self._opened[digest] = array
        return [name for name, digest in digests.items() if digest not in self._opened]

    def _build(
        self, what: str, names: list[str], digests: Mapping[str, str], build: Build, part: Path
    ) -> None:
        made: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}

        def make(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            sizes[name] = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if self.limit is not None:
                there = sum(entry.bytes for entry in self.entries())
                free = there + shutil.disk_usage(self.folder).free
                # What is made already has its place on the disk, but is no entry yet.
                least = min(self.limit - sum(sizes.values()), free - sizes[name])
                self.prune(least, keep=frozenset(digests.values()))
            (part / name).mkdir(parents=True, exist_ok=True)
            made[name] = _make(part / name / "array.npy", shape, dtype)
            return made[name]

        try:
            build(names, make)
            for name in names:
                _finish(made.pop(name), part / name, f"{what}: {name}")
                target = self.folder / digests[name]
                shutil.rmtree(target, ignore_errors=True)  # a broken one
                (part / name).rename(target)
        except OSError as error:
            raise self._refusal(error) from error

    @contextmanager
    def _locked(self, group: str, on_wait: Callable[[], None]) -> Iterator[Path]:
        """Hold a group's lock, and give the folder in which to build, which is removed after."""
        make_folder(self.folder)
        lock = FileLock(self.folder / f"{group}.lock")
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_wait()
                lock.acquire()
        except OSError as error:
            raise self._refusal(error) from error
        part = self.folder / f"{group}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a builder that was killed
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.release()

    def _refusal(self, error: OSError) -> Exception:
        kind = DiskFullError if error.errno in FULL else UserError
        return kind(
            f"The cache {self.folder} cannot be written ({error.strerror}); make room, e.g. with "
            f"'kdtune cache --prune 0', or set {VARIABLE} to another folder."
        )

    def entries(self) -> list[Entry]:
        """All arrays, the one that was not used for longest first."""
        found = []
        for about in self.folder.glob("*/about.json"):
            if about.parent.suffix:  # being removed
                continue
            with suppress(OSError, ValueError, KeyError):  # removed meanwhile, or broken
                content = json.loads(about.read_text(encoding="utf-8"))
                size = (about.parent / "array.npy").stat().st_size
                found.append(Entry(about.parent, content["what"], size, about.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.last_used)

    def prune(self, limit: float, keep: frozenset[str] = frozenset()) -> list[Entry]:
        """Remove what was not used for longest until the rest fits, and what killed builders left.

        Args:
            limit: bytes that may stay.
            keep: names of folders that stay, whatever their size.

        Returns:
            What was removed; processes that have it open keep it until they end.
        """
        for part in self.folder.glob("*.part"):
            # A lock that cannot be had is that of a builder, or somebody else's.
            with suppress(OSError), FileLock(part.with_suffix(".lock"), timeout=0):
                shutil.rmtree(part, ignore_errors=True)
        for gone in self.folder.glob("*.gone"):  # of a process that was killed while it pruned
            shutil.rmtree(gone, ignore_errors=True)
        entries = self.entries()
        size = sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if size <= limit:
                break
            if entry.folder.name not in keep:
                with suppress(OSError):  # removed meanwhile
                    gone = entry.folder.rename(entry.folder.with_suffix(f".{os.getpid()}.gone"))
                    removed.append(entry)
                    size -= entry.bytes
                    shutil.rmtree(gone, ignore_errors=True)
        return removed


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _make(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)
    if hasattr(os, "posix_fallocate"):
        # Else a disk that gets full kills the process when it writes to the mapped file.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _finish(array: np.ndarray, folder: Path, what: str) -> None:
    """Bring a filled array to the disk, with what proves it whole."""
    array.flush()  # type: ignore[attr-defined]
    with open(folder / "array.npy", "rb") as file:
        os.fsync(file.fileno())
    about = {"what": what, "crc32": _checksum(array)}
    write_text(folder / "about.json", json.dumps(about))


def _load(folder: Path) -> np.ndarray | None:
    """Map an array that is there and whole; else None."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        array = np.load(folder / "array.npy", mmap_mode="c", allow_pickle=False)
        whole = _checksum(array) == about["crc32"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):  # somebody else's, and only to be read
        os.utime(folder / "about.json")
    return array if whole else None


def _checksum(array: np.ndarray) -> int:
    content, checksum = array.reshape(-1).view(np.uint8), 0
    for start in range(0, len(content), CHUNK):
        checksum = zlib.crc32(content[start : start + CHUNK].data, checksum)
    return checksum
