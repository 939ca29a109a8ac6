"""Augmented views: the images of an array, each augmented by its own seed, on all cores.

A large view is made by a process that is started anew and forks one process for each further core.
Threads would take turns, since augmentation is many short calls (`make bench-views`). The caller
itself is never forked: it may use CUDA and threads. Neither is its program imported again, as
`multiprocessing` does, so scripts need no guard. The processes end when the caller is killed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Process, set_start_method
from pathlib import Path

import numpy as np
import torch

from kdtune.data.decoding import limit_workers
from kdtune.data.transforms import augment_images
from kdtune.errors import RunError

FillView = Callable[[np.ndarray, np.ndarray, int, str], None]
"""Fills a view from the images [N, 3, S, S], the first one's seed, and the augmentation's name."""

SECONDS_PER_IMAGE, SECONDS_PER_PIXEL, START_SECONDS = 1.6e-4, 2.4e-8, 4.5
"""Time of a core for an image and for each pixel, and time until processes have started.

From one run of `make bench-views` on two shared cores. They decide who makes a view, and not what
it is.
"""

IMAGES_PER_CHUNK = 64

IDLE_SAMPLE_SECONDS = 0.5
BACKGROUND_NICENESS = 19  # the lowest priority; processes of Ray have 15


def count_processes(num_images: int, image_size: int) -> int:
    """Return the number of processes that make a view; 0 if the caller does.

    Args:
        num_images: number of its images.
        image_size: height and width in pixels.
    """
    cores = limit_workers()
    seconds = num_images * (SECONDS_PER_IMAGE + SECONDS_PER_PIXEL * image_size**2)
    return cores if seconds - seconds / cores > START_SECONDS else 0


def fill_view(
    images: np.ndarray, out: np.ndarray, base_seed: int, augment: str = "standard"
) -> None:
    """Augment each image by the seed `base_seed` + its index, on all cores of this process.

    Args:
        images: uint8 [N, 3, S, S].
        out: of the same shape.
        base_seed: seed of the first image.
        augment: one of `kdtune.data.transforms.AUGMENTATIONS`.
    """
    if processes := count_processes(len(images), images.shape[-1]):
        # Such as too little memory; an error of the images or the disk is raised below.
        with suppress(OSError, RunError):
            return fill_in_processes(images, out, base_seed, augment, processes)
    _fill_share(images, out, base_seed, augment)


def fill_in_processes(
    images: np.ndarray,
    out: np.ndarray,
    base_seed: int,
    augment: str = "standard",
    processes: int = 1,
    niceness: int = 0,
) -> None:
    """Augment each image as `fill_view` does, in new processes.

    Args:
        images: uint8 [N, 3, S, S], memory-mapped.
        out: of the same shape, memory-mapped.
        base_seed: seed of the first image.
        augment: as in `fill_view`.
        processes: number of processes.
        niceness: 0 to 19, above that of this process.

    Raises:
        RunError: a process failed.
    """
    assert isinstance(images, np.memmap) and isinstance(out, np.memmap)
    files = (str(Path(str(array.filename)).absolute()) for array in (images, out))
    numbers = map(str, (base_seed, processes, niceness, os.getpid()))
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    result = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *files, augment, *numbers],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if result.returncode:
        reason = result.stderr.strip().rpartition("\n")[2] or f"exit status {result.returncode}"
        raise RunError(f"A view could not be built: {reason}")


def count_idle_cores() -> int:
    """Return the number of cores of this process that nothing uses now; 0 if it is not known.

    Work at low priority counts as use: so do trials run, which are processes of Ray.
    """
    try:
        before = _read_core_times()
        time.sleep(IDLE_SAMPLE_SECONDS)
        idle, total = (after - was for after, was in zip(_read_core_times(), before, strict=True))
    except OSError:
        return 0
    return limit_workers(round((os.cpu_count() or 1) * idle / max(total, 1)))


def _read_core_times() -> tuple[int, int]:
    """Return the time that all cores were idle, also in wait of disks, and all time, in ticks."""
    with open("/proc/stat") as file:
        times = list(map(int, file.readline().split()[1:9]))
    _user, _nice, _system, idle, waiting, *_ = times
    return idle + waiting, sum(times)


def _fill_share(
    images: np.ndarray,
    out: np.ndarray,
    base_seed: int,
    augment: str,
    share: int = 0,
    num_shares: int = 1,
    parent: int | None = None,
) -> None:
    """Augment every `num_shares`-th chunk; exit without the parent process, if one is given."""
    size = IMAGES_PER_CHUNK
    for start in range(share * size, len(images), num_shares * size):
        if parent not in (None, os.getppid()):
            os._exit(1)
        chunk = torch.from_numpy(images[start : start + size])
        seeds = range(base_seed + start, base_seed + start + len(chunk))
        out[start : start + size] = augment_images(chunk, seeds, augment).numpy()


def _run_process(source: str, target: str, base_seed: int, augment: str, *numbers: int) -> None:
    arrays = np.load(source, mmap_mode="c"), np.load(target, mmap_mode="r+")
    _fill_share(*arrays, base_seed, augment, *numbers)


def _main(source: str, target: str, augment: str, *numbers: str) -> bool:
    """Augment a share, and the others in forked processes; return True if one of them failed."""
    base_seed, num_shares, niceness, parent = map(int, numbers)
    os.nice(niceness)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        set_start_method("fork")  # this process has neither threads nor CUDA
    task, this_process = (source, target, base_seed, augment), os.getpid()
    others = [
        Process(target=_run_process, args=(*task, share, num_shares, this_process))
        for share in range(1, num_shares)
    ]
    for process in others:
        process.start()
    _run_process(*task, 0, num_shares, parent)
    for process in others:
        process.join()
    return any(process.exitcode for process in others)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
