"""Messages for the user, and text that is safe to print."""

import os
import sys
from pathlib import Path


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


def printable_path(path: str | Path) -> str:
    """Return a path as text, also if it is not valid UTF-8 or holds control characters."""
    return printable(os.fsencode(path).decode(errors="backslashreplace"))
