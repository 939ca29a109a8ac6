"""Prints to stderr, and makes text from outside safe to print."""

import os
import sys
from pathlib import Path


def printable(text: str) -> str:
    """Text without control characters: they are shown as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Say a line to the person who waits."""
    print(text, file=sys.stderr, flush=True)


def printable_path(path: str | Path) -> str:
    """A path for people, also where its name is not valid UTF-8 or holds control characters."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
