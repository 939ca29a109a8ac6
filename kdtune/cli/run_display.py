"""Live display of a single run: its epoch, step and loss, and the time left."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from kdtune.runtime.console import running_beside
from kdtune.tuning.display.screen import REDRAW_SECONDS, Display, Screen
from kdtune.units import format_duration

if TYPE_CHECKING:
    from torch import Tensor


class RunDisplay(Display):
    """The step that a run is at; its lines are above it.

    Args:
        epochs: of the run, at most.
        screen: shows it.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, epochs: int, screen: Screen, clock: Callable[[], float] = time.monotonic):
        self.epochs, self.screen, self._clock = epochs, screen, clock
        self._started_at = clock()
        self._epoch_starts: dict[int, float] = {}
        self._epoch, self._step, self._loss = 0, 0, ""
        self._loss_due = 0.0

    def on_step(self, epoch: int, step: int, loss: "Tensor") -> None:
        """Record a training step.

        Args:
            epoch: from 1.
            step: in the epoch, from 1.
            loss: of its batch; it is read only when it is shown, since the device may be behind.
        """
        now = self._clock()
        self._epoch_starts.setdefault(epoch, now)
        self._epoch, self._step = epoch, step
        if now >= self._loss_due:
            self._loss_due = now + REDRAW_SECONDS
            self._loss = f", loss {loss.item():.4f}"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the display until the end of the block, whether or not steps come."""

        def refresh(ended: threading.Event) -> None:
            while not ended.wait(REDRAW_SECONDS):
                self.screen.refresh()

        with self.screen.drawing(self), running_beside(refresh):
            yield

    def summary(self) -> str:
        """Return the step and the times as a line."""
        spent = f"{format_duration(self._clock() - self._started_at)} spent"
        if not self._epoch:
            return f"no training step yet; {spent}"
        at = f"epoch {self._epoch}/{self.epochs}, step {self._step}{self._loss}; {spent}"
        seconds = self._estimate_time_left()
        if seconds is None:
            return f"{at}; time left unknown"
        return f"{at}; about {format_duration(seconds)} left"

    def _estimate_time_left(self) -> float | None:
        """Return the seconds left by the mean of the epochs so far; None before one has ended."""
        (first, first_start), *_ = self._epoch_starts.items()
        if (ended := self._epoch - first) == 0:
            return None
        start = self._epoch_starts[self._epoch]
        per_epoch = (start - first_start) / ended
        left = self.epochs - self._epoch + 1
        return max(0.0, left * per_epoch - (self._clock() - start))

    def render(self, height: int) -> Text:
        """Return the summary, cut to one row."""
        return Text(self.summary(), no_wrap=True, overflow="ellipsis")
