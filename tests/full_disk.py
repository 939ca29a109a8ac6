"""A stand-in for a full disk."""

import resource
from contextlib import contextmanager


@contextmanager
def file_size_limit(num_bytes):
    """Let no file of this process grow beyond a size; gives a function that lifts the limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield lift
    finally:
        lift()
