"""What a process of ours sets for itself before it trains."""

import ctypes
import sys

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
