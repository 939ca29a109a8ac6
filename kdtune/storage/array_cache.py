"""Cache of arrays on this node's disk: each is built once and memory-mapped by all.

File locks keep two processes from building the same arrays; they need a disk of this node.
"""

import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel

from kdtune.errors import DiskFullError, UserError
from kdtune.storage.files import NO_SPACE_ERRNOS, make_folder, write_text
from kdtune.units import BYTES_PER_GB, format_bytes

CACHE_FOLDER_VARIABLE = "KDTUNE_CACHE"
PLANNED_CACHE_SHARE = 0.95  # so that a sweep does not evict what it needs
CacheKey = Mapping[str, Any]  # plain values that identify an array
CreateArray = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]  # of a name, shape and dtype
BuildArrays = Callable[[Sequence[str], CreateArray], None]  # creates and fills arrays by name
OnCacheProgress = Callable[["CacheProgress"], None]


class CacheState(StrEnum):
    BUILDING = "building"
    BUILT = "built"
    WAITING = "waiting"  # another process builds them
    CACHED = "cached"


class CacheProgress(BaseModel, frozen=True):
    content: str  # kind of the arrays, such as "targets"
    label: str
    state: CacheState
    num_bytes: int = 0  # of the arrays that exist
    seconds: float = 0.0  # since the arrays were requested

    def describe(self) -> str:
        match self.state:
            case CacheState.BUILDING:
                return f"building: {self.label}"
            case CacheState.WAITING:
                return f"waiting for {self.label}, which another process is building"
        duration = f" in {self.seconds:.1f} s" if self.state is CacheState.BUILT else ""
        return f"{self.state}{duration}: {self.label}, {format_bytes(self.num_bytes)}"


def cache_folder() -> Path:
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE_FOLDER_VARIABLE) or Path(user_cache) / "kdtune").expanduser()


def needed_cache_gb(num_bytes: int) -> str:
    """Return the `cache_gb` that has room for so many bytes, as text."""
    return f"{math.ceil(1000 * num_bytes / PLANNED_CACHE_SHARE / BYTES_PER_GB) / 1000:g}"


class _Metadata(BaseModel):  # about.json, which is written when an array is complete
    label: str
    crc32: int
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class CacheEntry:
    folder: Path
    label: str
    size_bytes: int
    last_used: float  # seconds since 1970


