"""What a process sets for itself before it trains, and how it begins anew for another run."""

import ctypes
import gc
import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdtune.runtime.device import release_gpu_memory

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`, see malloc.h."""


def keep_freed_memory() -> None:
    """Have the C library keep the memory that tensors free, for the next step to use again.

    Activations of a step are freed and allocated anew in the next one. glibc gives them back to
    the system in between, and every page that comes again costs a fault: about a tenth of a step
    of a small student, more on virtual machines. Elsewhere than under glibc nothing is done.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_MAX, 0)):
                libc.mallopt(parameter, value)
            libc.mallopt(M_ARENA_MAX, 1)  # other arenas are too small for what is kept


def _attribute_accessors(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _set_warning_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _set_import_path(entries: list[str]) -> None:
    sys.path[:] = entries


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


_STATE_ACCESSORS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    # A default device, even the usual one, costs time in every call of torch's once it is set.
    (torch.get_default_device, lambda _: torch.set_default_device(None)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    *(
        _attribute_accessors(torch.backends.cudnn, name)
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    ),
    (np.geterr, lambda wanted: np.seterr(**wanted)),
    (lambda: list(warnings.filters), _set_warning_filters),
    (lambda: list(sys.path), _set_import_path),
    (lambda: dict(os.environ), _set_environment),
)
"""What a run may change for the whole process: how it is read, how it is set."""


class ProcessState:
    """The state of a process before its first run, to which it can return before each further one.

    Global settings of torch and numpy, threads, warnings, paths and environment are set back;
    random states are seeded; compiled code, garbage and free memory of devices go. What is shared
    on purpose, such as views and a teacher, stays.
    """

    def __init__(self) -> None:
        self._snapshot = [getter() for getter, _ in _STATE_ACCESSORS]
        gc.collect()
        gc.freeze()  # so that collecting garbage between runs need not go through all of torch

    def restore(self, seed: int) -> None:
        """Return to it, with random states that follow from `seed`."""
        for (getter, setter), value in zip(_STATE_ACCESSORS, self._snapshot, strict=True):
            if getter() != value:
                setter(value)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if "torch._dynamo" in sys.modules:  # it stops compiling after some networks of one kind
            torch._dynamo.reset()
        gc.collect()
        release_gpu_memory()
