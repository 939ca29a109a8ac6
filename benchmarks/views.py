"""Time to build an augmented view on one core and on all, and to open an array of the cache.

    make bench-views

A view is filled in this process, by threads, and by processes as kdtune starts them for a large
view; the ways take turns, and the times are those of the shortest of all rounds, since other work
on the machine only adds to them. Beside it is the CPU time of all cores, to which other work adds
little. *Start* is a view of a single image by processes. An array of the cache is opened as every
process does, and is then read whole to compare its checksum, as `kdtune cache --verify` does.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdtune.data import augmented_views
from kdtune.data.augmented_views import IMAGES_PER_CHUNK, fill_in_processes
from kdtune.data.decoding import limit_workers
from kdtune.data.transforms import augment_images
from kdtune.storage.array_cache import ArrayCache, CreateArray

SIZES = {32: 20_000, 64: 12_000, 128: 6_000, 224: 2_500}
"""Number of images, by their size in pixels."""

ARRAY_BYTES = 10**9


def seconds_of(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, and its CPU time with that of its processes."""
    started_at, cpu_before = time.perf_counter(), sum(os.times()[:4])
    call()
    return time.perf_counter() - started_at, sum(os.times()[:4]) - cpu_before


def fill_by_threads(images: np.ndarray, out: np.ndarray, cores: int) -> None:
    """Augment the images in threads of this process."""

    def fill(start: int) -> None:
        chunk = torch.from_numpy(images[start : start + IMAGES_PER_CHUNK])
        seeds = range(start, start + len(chunk))
        out[start : start + IMAGES_PER_CHUNK] = augment_images(chunk, seeds).numpy()

    with ThreadPoolExecutor(cores) as executor:
        list(executor.map(fill, range(0, len(images), IMAGES_PER_CHUNK)))


def measure_views(size: int, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the two times of a view by each way, and of the start of the processes."""
    cores, shape = limit_workers(), (count, 3, size, size)
    images, out, first = (
        np.lib.format.open_memmap(folder / f"{name}-{size}.npy", "w+", np.uint8, part)
        for name, part in (("images", shape), ("view", shape), ("first", (1, *shape[1:])))
    )
    images[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    first[:] = images[:1]
    ways: dict[str, Callable[[], object]] = {
        "one_core": lambda: augmented_views._fill_share(images, out, 0, "standard"),
        "threads": lambda: fill_by_threads(images, out, cores),
        "processes": lambda: fill_in_processes(images, out, 0, processes=cores),
        "start": lambda: fill_in_processes(first, first, 0, processes=cores),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    digests = set()
    for _ in range(rounds):
        for name, fill in ways.items():
            seconds[name].append(seconds_of(fill))
            digests.add(hash(out.tobytes()))
    assert len(digests) == 1, "the ways differ"
    return {"size": size, "images": count, **{k: min(v) for k, v in seconds.items()}}


def measure_open(rounds: int, folder: Path) -> tuple[float, float]:
    """Return the seconds to open an array of the cache, and to compare its checksum."""

    def build(names: object, create: CreateArray) -> None:
        create("x", (ARRAY_BYTES,), np.dtype(np.uint8))[:] = 1

    def open_array() -> None:
        ArrayCache(folder).open_arrays("an array", {"kind": "bench"}, {"x": {}}, build)

    open_array()
    opened = [seconds_of(open_array)[0] for _ in range(rounds)]
    verified = [seconds_of(ArrayCache(folder).remove_damaged)[0] for _ in range(rounds)]
    return min(opened), min(verified)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = "px", "images", "one core s", "threads s", "processes s", "start s"
    print(f"{limit_workers()} cores; seconds, and CPU seconds of all cores")
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    rows = []
    with tempfile.TemporaryDirectory(prefix="kdtune-") as name:
        for size, count in SIZES.items():
            rows.append(row := measure_views(size, count, arguments.rounds, Path(name)))
            times = (f"{row[way][0]:.1f} ({row[way][1]:.1f})" for way in list(row)[2:])
            print(f"| {size} | {count:,} | {' | '.join(times)} |", flush=True)
        opened, verified = measure_open(arguments.rounds, Path(name) / "cache")
    gigabytes = ARRAY_BYTES / 1e9
    print(f"{gigabytes:g} GB: opened in {opened:.4f} s, with its checksum in {verified:.2f} s")
    summary = {"cores": len(os.sched_getaffinity(0)), "rows": rows}
    print(json.dumps({**summary, "open_seconds": opened, "verify_seconds": verified}))


if __name__ == "__main__":
    main()
