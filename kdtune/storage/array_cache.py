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
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from kdtune.errors import DiskFullError, UserError
from kdtune.storage.files import NO_SPACE_ERRNOS, make_folder, write_text
from kdtune.units import format_bytes

CACHE_FOLDER_VARIABLE = "KDTUNE_CACHE"
"""Environment variable that names the cache's folder; else it is in the user's cache folder."""

CHECKSUM_CHUNK_BYTES = 1 << 24
"""Bytes of an array that are checked at once."""

CacheKey = Mapping[str, Any]
"""All that made an array, as plain values: another value is another array."""

CreateArray = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""Makes an array to be filled, from its name, shape and type; asked again, it begins anew."""

BuildArrays = Callable[[Sequence[str], CreateArray], None]
"""Makes and fills the arrays of these names."""


class CacheState(StrEnum):
    """What happens to arrays when they are opened."""

    BUILDING = "building"
    BUILT = "built"
    WAITING = "waiting"  # another process builds them
    CACHED = "cached"


class CacheProgress(BaseModel):
    """What happens to arrays when they are opened.

    Attributes:
        content: what kind of arrays, such as ``targets``.
        label: what they are, to show.
        state: what happens.
        num_bytes: their size, once they are there.
        seconds: spent building, waiting or checking.
    """

    model_config = ConfigDict(frozen=True)

    content: str
    label: str
    state: CacheState
    num_bytes: int = 0
    seconds: float = 0.0

    def describe(self) -> str:
        """Return one line for a person."""
        match self.state:
            case CacheState.BUILDING:
                return f"building: {self.label}"
            case CacheState.WAITING:
                return f"waiting for {self.label}, which another process is building"
        duration = f" in {self.seconds:.1f} s" if self.state is CacheState.BUILT else ""
        return f"{self.state}{duration}: {self.label}, {format_bytes(self.num_bytes)}"


OnCacheProgress = Callable[[CacheProgress], None]


def cache_folder() -> Path:
    """Where this node's cache is."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE_FOLDER_VARIABLE) or Path(user_cache) / "kdtune").expanduser()


@dataclass(frozen=True)
class CacheEntry:
    """An array in the cache: what it is, its size in bytes, and when it was last opened."""

    folder: Path
    label: str
    size_bytes: int
    last_used: float


