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

from kdtune.log.events import EpochFinished, Event
from kdtune.runtime.signals import InterruptHandler
from kdtune.units import format_duration

CHECK_EVERY_SECONDS = 1.0
"""Seconds between two looks: at every turn, of which there is one for each result, a thousand
processes would be looked at a thousand times."""

LONGEST_EPOCH_FACTOR = 10
"""So many times the longest epoch of its student a trial may always take."""


@dataclass
class _RunningProcess:
    """A process at work: the node it is on, its trial's student, and its latest progress."""

    pid: int
    node: str
    model: str
    last_progress: float


class Watchdog(tune.Callback):
    """Ends a process whose trial gives no result for long: no epoch, no word of a view.

    Args:
        stall_timeout: seconds; ten times the longest epoch of the same student is always allowed, and
            while none is known, ten times this time.
        interrupts: asked at every turn whether time is over.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        stall_timeout: float,
        interrupts: InterruptHandler,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stall_timeout, self.interrupts, self.clock = stall_timeout, interrupts, clock
        self._processes: dict[str, _RunningProcess] = {}
        self._longest_epochs: dict[str, float] = {}
        self._kill_reasons: dict[str, str] = {}
        self._next_check = clock()

    def add_process(self, trial_id: str, model: str, pid: int, node: str) -> None:
        """A process begins to work on a trial; `node` is Ray's name of where it runs."""
        self._processes[trial_id] = _RunningProcess(pid, node, model, self.clock())

    def record_progress(self, trial_id: str) -> None:
        """A trial gave a result."""
        self._processes[trial_id].last_progress = self.clock()

    def fold(self, event: Event) -> None:
        """Take an event of the log: how long epochs are."""
        if isinstance(event, EpochFinished):
            longest = self._longest_epochs.get(event.model, 0.0)
            self._longest_epochs[event.model] = max(longest, event.seconds)

    def remove_process(self, trial_id: str) -> str | None:
        """A process works on a trial no more: why it was ended here, or None if it was not."""
        self._processes.pop(trial_id, None)
        return self._kill_reasons.pop(trial_id, None)

    def check_timeouts(self) -> None:
        """End the processes whose time is over."""
        for trial_id, process in self._processes.items():
            longest = self._longest_epochs.get(process.model, self.stall_timeout)
            allowed = max(self.stall_timeout, LONGEST_EPOCH_FACTOR * longest)
            if (
                trial_id not in self._kill_reasons
                and self.clock() - process.last_progress > allowed
            ):
                self.kill_process(trial_id, f"no progress for {format_duration(allowed)}")

    def kill_process(self, trial_id: str, reason: str) -> None:
        """End the process that works on a trial."""
        process = self._processes[trial_id]
        self._kill_reasons[trial_id] = reason
        on_node = NodeAffinitySchedulingStrategy(process.node, soft=False)
        _kill.options(scheduling_strategy=on_node).remote(process.pid)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray ten times a second, or more often."""
        self.interrupts.check_deadline()
        if (now := self.clock()) >= self._next_check:
            self._next_check = now + CHECK_EVERY_SECONDS
            self.check_timeouts()

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of callbacks are never read back, so they are kept empty."""
        return {}


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
