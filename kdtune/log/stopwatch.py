"""How long a sweep or a confirmation ran, in all sessions; a fold over its log.

Time in which no driver ran does not count, nor what a driver checked before it went on.
"""

import time
from collections.abc import Callable

from kdtune.log.events import Event


class Stopwatch:
    """Seconds that drivers ran.

    Args:
        clock: seconds since some moment, which nobody sets.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._opened = clock()
        self._before, self._base, self._session = 0.0, 0.0, 0.0

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if event["event"] in ("sweep", "resumed", "confirm"):
            self._before += self._session
            self._opened, self._base, self._session = self.clock(), event["session_seconds"], 0.0
        self._session = max(self._session, event["session_seconds"] - self._base)

    @property
    def logged(self) -> float:
        """Until the latest event."""
        return self._before + self._session

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + max(self._session, self.clock() - self._opened)
