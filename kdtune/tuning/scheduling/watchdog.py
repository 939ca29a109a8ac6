"""Looks after trials while Ray's loop turns: it ends processes that make no progress, or that are
where they should not be."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.log.events import Event
from kdtune.runtime.signals import Interrupts
from kdtune.units import duration

LOOK = 1.0
"""Seconds between two looks: at every turn, of which there is one for each result, a thousand
processes would be looked at a thousand times."""

EPOCHS = 10
"""So many times the longest epoch of its student a trial may always take."""


@dataclass
class _Process:
    """A process at work: the node it is on, its trial's student, and its latest progress."""

    pid: int
    node: str
    model: str
    progress: float


class Watch(tune.Callback):
    """Ends a process whose trial gives no result for long: no epoch, no word of a view.

    Args:
        stall_time: seconds; ten times the longest epoch of the same student is always allowed, and
            while none is known, ten times this time.
        interrupts: asked at every turn whether time is over.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        stall_time: float,
        interrupts: Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stall_time, self.interrupts, self.clock = stall_time, interrupts, clock
        self._processes: dict[str, _Process] = {}
        self._longest: dict[str, float] = {}
        self._ended: dict[str, str] = {}
        self._next = clock()

    def begun(self, trial_id: str, model: str, pid: int, node: str) -> None:
        """A process begins to work on a trial; `node` is Ray's name of where it runs."""
        self._processes[trial_id] = _Process(pid, node, model, self.clock())

    def progress(self, trial_id: str) -> None:
        """A trial gave a result."""
        self._processes[trial_id].progress = self.clock()

    def fold(self, event: Event) -> None:
        """Take an event of the log: how long epochs are."""
        if event["event"] == "epoch":
            longest = self._longest.get(event["model"], 0.0)
            self._longest[event["model"]] = max(longest, event["seconds"])

    def left(self, trial_id: str) -> str | None:
        """A process works on a trial no more: why it was ended here, or None if it was not."""
        self._processes.pop(trial_id, None)
        return self._ended.pop(trial_id, None)

    def look(self) -> None:
        """End the processes whose time is over."""
        for trial_id, process in self._processes.items():
            longest = self._longest.get(process.model, self.stall_time)
            allowed = max(self.stall_time, EPOCHS * longest)
            if trial_id not in self._ended and self.clock() - process.progress > allowed:
                self.end(trial_id, f"no progress for {duration(allowed)}")

    def end(self, trial_id: str, reason: str) -> None:
        """End the process that works on a trial."""
        process = self._processes[trial_id]
        self._ended[trial_id] = reason
        there = NodeAffinitySchedulingStrategy(process.node, soft=False)
        _end.options(scheduling_strategy=there).remote(process.pid)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray ten times a second, or more often."""
        self.interrupts.check()
        if (now := self.clock()) >= self._next:
            self._next = now + LOOK
            self.look()

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of callbacks are never read back, so they are kept empty."""
        return {}


@ray.remote(num_cpus=0, max_retries=0)
def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
