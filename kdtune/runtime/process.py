"""Global state of a process that trains several runs, and its memory allocator."""

import ctypes
import gc
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.backends import cuda, cudnn, mkldnn

from kdtune.runtime.device import release_gpu_memory

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`, see malloc.h."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the activations of the next step; else a no-op.

    The page faults of getting it from the system again take a tenth of a step of a small student.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_ARENA_MAX, 1)  # other arenas are too small


@contextmanager
def single_threaded() -> Iterator[None]:
    """Have torch compute with one thread in the block, and in threads that start there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _set_warning_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _set_import_path(entries: list[str]) -> None:
    sys.path[:] = entries


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


_FLOAT32_BACKENDS = (
    *(torch.backends, cuda.matmul, cudnn),  # mkldnn itself sets that of torch.backends
    *(getattr(cudnn, name) for name in ("conv", "rnn")),
    *(getattr(mkldnn, name) for name in ("conv", "matmul", "rnn")),
)


def _get_float32_precision() -> tuple[str | None, bool | None, list[str]]:
    matmul = cudnn_tf32 = None
    with warnings.catch_warnings(action="ignore"):  # torch 2.9 warns of both
        with suppress(RuntimeError):  # refused where they disagree with `fp32_precision`
            matmul = torch.get_float32_matmul_precision()
        with suppress(RuntimeError):
            cudnn_tf32 = cudnn.allow_tf32
    return matmul, cudnn_tf32, [str(backend.fp32_precision) for backend in _FLOAT32_BACKENDS]


def _set_float32_precision(wanted: tuple[str | None, bool | None, list[str]]) -> None:
    matmul, cudnn_tf32, precisions = wanted
    with warnings.catch_warnings(action="ignore"):
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn_tf32 is not None:
            cudnn.allow_tf32 = cudnn_tf32
    for backend, precision in zip(_FLOAT32_BACKENDS, precisions, strict=True):
        backend.fp32_precision = precision


def _get_default_device() -> torch.device | None:
    with suppress(AttributeError):  # torch 2.9 has none to return after None was set
        return torch.get_default_device()
    return None


_STATE_ACCESSORS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    # Any default device, even the usual one, slows down every call of torch.
    (_get_default_device, lambda _: torch.set_default_device(None)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (_get_float32_precision, _set_float32_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    *(
        (partial(getattr, cudnn, name), partial(setattr, cudnn, name))
        for name in ("enabled", "benchmark", "deterministic")
    ),
    (np.geterr, lambda wanted: np.seterr(**wanted)),
    (lambda: list(warnings.filters), _set_warning_filters),
    (lambda: list(sys.path), _set_import_path),
    (lambda: dict(os.environ), _set_environment),
)
"""Getter and setter of each part of the state that a run may change for the whole process."""


class ProcessState:
    """The global state of a process before its first run, restored before each further run.

    Inputs that runs share, such as a teacher, stay.
    """

    def __init__(self) -> None:
        self._snapshot = [getter() for getter, _ in _STATE_ACCESSORS]
        gc.collect()
        gc.freeze()  # collecting garbage between runs then skips all of torch

    def restore(self, seed: int) -> None:
        """Restore the state, seed all random generators, and free compiled code and memory."""
        for (getter, setter), value in zip(_STATE_ACCESSORS, self._snapshot, strict=True):
            if getter() != value:
                setter(value)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # else it stops compiling after some networks of one kind
        gc.collect()
        release_gpu_memory()
