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

from kdtune.errors import UserError, nearest
from kdtune.runtime.console import printable

DETAIL, NEWS, TROUBLE = "detail", "news", "trouble"
"""What a line is: what a drawing shows as well; what it does not; what went wrong, or asks for the
person's attention."""

SHOW = {
    "live": (NEWS, TROUBLE),
    "plain": (DETAIL, NEWS, TROUBLE),
    "quiet": (TROUBLE,),
    "verbose": (DETAIL, NEWS, TROUBLE),
}
"""What is said in each way of showing a sweep. ``live`` also draws, and is ``plain`` where that is
not possible; ``verbose`` is ``plain`` beside the output of Ray."""

REDRAW, REPEAT = 0.5, 60.0
"""Seconds between two drawings, and between two lines that say how far all is."""

NOTEBOOK = (110, 48)
"""Characters and lines of a drawing in a notebook."""


class Drawn(Protocol):
    """What can be drawn."""

    def frame(self, width: int, height: int) -> list[str]:
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
        if show not in SHOW:
            raise UserError(f"A sweep cannot be shown '{show}'; {nearest(show, SHOW)}.")
        self._console = _Console(stderr=True)
        drawable = sys.stderr.isatty() and self._console.is_interactive
        if show == "live" and not drawable and not self._console.is_jupyter:
            show = "plain"
        self.show, self.clock = show, clock
        self._drawn: Drawn | None = None
        self._live: Live | None = None
        self._output: Any = None  # IPython's handle of what a notebook shows
        self._next = 0.0
        self._lines: deque[str] = deque()
        self._busy = False

    def say(self, text: str, kind: str = NEWS) -> None:
        """Say a line, if it is said at all where lines of its kind are; also inside a signal."""
        if kind in SHOW[self.show]:
            self._lines.append(printable(text))
            self._work()

    def trouble(self, text: str) -> None:
        """Say a line about what went wrong, or what asks for the person's attention."""
        self.say(text, TROUBLE)

    @contextmanager
    def drawing(self, drawn: Drawn) -> Iterator[None]:
        """Draw something, as often as `turn` is called; at the end it stays as it is then."""
        live = self.show == "live"
        self._drawn, self._next = drawn, self.clock() + (REDRAW if live else REPEAT)
        try:
            self._work(draw=live)
            yield
        finally:
            try:
                self._work(draw=self.show == "live")
            finally:
                self._drawn = self._output = None
                self._leave()

    def turn(self) -> None:
        """Draw, or say how far all is, if it is time; to be called often."""
        if self._drawn is None or self.clock() < self._next:
            return
        if self.show == "live":
            self._next = self.clock() + REDRAW
            self._work(draw=True)
        else:
            self._next = self.clock() + REPEAT
            with suppress(Exception):
                if (line := self._drawn.summary()) is not None:
                    self.say(line, DETAIL)

    def _work(self, draw: bool = False) -> None:
        """Say what is to be said, and draw.

        A signal can come in the middle of it: what that has to say is said when this has ended.
        """
        if self._busy:
            return
        self._busy = True
        try:
            while self._lines:
                self._print(self._lines[0])
                self._lines.popleft()
            if draw and self._drawn is not None:
                if self._console.is_jupyter:
                    self._draw_in_notebook(self._drawn)
                else:
                    self._draw(self._drawn)
        except Exception:
            self._give_up()
        finally:
            self._busy = False

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._console.print(Text(line), soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw_in_notebook(self, drawn: Drawn) -> None:
        text = {"text/plain": "\n".join(map(printable, drawn.frame(*NOTEBOOK)))}
        if self._output is None:
            show = sys.modules["IPython.display"].display  # rich's Live would need ipywidgets
            self._output = show(text, raw=True, display_id=True)
        else:
            self._output.update(text, raw=True)

    def _draw(self, drawn: Drawn) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,  # a thread would read while events are folded
                vertical_overflow="crop",
                redirect_stdout=False,  # it holds results alone
            )
            self._live.start()
        head, *rest = map(printable, drawn.frame(*self._console.size))
        text = Text("\n").join([Text(head, "bold"), *map(Text, rest)])
        text.no_wrap = True
        self._live.update(text, refresh=True)

    def _leave(self) -> None:
        """Leave the terminal as it was found."""
        live, self._live = self._live, None
        with suppress(Exception):
            if live is not None:
                live.stop()

    def _give_up(self) -> None:
        """Go on in lines; those that cannot be said are lost."""
        self._leave()
        if self.show == "live":
            self.show = "plain"
        with suppress(Exception):
            while self._lines:
                print(self._lines.popleft(), file=sys.stderr, flush=True)

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of what holds a screen are never read back, so they are kept empty."""
        return {}


class _Console(Console):
    """A console of rich's that lets a broken pipe be an error like others."""

    def on_broken_pipe(self) -> None:
        raise
