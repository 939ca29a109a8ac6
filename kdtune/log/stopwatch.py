"""How long a sweep or a confirmation ran, in all sessions; a fold over its log.

Time in which no driver ran does not count, nor what a driver checked before it went on.
"""

import time
from collections.abc import Callable

from kdtune.log.events import Event, LogOpening


class Stopwatch:
    """Seconds that drivers ran.

    Args:
        clock: seconds since some moment, which nobody sets.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._session_started_at = clock()
        self._previous_seconds, self._session_offset, self._session_seconds = 0.0, 0.0, 0.0

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if isinstance(event, LogOpening):
            self._previous_seconds += self._session_seconds
            self._session_started_at, self._session_seconds = self.clock(), 0.0
            self._session_offset = event.session_seconds
        seconds = event.session_seconds - self._session_offset
        self._session_seconds = max(self._session_seconds, seconds)

    @property
    def logged_seconds(self) -> float:
        """Until the latest event."""
        return self._previous_seconds + self._session_seconds

    @property
    def elapsed_seconds(self) -> float:
        """Until now."""
        return self._previous_seconds + max(
            self._session_seconds, self.clock() - self._session_started_at
        )