@dataclass(eq=False)
class ArrayCache:
    """The arrays in a folder; the least recently used ones are removed for new ones."""

    folder: Path
    max_bytes: float | None = None
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def open_arrays(
        self,
        label: str,
        group_key: CacheKey,
        array_keys: Mapping[str, CacheKey],
        build: BuildArrays,
        on_progress: OnCacheProgress = lambda progress: None,
    ) -> dict[str, np.ndarray]:
        """Return arrays, mapped copy-on-write; build missing ones while other processes wait.

        Args:
            label: description of the arrays to print.
            group_key: facts that the arrays share; ``kind`` is one of them.
            array_keys: further facts of each array, by name.
            build: fills the missing arrays.
            on_progress: called at each change of state.
        """
        digests = {name: _key_digest({**group_key, **key}) for name, key in array_keys.items()}
        make_progress = partial(CacheProgress, content=group_key["kind"], label=label)

        def report(state: CacheState, seconds: float = 0.0) -> None:
            opened = self._arrays.keys() & digests.values()
            num_bytes = sum(self._arrays[digest].nbytes for digest in opened)
            on_progress(make_progress(state=state, num_bytes=num_bytes, seconds=round(seconds, 3)))

        start_time, state = time.perf_counter(), CacheState.CACHED
        on_wait = partial(report, CacheState.WAITING)
        try:
            for _ in range(2):  # again, if another process pruned what was built
                if self._find_missing(digests):
                    with self._lock_group(_key_digest(group_key), on_wait) as build_folder:
                        if self._find_missing(digests):
                            state = CacheState.BUILT
                            report(CacheState.BUILDING)
                            self._build_arrays(label, digests, build, build_folder)
        except OSError as error:
            error_type = DiskFullError if error.errno in NO_SPACE_ERRNOS else UserError
            problem = f"The cache {self.folder} cannot be written ({error.strerror})"
            room = "make room, e.g. with 'kdtune cache --prune 0'"
            elsewhere = f"or set {CACHE_FOLDER_VARIABLE} to another folder"
            raise error_type(f"{problem}; {room}, {elsewhere}.") from error
        if self._find_missing(digests):
            raise UserError(f"{label}: what was written to {self.folder} cannot be read back.")
        report(state, time.perf_counter() - start_time)
        return {name: self._arrays[digest] for name, digest in digests.items()}

    def contains(self, key: CacheKey) -> bool:
        """Return True if the array with these facts is there; it is not checked for damage."""
        return (self.folder / _key_digest(key) / "about.json").exists()

    def _find_missing(self, digests: Mapping[str, str]) -> list[str]:
        """Open the complete arrays, and return the names of the others."""
        for digest in digests.values() - self._arrays.keys():
            if (loaded := _load_array(self.folder / digest)) is not None:
                self._arrays[digest] = loaded[1]
                with suppress(OSError):  # the cache is read-only for this user
                    os.utime(self.folder / digest / "about.json")
        return [name for name, digest in digests.items() if digest not in self._arrays]

    def _build_arrays(
        self, label: str, digests: Mapping[str, str], build: BuildArrays, build_folder: Path
    ) -> None:
        arrays: dict[str, np.memmap] = {}

        def create_array(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            arrays.pop(name, None)
            if self.max_bytes is not None:
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                cached_bytes = sum(entry.size_bytes for entry in self.list_entries())
                available_bytes = cached_bytes + shutil.disk_usage(self.folder).free
                # The other arrays of this build use disk space already, but are no entries yet.
                built_bytes = sum(array.nbytes for array in arrays.values())
                max_cached = min(self.max_bytes - built_bytes, available_bytes) - size
                self.prune(max_cached, protected=frozenset(digests.values()))
            path = build_folder / name / "array.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays[name] = np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)
            if hasattr(os, "posix_fallocate"):
                # Without it, a full disk kills the process when it writes to the mapped file.
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            return arrays[name]

        names = self._find_missing(digests)
        build(names, create_array)
        for name in names:
            _commit_array(arrays.pop(name), build_folder / name, f"{label}: {name}")
            target = self.folder / digests[name]
            shutil.rmtree(target, ignore_errors=True)
            (build_folder / name).rename(target)

    @contextmanager
    def _lock_group(self, group_digest: str, on_wait: Callable[[], None]) -> Iterator[Path]:
        make_folder(self.folder)
        lock = FileLock(self.folder / f"{group_digest}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        build_folder = self.folder / f"{group_digest}.part"
        try:
            shutil.rmtree(build_folder, ignore_errors=True)  # left by a killed process
            yield build_folder
        finally:
            shutil.rmtree(build_folder, ignore_errors=True)
            lock.release()

    def list_entries(self) -> list[CacheEntry]:
        """Return all arrays, the least recently used one first."""
        entries = []
        for path in self.folder.glob("*/about.json"):
            if not path.parent.suffix:  # else it is being built or removed
                loaded = _load_array(path.parent)
                label = loaded[0].label if loaded else "damaged, or from another version"
                with suppress(OSError):  # removed meanwhile
                    size = (path.parent / "array.npy").stat().st_size
                    entries.append(CacheEntry(path.parent, label, size, path.stat().st_mtime))
        return sorted(entries, key=lambda entry: entry.last_used)

    def prune(self, max_bytes: float, protected: frozenset[str] = frozenset()) -> list[CacheEntry]:
        """Remove the least recently used arrays until the rest fits, and what killed builds left.

        Args:
            max_bytes: size of what may stay.
            protected: names of folders that stay in any case.
        """
        for build_folder in self.folder.glob("*.part"):
            with suppress(OSError), FileLock(build_folder.with_suffix(".lock"), timeout=0):
                shutil.rmtree(build_folder, ignore_errors=True)
        for removed_folder in self.folder.glob("*.gone"):  # left by a killed process
            shutil.rmtree(removed_folder, ignore_errors=True)
        entries, removed = self.list_entries(), list[CacheEntry]()
        excess_bytes = sum(entry.size_bytes for entry in entries) - max_bytes
        for entry in entries:
            if excess_bytes > 0 and entry.folder.name not in protected and _remove_entry(entry):
                removed.append(entry)
                excess_bytes -= entry.size_bytes
        return removed

    def remove_damaged(self) -> list[CacheEntry]:
        """Remove the arrays whose content does not match their checksum, and return them."""

        def is_damaged(folder: Path) -> bool:
            loaded = _load_array(folder)
            return loaded is None or zlib.crc32(loaded[1].data) != loaded[0].crc32

        return [e for e in self.list_entries() if is_damaged(e.folder) and _remove_entry(e)]


def _key_digest(key: CacheKey) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _commit_array(array: np.memmap, folder: Path, label: str) -> None:
    array.flush()
    with open(folder / "array.npy", "rb") as file:
        os.fsync(file.fileno())
        status = os.fstat(file.fileno())
    crc32, size = zlib.crc32(array.data), status.st_size
    about = _Metadata(label=label, crc32=crc32, num_bytes=size, modified_ns=status.st_mtime_ns)
    write_text(folder / "about.json", about.model_dump_json())


def _load_array(folder: Path) -> tuple[_Metadata, np.ndarray] | None:
    """Map an array; None unless it is complete and its file as it was written."""
    with suppress(OSError, EOFError, ValueError):
        metadata = _Metadata.model_validate_json((folder / "about.json").read_bytes())
        status = (folder / "array.npy").stat()
        if (status.st_size, status.st_mtime_ns) == (metadata.num_bytes, metadata.modified_ns):
            return metadata, np.load(folder / "array.npy", mmap_mode="c", allow_pickle=False)
    return None


def _remove_entry(entry: CacheEntry) -> bool:
    """Remove an array; return False if another process removed it."""
    with suppress(OSError):
        removed = entry.folder.rename(entry.folder.with_suffix(f".{os.getpid()}.gone"))
        shutil.rmtree(removed, ignore_errors=True)
        return True
    return False
