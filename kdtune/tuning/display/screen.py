"""Where words for the person who waits go: a terminal, a notebook, or a file of lines.

On a terminal and in a notebook, how far all is stands in one place that is drawn anew; elsewhere
it is a line a minute. Nothing that fails here ends a sweep: what cannot be drawn is said in lines,
and what cannot be said is lost.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kdtune.errors import UserError, did_you_mean
from kdtune.runtime.console import printable

DETAIL, INFO, WARNING = "detail", "news", "trouble"
"""What a line is: what a drawing shows as well; what it does not; what went wrong, or asks for the
person's attention."""

LINE_KINDS_BY_MODE = {
    "live": (INFO, WARNING),
    "plain": (DETAIL, INFO, WARNING),
    "quiet": (WARNING,),
    "verbose": (DETAIL, INFO, WARNING),
}
"""What is said in each way of showing a sweep. ``live`` also draws, and is ``plain`` where that is
not possible; ``verbose`` is ``plain`` beside the output of Ray."""

REDRAW_SECONDS, SUMMARY_SECONDS = 0.5, 60.0
"""Seconds between two drawings, and between two lines that say how far all is."""

NOTEBOOK_SIZE = (110, 48)
"""Characters and lines of a drawing in a notebook."""


class Renderable(Protocol):
    """What can be drawn."""

    def render_lines(self, width: int, height: int) -> list[str]:
        """Lines that fit, the first one a line of headings."""

    def summary(self) -> str | None:
        """The same in a line; None if there is nothing to say."""


class Screen:
    """Says lines on stderr, and draws what changes.

    Args:
        show: a key of `SHOW`.
        clock: seconds, which nobody sets.

    Raises:
        UserError: there is no such way.
    """

    def __init__(self, show: str = "live", clock: Callable[[], float] = time.monotonic):
        if show not in LINE_KINDS_BY_MODE:
            raise UserError(
                f"A sweep cannot be shown '{show}'; {did_you_mean(show, LINE_KINDS_BY_MODE)}."
            )
        self._console = _RaisingConsole(stderr=True)
        can_draw = sys.stderr.isatty() and self._console.is_interactive
        if show == "live" and not can_draw and not self._console.is_jupyter:
            show = "plain"
        self.show, self.clock = show, clock
        self._renderable: Renderable | None = None
        self._live: Live | None = None
        self._notebook_output: Any = None  # IPython's handle of what a notebook shows
        self._next_refresh = 0.0
        self._pending_lines: deque[str] = deque()
        self._flushing = False

    def say(self, text: str, kind: str = INFO) -> None:
        """Say a line, if it is said at all where lines of its kind are; also inside a signal."""
        if kind in LINE_KINDS_BY_MODE[self.show]:
            self._pending_lines.append(printable(text))
            self._flush()

    def warn(self, text: str) -> None:
        """Say a line about what went wrong, or what asks for the person's attention."""
        self.say(text, WARNING)

    @contextmanager
    def drawing(self, renderable: Renderable) -> Iterator[None]:
        """Draw something, as often as `turn` is called; at the end it stays as it is then."""
        live = self.show == "live"
        self._renderable, self._next_refresh = (
            renderable,
            self.clock() + (REDRAW_SECONDS if live else SUMMARY_SECONDS),
        )
        try:
            self._flush(draw=live)
            yield
        finally:
            try:
                self._flush(draw=self.show == "live")
            finally:
                self._renderable = self._notebook_output = None
                self._stop_live()

    def refresh(self) -> None:
        """Draw, or say how far all is, if it is time; to be called often."""
        if self._renderable is None or self.clock() < self._next_refresh:
            return
        if self.show == "live":
            self._next_refresh = self.clock() + REDRAW_SECONDS
            self._flush(draw=True)
        else:
            self._next_refresh = self.clock() + SUMMARY_SECONDS
            with suppress(Exception):
                if (line := self._renderable.summary()) is not None:
                    self.say(line, DETAIL)

    def _flush(self, draw: bool = False) -> None:
        """Say what is to be said, and draw.

        A signal can come in the middle of it: what that has to say is said when this has ended.
        """
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._pending_lines:
                self._print_line(self._pending_lines[0])
                self._pending_lines.popleft()
            if draw and self._renderable is not None:
                if self._console.is_jupyter:
                    self._draw_in_notebook(self._renderable)
                else:
                    self._draw_on_terminal(self._renderable)
        except Exception:
            self._fall_back_to_lines()
        finally:
            self._flushing = False

    def _print_line(self, line: str) -> None:
        if self._live is not None:
            self._console.print(Text(line), soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw_in_notebook(self, renderable: Renderable) -> None:
        text = {"text/plain": "\n".join(map(printable, renderable.render_lines(*NOTEBOOK_SIZE)))}
        if self._notebook_output is None:
            display = sys.modules["IPython.display"].display  # rich's Live would need ipywidgets
            self._notebook_output = display(text, raw=True, display_id=True)
        else:
            self._notebook_output.update(text, raw=True)

    def _draw_on_terminal(self, renderable: Renderable) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,  # a thread would read while events are folded
                vertical_overflow="crop",
                redirect_stdout=False,  # it holds results alone
            )
            self._live.start()
        heading, *rest = map(printable, renderable.render_lines(*self._console.size))
        text = Text("\n").join([Text(heading, "bold"), *map(Text, rest)])
        text.no_wrap = True
        self._live.update(text, refresh=True)

    def _stop_live(self) -> None:
        """Leave the terminal as it was found."""
        live, self._live = self._live, None
        with suppress(Exception):
            if live is not None:
                live.stop()

    def _fall_back_to_lines(self) -> None:
        """Go on in lines; those that cannot be said are lost."""
        self._stop_live()
        if self.show == "live":
            self.show = "plain"
        with suppress(Exception):
            while self._pending_lines:
                print(self._pending_lines.popleft(), file=sys.stderr, flush=True)

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of what holds a screen are never read back, so they are kept empty."""
        return {}


class _RaisingConsole(Console):
    """A console of rich's that lets a broken pipe be an error like others."""

    def on_broken_pipe(self) -> None:
        raise
