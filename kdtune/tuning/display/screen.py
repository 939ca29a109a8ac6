"""Output of lines and a live display to a terminal, a notebook or a file.

Nothing that fails here ends a sweep: lines replace a display that cannot be drawn, and lines that
cannot be written are lost.
"""

import io
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from kdtune.errors import UserError, did_you_mean
from kdtune.runtime.console import printable


class LineKind(IntEnum):
    """Importance of a line."""

    DETAIL = 0  # the live display shows it as well
    INFO = 1
    WARNING = 2  # something failed or needs attention


DETAIL, INFO, WARNING = LineKind

LEAST_KIND_BY_MODE = {"live": INFO, "plain": DETAIL, "quiet": WARNING, "verbose": DETAIL}
"""Least important lines of each mode. ``live`` also draws, or is ``plain`` where it cannot;
``verbose`` is ``plain`` with the output of Ray."""

REDRAW_SECONDS, SUMMARY_SECONDS = 0.5, 60.0
"""Seconds between two drawings, and between two summary lines."""


class Display(ABC):
    """A status that can be drawn, and summarized in a line."""

    @abstractmethod
    def render(self, height: int) -> RenderableType:
        """Return the current status for a screen of `height` rows."""

    @abstractmethod
    def summary(self) -> str | None:
        """Return the current status as one line; None if there is nothing to report."""


class Screen:
    """Output to stderr: lines and a live display.

    Args:
        show: mode, a key of `LEAST_KIND_BY_MODE`.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, show: str = "live", clock: Callable[[], float] = time.monotonic):
        if show not in LEAST_KIND_BY_MODE:
            suggestion = did_you_mean(show, LEAST_KIND_BY_MODE)
            raise UserError(f"There is no display mode '{show}'; {suggestion}.")
        self._console = _RaisingConsole(stderr=True)
        can_draw = self._console.is_interactive and sys.stderr.isatty()
        if show == "live" and not can_draw and not self._console.is_jupyter:
            show = "plain"
        self.show, self.clock = show, clock
        self._display: Display | None = None
        self._live: Live | None = None
        self._notebook_output: Any = None  # IPython's handle of an output
        self._next_refresh = 0.0
        self._pending_lines: deque[str] = deque()
        self._flush_lock = threading.Lock()

    def say(self, text: str, kind: LineKind = INFO) -> None:
        """Write a line if the mode includes its kind; safe inside a signal handler.

        Args:
            text: the line.
            kind: of the line.
        """
        if kind >= LEAST_KIND_BY_MODE[self.show]:
            self._pending_lines.append(printable(text))
            self._flush(draw=False)

    def warn(self, text: str) -> None:
        """Write a line about a failure, or one that needs attention."""
        self.say(text, WARNING)

    @contextmanager
    def drawing(self, display: Display) -> Iterator[None]:
        """Draw a display now, at each `refresh` that is due, and at the end, where it stays."""
        self._display = display
        self._schedule_refresh()
        try:
            self._flush()
            yield
        finally:
            try:
                self._flush()
            finally:
                self._display = self._notebook_output = None
                self._stop_live()

    def refresh(self) -> None:
        """Draw the display or write its summary, if it is time; to be called often."""
        if self._display is None or self.clock() < self._next_refresh:
            return
        self._schedule_refresh()
        if self.show == "live":
            self._flush()
            return
        with suppress(Exception):
            if (line := self._display.summary()) is not None:
                self.say(line, DETAIL)

    def _schedule_refresh(self) -> None:
        seconds = REDRAW_SECONDS if self.show == "live" else SUMMARY_SECONDS
        self._next_refresh = self.clock() + seconds

    def _flush(self, draw: bool = True) -> None:
        # Waiting would deadlock in a signal handler that interrupted the holder, which writes the
        # line as well.
        if not self._flush_lock.acquire(blocking=False):
            return
        try:
            while self._pending_lines:
                if self._live is None:
                    print(self._pending_lines[0], file=sys.stderr, flush=True)
                else:
                    self._console.print(Text(self._pending_lines[0]), soft_wrap=True)
                self._pending_lines.popleft()
            if draw and self.show == "live" and self._display is not None:
                self._draw(self._display)
        except Exception:
            self._stop_live()
            self.show = "plain" if self.show == "live" else self.show
            with suppress(Exception):
                while self._pending_lines:
                    print(self._pending_lines.popleft(), file=sys.stderr, flush=True)
        finally:
            self._flush_lock.release()

    def _draw(self, display: Display) -> None:
        if self._console.is_jupyter:  # where rich's Live needs ipywidgets
            page = Console(width=110, height=48, file=io.StringIO(), force_jupyter=False)
            with page.capture() as capture:
                page.print(display.render(page.height))
            text = {"text/plain": capture.get().rstrip("\n")}
            if self._notebook_output is None:
                show_output = sys.modules["IPython.display"].display
                self._notebook_output = show_output(text, raw=True, display_id=True)
            else:
                self._notebook_output.update(text, raw=True)
            return
        if self._live is None:
            # A refreshing thread would read while events are folded; stdout is for results.
            options: dict[str, Any] = {"auto_refresh": False, "redirect_stdout": False}
            self._live = Live(console=self._console, vertical_overflow="crop", **options)
            self._live.start()
        self._live.update(display.render(self._console.height), refresh=True)

    def _stop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(Exception):
                live.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray's snapshots of objects that hold a screen are never read."""
        return {}


class _RaisingConsole(Console):
    """A console that raises `BrokenPipeError` instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise
