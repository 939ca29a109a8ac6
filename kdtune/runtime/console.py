"""Messages for the user, and text that is safe to print."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST_WORD_SECONDS, NEXT_WORD_SECONDS = 2.0, 5.0
"""Seconds of silence before `waiting` says what takes long, and between its further lines."""


def printable(text: str) -> str:
    """Return text whose control characters are shown as escape sequences."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def in_notebook() -> bool:
    """Return True in the process of a notebook."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return "IPKernelApp" in getattr(get_ipython(), "config", ())


def say(text: str) -> None:
    """Print a line to stderr, but to stdout in a notebook, which shows stderr in red."""
    print(text, file=sys.stdout if in_notebook() else sys.stderr, flush=True)


@contextmanager
def waiting(what: str, say: Callable[[str], None] = say) -> Iterator[None]:
    """Say what takes long while the block runs; nothing if it ends within two seconds.

    In a file, where nobody waits, it is said once.

    Args:
        what: is done, such as "loading PyTorch".
        say: takes a line.
    """
    started_at = time.monotonic()

    def report(ended: threading.Event) -> None:
        if ended.wait(FIRST_WORD_SECONDS):
            return
        say(what)
        while sys.stderr.isatty() and not ended.wait(NEXT_WORD_SECONDS):
            say(f"{what}: {time.monotonic() - started_at:.0f} s so far")

    with running_beside(report):
        yield


@contextmanager
def running_beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a function in a thread beside the block; its event is set when the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def printable_path(path: str | Path) -> str:
    """Return a path as text, also if it is not valid UTF-8 or holds control characters."""
    return printable(os.fsencode(path).decode(errors="backslashreplace"))