class ArrayCache:
    """The arrays in one folder.

    Args:
        folder: made when something is built.
        limit: bytes that it may hold; what was not used for longest makes room for what is built.
            None is no limit.
    """

    def __init__(self, folder: Path, max_bytes: float | None = None):
        self.folder, self.max_bytes = folder, max_bytes
        self._arrays: dict[str, np.ndarray] = {}

    def open_arrays(
        self,
        label: str,
        group_key: CacheKey,
        array_keys: Mapping[str, CacheKey],
        build: BuildArrays,
        on_progress: OnCacheProgress = lambda progress: None,
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
        digests = {name: _key_digest({**group_key, **key}) for name, key in array_keys.items()}

        def report(state: CacheState, seconds: float = 0.0) -> None:
            size = sum(self._arrays[d].nbytes for d in digests.values() if d in self._arrays)
            on_progress(
                CacheProgress(
                    content=group_key["kind"],
                    label=label,
                    state=state,
                    num_bytes=size,
                    seconds=round(seconds, 3),
                )
            )

        start_time, state = time.perf_counter(), CacheState.CACHED
        for _ in range(2):  # again, if another process made room with what was built
            if not self._open_existing(digests):
                break
            on_wait = partial(report, CacheState.WAITING)
            with self._lock_group(_key_digest(group_key), on_wait) as build_folder:
                if missing := self._open_existing(digests):
                    state = CacheState.BUILT
                    report(CacheState.BUILDING)
                    self._build_arrays(label, missing, digests, build, build_folder)
        if self._open_existing(digests):
            raise UserError(f"{label}: what was written to {self.folder} cannot be read back.")
        report(state, time.perf_counter() - start_time)
        return {name: self._arrays[digest] for name, digest in digests.items()}

    def _open_existing(self, digests: Mapping[str, str]) -> list[str]:
        """Open what is there and whole; the names of the rest."""
        for digest in digests.values():
            if (
                digest not in self._arrays
                and (array := _load_array(self.folder / digest)) is not None
            ):
                self._arrays[digest] = array
        return [name for name, digest in digests.items() if digest not in self._arrays]

    def _build_arrays(
        self,
        label: str,
        names: list[str],
        digests: Mapping[str, str],
        build: BuildArrays,
        build_folder: Path,
    ) -> None:
        arrays: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}

        def create_array(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            sizes[name] = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if self.max_bytes is not None:
                cached_bytes = sum(entry.size_bytes for entry in self.list_entries())
                available_bytes = cached_bytes + shutil.disk_usage(self.folder).free
                # What is made already has its place on the disk, but is no entry yet.
                bytes_to_keep = min(
                    self.max_bytes - sum(sizes.values()), available_bytes - sizes[name]
                )
                self.prune(bytes_to_keep, protected=frozenset(digests.values()))
            (build_folder / name).mkdir(parents=True, exist_ok=True)
            arrays[name] = _create_memmap(build_folder / name / "array.npy", shape, dtype)
            return arrays[name]

        try:
            build(names, create_array)
            for name in names:
                _commit_array(arrays.pop(name), build_folder / name, f"{label}: {name}")
                target = self.folder / digests[name]
                shutil.rmtree(target, ignore_errors=True)  # a broken one
                (build_folder / name).rename(target)
        except OSError as error:
            raise self._write_error(error) from error

    @contextmanager
    def _lock_group(self, group_digest: str, on_wait: Callable[[], None]) -> Iterator[Path]:
        """Hold a group's lock, and give the folder in which to build, which is removed after."""
        make_folder(self.folder)
        lock = FileLock(self.folder / f"{group_digest}.lock")
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_wait()
                lock.acquire()
        except OSError as error:
            raise self._write_error(error) from error
        build_folder = self.folder / f"{group_digest}.part"
        try:
            shutil.rmtree(build_folder, ignore_errors=True)  # of a builder that was killed
            yield build_folder
        finally:
            shutil.rmtree(build_folder, ignore_errors=True)
            lock.release()

    def _write_error(self, error: OSError) -> Exception:
        error_type = DiskFullError if error.errno in NO_SPACE_ERRNOS else UserError
        return error_type(
            f"The cache {self.folder} cannot be written ({error.strerror}); make room, e.g. with "
            f"'kdtune cache --prune 0', or set {CACHE_FOLDER_VARIABLE} to another folder."
        )

    def list_entries(self) -> list[CacheEntry]:
        """All arrays, the one that was not used for longest first."""
        entries = []
        for metadata_file in self.folder.glob("*/about.json"):
            if metadata_file.parent.suffix:  # being removed
                continue
            with suppress(OSError, ValueError, KeyError):  # removed meanwhile, or broken
                metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
                size = (metadata_file.parent / "array.npy").stat().st_size
                entries.append(
                    CacheEntry(
                        metadata_file.parent, metadata["what"], size, metadata_file.stat().st_mtime
                    )
                )
        return sorted(entries, key=lambda entry: entry.last_used)

    def prune(self, max_bytes: float, protected: frozenset[str] = frozenset()) -> list[CacheEntry]:
        """Remove what was not used for longest until the rest fits, and what killed builders left.

        Args:
            limit: bytes that may stay.
            keep: names of folders that stay, whatever their size.

        Returns:
            What was removed; processes that have it open keep it until they end.
        """
        for build_folder in self.folder.glob("*.part"):
            # A lock that cannot be had is that of a builder, or somebody else's.
            with suppress(OSError), FileLock(build_folder.with_suffix(".lock"), timeout=0):
                shutil.rmtree(build_folder, ignore_errors=True)
        for removed_folder in self.folder.glob(
            "*.gone"
        ):  # of a process that was killed while it pruned
            shutil.rmtree(removed_folder, ignore_errors=True)
        entries = self.list_entries()
        total_bytes = sum(entry.size_bytes for entry in entries)
        removed = []
        for entry in entries:
            if total_bytes <= max_bytes:
                break
            if entry.folder.name not in protected:
                with suppress(OSError):  # removed meanwhile
                    removed_folder = entry.folder.rename(
                        entry.folder.with_suffix(f".{os.getpid()}.gone")
                    )
                    removed.append(entry)
                    total_bytes -= entry.size_bytes
                    shutil.rmtree(removed_folder, ignore_errors=True)
        return removed


def _key_digest(key: CacheKey) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _create_memmap(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)
    if hasattr(os, "posix_fallocate"):
        # Else a disk that gets full kills the process when it writes to the mapped file.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _commit_array(array: np.ndarray, folder: Path, label: str) -> None:
    """Bring a filled array to the disk, with what proves it whole."""
    array.flush()  # type: ignore[attr-defined]
    with open(folder / "array.npy", "rb") as file:
        os.fsync(file.fileno())
    metadata = {"what": label, "crc32": _checksum(array)}
    write_text(folder / "about.json", json.dumps(metadata))


def _load_array(folder: Path) -> np.ndarray | None:
    """Map an array that is there and whole; else None."""
    try:
        metadata = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        array = np.load(folder / "array.npy", mmap_mode="c", allow_pickle=False)
        is_intact = _checksum(array) == metadata["crc32"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):  # somebody else's, and only to be read
        os.utime(folder / "about.json")
    return array if is_intact else None


def _checksum(array: np.ndarray) -> int:
    content, checksum = array.reshape(-1).view(np.uint8), 0
    for start in range(0, len(content), CHECKSUM_CHUNK_BYTES):
        checksum = zlib.crc32(content[start : start + CHECKSUM_CHUNK_BYTES].data, checksum)
    return checksum
