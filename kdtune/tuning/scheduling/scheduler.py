"""The scheduler of Ray Tune: logs every result, and decides whether its trial continues."""

from collections.abc import Callable
from typing import Any

import ray.tune.experiment
from ray.tune.schedulers import TrialScheduler

from kdtune.errors import DiskFullError, last_line
from kdtune.log.events import (
    CacheUpdated,
    EpochFinished,
    Event,
    RestartCause,
    TrialRestarted,
    TrialState,
)
from kdtune.tuning.cluster.admission import is_node_lost
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.ray_private import NotSaved, TuneOrderScheduler
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.trial_state import ActiveTrial
from kdtune.tuning.trials.results import (
    CacheReported,
    EpochReported,
    Failure,
    ProcessStarted,
    TrialFailed,
    from_ray,
)

CONTINUE: str = TrialScheduler.CONTINUE
STOP: str = TrialScheduler.STOP

STALL_RESTARTS = 1
"""Restarts of a trial that makes no progress, at most."""

MISPLACED_RESTARTS = 10
"""Restarts of a trial that Ray started on a node that gets no trials, at most."""


class LogScheduler(NotSaved, TuneOrderScheduler):
    """Logs `EpochFinished`, `TrialRestarted` and `TrialEnded`; ends and restarts trials.

    Args:
        policy: decides which trials end.
        append_event: writes an event to the log and folds it.
        slots: the resources of trials.
        is_node_lost: returns True if the node with this id is lost.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        append_event: Callable[[Event], None],
        slots: Slots,
        is_node_lost: Callable[[str], bool] = is_node_lost,
    ):
        super().__init__()
        self.policy, self.append_event = policy, append_event
        self.slots, self.is_node_lost = slots, is_node_lost
        self.active_trials, self.watchdog = policy.active_trials, policy.watchdog
        self._misplaced_trials: set[str] = set()

    def on_trial_result(
        self, tune_controller: Any, trial: ray.tune.experiment.Trial, result: dict[str, Any]
    ) -> str:
        """Log what the trial reported, and return whether it continues."""
        active_trial = self.active_trials.by_id[trial.config["trial_id"]]
        trial_id, report = active_trial.trial_id, from_ray(result)
        if isinstance(report, ProcessStarted):
            model = active_trial.proposal.model
            self.watchdog.add_process(trial_id, model, report.pid, report.node_id)
            if self.slots.has_node(report.node_id):
                self.slots.record_node(trial_id, report.node_id)
            else:
                # If only the trial stopped, Tune would start its next ones in this process.
                self._misplaced_trials.add(trial_id)
                reason = "Ray started it on a node that gets no trials"
                self.watchdog.kill_process(trial_id, reason)
        if trial_id in self._misplaced_trials:
            if not self.policy.stop_requested:
                return CONTINUE  # until its process is dead
            return self._release(trial_id)
        match report:
            case TrialFailed():
                return self._handle_failure(active_trial, report.failure, report.reason)
            case CacheReported():
                self.append_event(CacheUpdated(trial_id=trial_id, progress=report.progress))
                self.watchdog.record_progress(trial_id)
            case EpochReported():
                self.watchdog.record_progress(trial_id)
                if report.metrics.epoch > active_trial.epoch:  # a resumed trial repeats epochs
                    identity = active_trial.proposal.identity
                    self.append_event(EpochFinished(**identity, **dict(report.metrics)))
        if (end := self.policy.end_of(active_trial)) is not None:
            return self._end_trial(active_trial, *end)
        if self.policy.stop_requested:
            return self._release(trial_id)  # it stays active in the log
        return CONTINUE

    def _handle_failure(self, active_trial: ActiveTrial, failure: Failure, reason: str) -> str:
        if failure is Failure.DISK_FULL:
            self.policy.failure = DiskFullError(reason)
            return self._release(active_trial.trial_id)
        if failure is Failure.DIVERGED:
            return self._end_trial(active_trial, TrialState.DIVERGED, reason)
        if failure is Failure.OUT_OF_MEMORY and not active_trial.exclusive:
            if self.slots.has_larger_allocation(active_trial.proposal.model):
                reason = f"{reason}; it gets the device to itself"
                return self._restart(active_trial, RestartCause.DEVICE_MEMORY, reason)
        if active_trial.restarts[RestartCause.TRIAL_ERROR] < self.policy.failure_restarts:
            return self._restart(active_trial, RestartCause.TRIAL_ERROR, reason)
        return self._end_trial(active_trial, TrialState.CRASHED, reason)

    def on_trial_error(self, tune_controller: Any, trial: ray.tune.experiment.Trial) -> None:
        """Restart a trial whose process died, unless that happens too often."""
        active_trial = self.active_trials.by_id.get(trial.config["trial_id"])
        if active_trial is None:  # it had ended before
            return
        trial_id = active_trial.trial_id
        if self.policy.stop_requested:  # a SIGTERM may have reached its process, too
            self._release(trial_id)
            return
        node = self.slots.node_of(trial_id)
        kill_reason = self.watchdog.remove_process(trial_id)
        cause, allowed_restarts = RestartCause.PROCESS_DIED, self.policy.sweep.max_restarts
        if kill_reason:
            cause, allowed_restarts = RestartCause.STALLED, STALL_RESTARTS
        reason = kill_reason or _describe_death(trial.get_error())
        if trial_id in self._misplaced_trials:
            self._misplaced_trials.remove(trial_id)
            cause, allowed_restarts = RestartCause.MISPLACED, MISPLACED_RESTARTS
        elif not kill_reason and node is not None and self.is_node_lost(node):
            self.slots.mark_lost(node)
            cause, reason = RestartCause.NODE_LOST, "its node was lost"
        has_progress = active_trial.epoch > active_trial.epoch_at_start
        lost_after_progress = cause is RestartCause.NODE_LOST and has_progress
        if active_trial.restarts[cause] < allowed_restarts or lost_after_progress:
            self._restart(active_trial, cause, reason)
        else:
            repeated = f", {allowed_restarts + 1} times" if allowed_restarts else ""
            self._end_trial(active_trial, TrialState.CRASHED, f"{reason}{repeated}")

    def _restart(self, active_trial: ActiveTrial, cause: RestartCause, reason: str) -> str:
        identity = active_trial.proposal.identity
        self.append_event(TrialRestarted(**identity, cause=cause, reason=reason))
        return self._release(active_trial.trial_id)

    def _end_trial(self, active_trial: ActiveTrial, state: TrialState, reason: str) -> str:
        self.append_event(active_trial.make_end_event(state, reason))
        return self._release(active_trial.trial_id)

    def _release(self, trial_id: str) -> str:
        self.watchdog.remove_process(trial_id)
        return STOP


def _describe_death(error: Exception | None) -> str:
    if error is not None and "creation task" in str(error):
        return f"its process could not start: {last_line(error)}"
    return "its process died: killed, or out of memory"
