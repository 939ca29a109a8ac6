"""What Ctrl-C and SIGTERM mean while trials run: the epochs under way are finished first."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn, Self

from kdtune.units import duration


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the sweep."""


@contextmanager
def _heard(number: int, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have a signal heard in another way; outside the main thread it is not heard anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def deferred() -> Iterator[None]:
    """Hear Ctrl-C only afterwards: what starts processes must not be left half done.

    Raises:
        KeyboardInterrupt: afterwards, if it was pressed.
    """
    heard: list[int] = []
    with _heard(signal.SIGINT, lambda number, frame: heard.append(number)):
        yield
    if heard:
        raise KeyboardInterrupt


@contextmanager
def terminating() -> Iterator[None]:
    """Have a SIGTERM raise `Terminated`, except while `Interrupts` hear it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _heard(signal.SIGTERM, end):
        yield


class Interrupts:
    """Signals, while trials run; to be used in a ``with``, around them.

    The first Ctrl-C, or a SIGTERM, as Slurm and spot machines send one, only asks the sweep to
    stop; a further signal, or the end of the time that SIGTERM leaves, stops it at once. Outside
    the main thread, where Python hears no signals, nothing is changed.

    Args:
        term_limit: seconds that epochs under way have after a SIGTERM.
        say: takes a line for a person.
    """

    def __init__(self, term_limit: float, say: Callable[[str], None]):
        self.term_limit, self._say = term_limit, say
        self.requested = False
        """Whether the sweep is to stop, once the epochs under way are finished."""
        self.terminated = False
        self._deadline = float("inf")
        self._hearing = ExitStack()

    def end(self, text: str) -> NoReturn:
        """End what was to stop: as SIGTERM does, if that was heard; `text` says how to go on."""
        raise (Terminated if self.terminated else KeyboardInterrupt)(text)

    def check(self) -> None:
        """Stop at once if there is no time left.

        Raises:
            Terminated: the time that SIGTERM left is over.
        """
        if time.monotonic() >= self._deadline:
            raise Terminated

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.requested = True
        if number == signal.SIGTERM:
            self.terminated = True
            self._deadline = time.monotonic() + self.term_limit
            self._say(f"SIGTERM: finishing the epochs under way, {duration(self.term_limit)} long")
        else:
            self._say("finishing the epochs under way; Ctrl-C again stops at once")

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._hearing.enter_context(_heard(number, self._hear))
        return self

    def __exit__(self, *error: object) -> None:
        self._hearing.close()
