"""Ctrl-C and SIGTERM while trials run: running epochs finish first."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn, Self

from kdtune.units import format_duration


class Terminated(KeyboardInterrupt):
    """A SIGTERM that ends the sweep."""


@contextmanager
def _install_handler(
    signum: int, handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Install a signal handler; a no-op outside the main thread."""
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
    """Hold back Ctrl-C until the block is complete, e.g. while processes start."""
    received: list[int] = []
    with _install_handler(signal.SIGINT, lambda signum, frame: received.append(signum)):
        yield
    if received:
        raise KeyboardInterrupt


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, unless an `InterruptHandler` is active."""

    def raise_terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    with _install_handler(signal.SIGTERM, raise_terminated):
        yield


@dataclass
class InterruptHandler:
    """Context manager in which Ctrl-C and SIGTERM stop a sweep gracefully.

    The first Ctrl-C or SIGTERM requests a stop; a further signal, or the end of the grace time
    after SIGTERM, stops at once. A no-op outside the main thread.
    """

    shutdown_grace: float
    """Seconds to finish running epochs after SIGTERM."""
    say: Callable[[str], None]
    stop_requested: bool = field(default=False, init=False)
    """True if the sweep must stop when the running epochs are finished."""
    terminated: bool = field(default=False, init=False)
    _deadline: float = field(default=math.inf, init=False)
    _handlers: ExitStack = field(default_factory=ExitStack, init=False)

    def raise_interrupt(self, message: str) -> NoReturn:
        """Raise the interrupt that was requested; the message says how to resume."""
        raise (Terminated if self.terminated else KeyboardInterrupt)(message)

    def check_deadline(self) -> None:
        """Raise `Terminated` if the grace time after SIGTERM is over."""
        if time.monotonic() >= self._deadline:
            raise Terminated

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt
        self.stop_requested = True
        if signum == signal.SIGTERM:
            self.terminated = True
            self._deadline = time.monotonic() + self.shutdown_grace
            grace = format_duration(self.shutdown_grace)
            self.say(f"SIGTERM: finishing the running epochs, for at most {grace}")
        else:
            self.say("finishing the running epochs; Ctrl-C again stops at once")

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._handlers.enter_context(_install_handler(signum, self._on_signal))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()
