"""The scheduler of Ray Tune: logs every result, and decides whether its trial continues."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from kdtune.errors import DiskFullError, GpuLostError
from kdtune.log import events
from kdtune.log.events import RestartCause, TrialState
from kdtune.tuning.cluster.admission import is_node_lost
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.ray_private import NotSaved, TuneOrderScheduler
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.trial_state import ActiveTrial
from kdtune.tuning.trials import results
from kdtune.tuning.trials.results import Failure

CONTINUE: str = TrialScheduler.CONTINUE
STOP: str = TrialScheduler.STOP
MISPLACED_RESTARTS = 10  # of a trial that Ray started on a node that gets no trials, at most


@dataclass(eq=False)
class LogScheduler(NotSaved, TuneOrderScheduler):
    """Logs epochs, restarts and ends of trials, which it decides; `append_event` folds, too."""

    policy: SchedulingPolicy
    append_event: Callable[[events.Event], None]
    slots: Slots
    is_node_lost: Callable[[str], bool] = is_node_lost

    def __post_init__(self) -> None:
        super().__init__()
        self.active_trials, self.watchdog = self.policy.active_trials, self.policy.watchdog
        self._misplaced_trials: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Log what the trial reported, and return whether it continues."""
        active_trial = self.active_trials.by_id[trial.config["trial_id"]]
        trial_id, report = active_trial.trial_id, results.from_ray(result)
        if isinstance(report, results.ProcessStarted):
            model = active_trial.proposal.model
            self.watchdog.add_process(trial_id, model, report.pid, report.node_id)
            if self.slots.has_node(report.node_id):
                self.slots.record_node(trial_id, report.node_id)
            else:
                # If only the trial stopped, Tune would start its next ones in this process.
                self._misplaced_trials.add(trial_id)
                reason = "Ray started it on a node that gets no trials"
                self.watchdog.kill_process(trial_id, reason)
        if trial_id in self._misplaced_trials:  # it continues until its process is dead
            return self._release(trial_id) if self.policy.stop_requested else CONTINUE
        match report:
            case results.TrialFailed():
                return self._handle_failure(active_trial, report.failure, report.reason)
            case results.CacheReported():
                self.append_event(events.CacheUpdated(trial_id=trial_id, progress=report.progress))
                self.watchdog.record_progress(trial_id)
            case results.EpochReported():
                self.watchdog.record_progress(trial_id)
                if report.metrics.epoch > active_trial.epoch:  # a resumed trial repeats epochs
                    identity = active_trial.proposal.identity
                    self.append_event(events.EpochFinished(**identity, **dict(report.metrics)))
        if (end := self.policy.end_of(active_trial)) is not None:
            return self._end_trial(active_trial, *end)
        return self._release(trial_id) if self.policy.stop_requested else CONTINUE

    def _handle_failure(self, active_trial: ActiveTrial, failure: Failure, reason: str) -> str:
        if failure is Failure.DISK_FULL:
            self.policy.failure = DiskFullError(reason)
            return self._release(active_trial.trial_id)
        if failure is Failure.DIVERGED:
            return self._end_trial(active_trial, TrialState.DIVERGED, reason)
        may_grow = failure is Failure.OUT_OF_MEMORY and not active_trial.exclusive
        if may_grow and self.slots.has_larger_allocation(active_trial.proposal.model):
            reason = f"{reason}; it gets the device to itself"
            return self._restart(active_trial, RestartCause.DEVICE_MEMORY, reason)
        if active_trial.restarts[RestartCause.TRIAL_ERROR] < self.policy.failure_restarts:
            return self._restart(active_trial, RestartCause.TRIAL_ERROR, reason)
        return self._end_trial(active_trial, TrialState.CRASHED, reason)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Restart a trial whose process died, unless that happens too often."""
        trial_id = trial.config["trial_id"]
        if (active_trial := self.active_trials.by_id.get(trial_id)) is None:  # ended before
            return
        if self.policy.stop_requested:  # a SIGTERM may have reached its process, too
            self._release(trial_id)
            return
        allocation = self.slots.allocations.get(trial_id)
        kill_reason = self.watchdog.remove_process(trial_id)
        reason = kill_reason or _describe_death(_read_error(trial))
        if trial_id in self._misplaced_trials:
            self._misplaced_trials.remove(trial_id)
            cause, allowed_restarts = RestartCause.MISPLACED, MISPLACED_RESTARTS
        elif kill_reason:
            cause, allowed_restarts = RestartCause.STALLED, 1
        else:
            cause, allowed_restarts = RestartCause.PROCESS_DIED, self.policy.sweep.max_restarts
            if allocation is not None and self.is_node_lost(allocation.node):
                self.slots.mark_lost(allocation.node)
                cause, reason = RestartCause.NODE_LOST, "its node was lost"
        lost_after_progress = cause is RestartCause.NODE_LOST and active_trial.has_progress
        if active_trial.restarts[cause] < allowed_restarts or lost_after_progress:
            self._restart(active_trial, cause, reason)
        else:
            repeated = f", {allowed_restarts + 1} times" if allowed_restarts else ""
            self._end_trial(active_trial, TrialState.CRASHED, f"{reason}{repeated}")

    def _restart(self, active_trial: ActiveTrial, cause: RestartCause, reason: str) -> str:
        identity = active_trial.proposal.identity
        self.append_event(events.TrialRestarted(**identity, cause=cause, reason=reason))
        return self._release(active_trial.trial_id)

    def _end_trial(self, active_trial: ActiveTrial, state: TrialState, reason: str) -> str:
        self.append_event(active_trial.make_end_event(state, reason))
        return self._release(active_trial.trial_id)

    def _release(self, trial_id: str) -> str:
        """Stop the process of a trial, which can still be active in the log."""
        self.watchdog.remove_process(trial_id)
        return STOP


def _read_error(trial: Trial) -> str:
    """Return the text of a trial's error; `Trial.get_error` reads a copy that comes later."""
    path = Path(trial.error_file or "")
    return path.read_text().strip() if path.is_file() else ""


def _describe_death(error: str) -> str:
    line = error.rpartition("\n")[2]
    if "creation task" in error:
        return f"its process could not start: {line.strip()}"
    _, lost, reason = line.rpartition(f"{GpuLostError.__name__}: ")
    return reason if lost else "its process died: killed, or out of memory"
