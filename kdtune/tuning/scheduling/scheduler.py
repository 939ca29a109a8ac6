"""Ray's side of stopping: every result into the log, and whether its trial goes on.

The scheduler sees every result that Ray gets, so it is the one that writes `epoch`, `restarted`
and `ended`.
"""

import json
from collections.abc import Callable
from typing import Any

import ray.tune.experiment
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kdtune.errors import DiskFullError, last_line
from kdtune.log.events import Event
from kdtune.tuning.cluster.admission import is_node_lost
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.trial_state import (
    DEVICE_MEMORY,
    MISPLACED,
    NODE_LOST,
    PROCESS_DIED,
    STALLED,
    TRIAL_ERROR,
    ActiveTrial,
)
from kdtune.tuning.trials.trainable import (
    CACHE_EVENT_KEY,
    DISK_FULL,
    NODE_KEY,
    OUT_OF_MEMORY,
    OUTCOME_KEY,
    extract_metrics,
)

STALL_RESTARTS = 1
"""Times that a trial which makes no progress is begun again."""

MISPLACED_RESTARTS = 10
"""Times that a trial is begun again which Ray began where it may not be."""


class LogScheduler(FIFOScheduler):
    """Logs results; ends trials, or has them begun again.

    Args:
        decisions: of the sweep.
        append: writes an event to the log and folds it.
        slots: where trials run.
        is_lost: whether a node is no more.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        append_event: Callable[[Event], None],
        slots: Slots,
        is_node_lost: Callable[[str], bool] = is_node_lost,
    ):
        super().__init__()
        self.policy, self.max_restarts = policy, policy.sweep.max_restarts
        self.active_trials, self.watchdog = policy.active_trials, policy.watchdog
        self.interrupts = policy.interrupts
        self.append_event, self.slots, self.is_node_lost = append_event, slots, is_node_lost
        self._on_excluded_node: set[str] = set()
        self.failure: DiskFullError | None = None
        """Why the sweep cannot go on, if a trial found out."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave it to Tune, which starts what waits in its order.

        The scheduler that this one is made of goes over all trials that there ever were, at every
        turn of Ray's loop, to name the same one.
        """

    def on_trial_result(
        self, tune_controller: Any, trial: ray.tune.experiment.Trial, result: dict[str, Any]
    ) -> str:
        """Log what the trainable reported, and say whether the trial goes on."""
        trial_id = trial.config["trial_id"]
        active_trial = self.active_trials.by_id[trial_id]
        if NODE_KEY in result and not self.slots.has_node(result[NODE_KEY]):
            # It is not enough to stop the trial: Tune would have its next ones in this process.
            self._on_excluded_node.add(trial_id)
            self.watchdog.add_process(
                trial_id, active_trial.proposal["model"], result["pid"], result[NODE_KEY]
            )
            self.watchdog.kill_process(trial_id, "Ray began it on a node that gets no trials")
        if trial_id in self._on_excluded_node:
            if not self.interrupts.stop_requested:
                return TrialScheduler.CONTINUE  # until its process is no more
            self.watchdog.remove_process(trial_id)
            return TrialScheduler.STOP
        if NODE_KEY in result:
            self.slots.record_node(trial_id, result[NODE_KEY])
            self.watchdog.add_process(
                trial_id, active_trial.proposal["model"], result["pid"], result[NODE_KEY]
            )
        elif OUTCOME_KEY in result:
            return self._handle_failure(active_trial, result[OUTCOME_KEY], result["reason"])
        elif CACHE_EVENT_KEY in result:
            self.append_event(
                {"event": "view", "trial_id": trial_id, **json.loads(result[CACHE_EVENT_KEY])}
            )
            self.watchdog.record_progress(trial_id)
        else:
            self.watchdog.record_progress(trial_id)
        # One that goes on gives again what it had given.
        if result.get("epoch", 0) > active_trial.epoch:
            self.append_event(active_trial.make_event("epoch", **extract_metrics(result)))
        if (end := self.policy.end_of(active_trial)) is not None:
            return self._end_trial(active_trial, *end)
        if self.interrupts.stop_requested:
            self.watchdog.remove_process(trial_id)
            return TrialScheduler.STOP  # it stays under way in the log
        return TrialScheduler.CONTINUE

    def _handle_failure(self, active_trial: ActiveTrial, outcome: str, reason: str) -> str:
        """Take a failure that the trial reported itself."""
        if outcome == DISK_FULL:
            self.failure, self.interrupts.stop_requested = DiskFullError(reason), True
            self.watchdog.remove_process(active_trial.proposal["trial_id"])
            return TrialScheduler.STOP
        if outcome == OUT_OF_MEMORY:
            if not active_trial.exclusive and self.slots.has_larger_allocation(
                active_trial.proposal["model"]
            ):
                return self._restart(
                    active_trial, DEVICE_MEMORY, f"{reason}; it gets the device to itself"
                )
            outcome = "crashed"
        if (
            outcome == "crashed"
            and active_trial.restarts[TRIAL_ERROR] < self.policy.failure_restarts
        ):
            return self._restart(active_trial, TRIAL_ERROR, reason)
        return self._end_trial(active_trial, outcome, reason)

    def on_trial_error(self, tune_controller: Any, trial: ray.tune.experiment.Trial) -> None:
        """Have a trial begun again whose process died, unless that happens too often."""
        trial_id = trial.config["trial_id"]
        active_trial = self.active_trials.by_id.get(trial_id)
        if active_trial is None:  # it had ended before
            return
        if self.interrupts.stop_requested:  # whoever stops the sweep may stop its processes, too
            self.watchdog.remove_process(trial_id)
            return
        node = self.slots.node_of(trial_id)
        kill_reason = self.watchdog.remove_process(trial_id)
        cause, allowed_restarts = (
            (STALLED, STALL_RESTARTS) if kill_reason else (PROCESS_DIED, self.max_restarts)
        )
        reason = kill_reason or _describe_death(trial.get_error())
        if trial_id in self._on_excluded_node:
            self._on_excluded_node.remove(trial_id)
            cause, allowed_restarts = MISPLACED, MISPLACED_RESTARTS
        elif not kill_reason and node is not None and self.is_node_lost(node):
            self.slots.mark_lost(node)
            cause, reason = NODE_LOST, "its node was lost"
        if active_trial.restarts[cause] < allowed_restarts or (
            cause == NODE_LOST and active_trial.epoch > active_trial.epoch_at_start
        ):
            self._restart(active_trial, cause, reason)
        else:
            repeated = f", {allowed_restarts + 1} times" if allowed_restarts else ""
            self._end_trial(active_trial, "crashed", f"{reason}{repeated}")

    def _restart(self, active_trial: ActiveTrial, cause: str, reason: str) -> str:
        self.watchdog.remove_process(active_trial.proposal["trial_id"])
        self.append_event(active_trial.make_event("restarted", cause=cause, reason=reason))
        return TrialScheduler.STOP

    def _end_trial(self, active_trial: ActiveTrial, state: str, reason: str) -> str:
        self.watchdog.remove_process(active_trial.proposal["trial_id"])
        self.append_event(active_trial.make_end_event(state, reason))
        return TrialScheduler.STOP

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the scheduler are never read back, so they are kept empty."""
        return {}


def _describe_death(error: Exception | None) -> str:
    """Why a process is no more."""
    if error is not None and "creation task" in str(error):
        return f"its process could not start: {last_line(error)}"
    return "its process died: killed, or out of memory"
