"""What Ctrl-C and SIGTERM mean while trials run: the epochs under way are finished first."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn, Self

from kdtune.units import format_duration


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the sweep."""


@contextmanager
def _install_handler(
    signum: int, handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Have a signal heard in another way; outside the main thread it is not heard anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, previous)


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Hear Ctrl-C only afterwards: what starts processes must not be left half done.

    Raises:
        KeyboardInterrupt: afterwards, if it was pressed.
    """
    received: list[int] = []
    with _install_handler(signal.SIGINT, lambda signum, frame: received.append(signum)):
        yield
    if received:
        raise KeyboardInterrupt


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Have a SIGTERM raise `Terminated`, except while `Interrupts` hear it."""

    def raise_terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    with _install_handler(signal.SIGTERM, raise_terminated):
        yield


class InterruptHandler:
    """Signals, while trials run; to be used in a ``with``, around them.

    The first Ctrl-C, or a SIGTERM, as Slurm and spot machines send one, only asks the sweep to
    stop; a further signal, or the end of the time that SIGTERM leaves, stops it at once. Outside
    the main thread, where Python hears no signals, nothing is changed.

    Args:
        shutdown_grace: seconds that epochs under way have after a SIGTERM.
        say: takes a line for a person.
    """

    def __init__(self, shutdown_grace: float, say: Callable[[str], None]):
        self.shutdown_grace, self._say = shutdown_grace, say
        self.stop_requested = False
        """Whether the sweep is to stop, once the epochs under way are finished."""
        self.terminated = False
        self._deadline = float("inf")
        self._handlers = ExitStack()

    def raise_interrupt(self, message: str) -> NoReturn:
        """End what was to stop: as SIGTERM does, if that was heard; `text` says how to go on."""
        raise (Terminated if self.terminated else KeyboardInterrupt)(message)

    def check_deadline(self) -> None:
        """Stop at once if there is no time left.

        Raises:
            Terminated: the time that SIGTERM left is over.
        """
        if time.monotonic() >= self._deadline:
            raise Terminated

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt
        self.stop_requested = True
        if signum == signal.SIGTERM:
            self.terminated = True
            self._deadline = time.monotonic() + self.shutdown_grace
            self._say(
                f"SIGTERM: finishing the epochs under way, {format_duration(self.shutdown_grace)} long"
            )
        else:
            self._say("finishing the epochs under way; Ctrl-C again stops at once")

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._handlers.enter_context(_install_handler(signum, self._on_signal))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()
