"""Ctrl-C and SIGTERM while trials run: running epochs finish first."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn, Self

from kdtune.runtime.console import say
from kdtune.units import format_duration

EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""

OVERDUE_SECONDS = 5.0
"""Seconds after the grace time; with its default, a process ends before Slurm kills it at 30 s."""


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
    after SIGTERM, stops at once. So does the first one if no running epoch is worth to be
    finished. A no-op outside the main thread.
    """

    shutdown_grace: float
    """Seconds to finish running epochs after SIGTERM."""
    say: Callable[[str], None]
    has_progress: Callable[[], bool] = lambda: True
    """Returns True if a running trial has finished an epoch; else there is nothing to keep."""
    describe_interrupt: Callable[[], str] | None = None
    """Returns what is said if the process is still alive some seconds after the grace time.

    Then it ends: a SIGTERM may have ended Ray as well, for which Ray's calls wait a minute.
    """
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
        is_sigterm = signum == signal.SIGTERM
        if is_sigterm and not self.terminated:
            self.terminated = True
            self._deadline = time.monotonic() + self.shutdown_grace
            if self.describe_interrupt is not None:
                threading.Thread(target=self._end_process, daemon=True).start()
        if self.stop_requested or not self.has_progress():
            self.stop_requested = True
            raise Terminated if is_sigterm else KeyboardInterrupt
        self.stop_requested = True
        if is_sigterm:
            grace = format_duration(self.shutdown_grace)
            self.say(f"SIGTERM: finishing the running epochs, for at most {grace}")
        else:
            self.say("finishing the running epochs; press Ctrl-C again to stop at once")

    def _end_process(self) -> None:
        """End a process that is still alive when others would kill it."""
        time.sleep(self.shutdown_grace + OVERDUE_SECONDS)
        assert self.describe_interrupt is not None
        say(f"kdtune: interrupted: {self.describe_interrupt()}")
        os._exit(EXIT_TERMINATED)

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._handlers.enter_context(_install_handler(signum, self._on_signal))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()
