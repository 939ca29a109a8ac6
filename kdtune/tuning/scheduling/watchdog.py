"""The watchdog: kills processes of trials that make no progress."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.log.events import EpochFinished, Event
from kdtune.runtime.signals import InterruptHandler
from kdtune.tuning.cluster.ray_private import NotSaved
from kdtune.units import format_duration

LONGEST_EPOCH_FACTOR = 10  # a trial may always take this many times its student's longest epoch


@dataclass
class _RunningProcess:
    pid: int
    node: str
    model: str
    last_progress: float


@dataclass(eq=False)
class Watchdog(NotSaved, tune.Callback):
    """Kills a process whose trial makes no progress for `stall_timeout` seconds.

    Ten times the longest epoch of the same student is always allowed; while none is known, ten
    times `stall_timeout`. The deadline of `interrupts` is checked at every turn of Tune's loop.
    """

    stall_timeout: float
    interrupts: InterruptHandler
    clock: Callable[[], float] = time.monotonic
    _processes: dict[str, _RunningProcess] = field(default_factory=dict)
    _longest_epochs: dict[str, float] = field(default_factory=dict)
    _kill_reasons: dict[str, str] = field(default_factory=dict)
    _next_check: float = 0.0

    def add_process(self, trial_id: str, model: str, pid: int, node: str) -> None:
        """Watch a process from now on.

        Args:
            trial_id: its trial.
            model: the trial's student.
            pid: its process id.
            node: Ray's id of its node.
        """
        self._processes[trial_id] = _RunningProcess(pid, node, model, self.clock())

    def record_progress(self, trial_id: str) -> None:
        """Record that a trial reported a result."""
        self._processes[trial_id].last_progress = self.clock()

    def fold(self, event: Event) -> None:
        """Add an event of the log: how long epochs are."""
        if isinstance(event, EpochFinished):
            longest = self._longest_epochs.get(event.model, 0.0)
            self._longest_epochs[event.model] = max(longest, event.seconds)

    def remove_process(self, trial_id: str) -> str | None:
        """Stop watching a trial's process; return why it was killed here, or None."""
        self._processes.pop(trial_id, None)
        return self._kill_reasons.pop(trial_id, None)

    def check_timeouts(self) -> None:
        """Kill the processes whose time is over."""
        for trial_id, process in self._processes.items():
            longest = self._longest_epochs.get(process.model, self.stall_timeout)
            allowed = max(self.stall_timeout, LONGEST_EPOCH_FACTOR * longest)
            is_late = self.clock() - process.last_progress > allowed
            if is_late and trial_id not in self._kill_reasons:
                self.kill_process(trial_id, f"no progress for {format_duration(allowed)}")

    def kill_process(self, trial_id: str, reason: str) -> None:
        """Kill the process of a trial.

        Args:
            trial_id: the trial.
            reason: why; `remove_process` returns it.
        """
        process = self._processes[trial_id]
        self._kill_reasons[trial_id] = reason
        on_node = NodeAffinitySchedulingStrategy(process.node, soft=False)
        _kill.options(scheduling_strategy=on_node).remote(process.pid)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check deadlines; Tune calls this at least ten times a second."""
        self.interrupts.check_deadline()
        if (now := self.clock()) >= self._next_check:
            self._next_check = now + 1.0  # the loop turns once per result, or more often
            self.check_timeouts()


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
