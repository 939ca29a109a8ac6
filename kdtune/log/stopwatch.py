"""Time that the drivers of a log ran, summed over all sessions; a fold over the log."""

import time
from collections.abc import Callable

from kdtune.log.events import Event, LogOpening


class Stopwatch:
    """Seconds in which drivers ran, from the first event of each session on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self._session_started_at = clock, clock()
        self._previous_seconds, self._session_offset, self._session_seconds = 0.0, 0.0, 0.0

    def fold(self, event: Event) -> None:
        if isinstance(event, LogOpening):
            self._previous_seconds += self._session_seconds
            self._session_started_at, self._session_seconds = self.clock(), 0.0
            self._session_offset = event.session_seconds
        seconds = event.session_seconds - self._session_offset
        self._session_seconds = max(self._session_seconds, seconds)

    @property
    def logged_seconds(self) -> float:
        """Seconds up to the latest event."""
        return self._previous_seconds + self._session_seconds

    @property
    def elapsed_seconds(self) -> float:
        """Seconds up to now."""
        session_seconds = self.clock() - self._session_started_at
        return self._previous_seconds + max(self._session_seconds, session_seconds)
