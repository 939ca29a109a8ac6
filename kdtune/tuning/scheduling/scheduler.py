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
from kdtune.tuning.cluster.admission import is_lost
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.scheduling.policy import Decisions
from kdtune.tuning.scheduling.trial_state import (
    DIED,
    FAILED,
    LOST,
    MEMORY,
    MISPLACED,
    STALLED,
    Trial,
)
from kdtune.tuning.trials.trainable import (
    DISK_FULL,
    NODE,
    NOTE,
    OUT_OF_MEMORY,
    OUTCOME,
    figures_of,
)

STALLS = 1
"""Times that a trial which makes no progress is begun again."""

MISPLACEMENTS = 10
"""Times that a trial is begun again which Ray began where it may not be."""


class Schedule(FIFOScheduler):
    """Logs results; ends trials, or has them begun again.

    Args:
        decisions: of the sweep.
        append: writes an event to the log and folds it.
        slots: where trials run.
        is_lost: whether a node is no more.
    """

    def __init__(
        self,
        decisions: Decisions,
        append: Callable[[Event], None],
        slots: Slots,
        is_lost: Callable[[str], bool] = is_lost,
    ):
        super().__init__()
        self.decisions, self.max_restarts = decisions, decisions.sweep.max_restarts
        self.under_way, self.watch = decisions.under_way, decisions.watch
        self.interrupts = decisions.interrupts
        self.append, self.slots, self.is_lost = append, slots, is_lost
        self._misplaced: set[str] = set()
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
        own = self.under_way.trials[trial_id]
        if NODE in result and not self.slots.may_use(result[NODE]):
            # It is not enough to stop the trial: Tune would have its next ones in this process.
            self._misplaced.add(trial_id)
            self.watch.begun(trial_id, own.asked["model"], result["pid"], result[NODE])
            self.watch.end(trial_id, "Ray began it on a node that gets no trials")
        if trial_id in self._misplaced:
            if not self.interrupts.requested:
                return TrialScheduler.CONTINUE  # until its process is no more
            self.watch.left(trial_id)
            return TrialScheduler.STOP
        if NODE in result:
            self.slots.begun(trial_id, result[NODE])
            self.watch.begun(trial_id, own.asked["model"], result["pid"], result[NODE])
        elif OUTCOME in result:
            return self._failed(own, result[OUTCOME], result["reason"])
        elif NOTE in result:
            self.append({"event": "view", "trial_id": trial_id, **json.loads(result[NOTE])})
            self.watch.progress(trial_id)
        else:
            self.watch.progress(trial_id)
        # One that goes on gives again what it had given.
        if result.get("epoch", 0) > own.epoch:
            self.append(own.event("epoch", **figures_of(result)))
        if (end := self.decisions.end(own)) is not None:
            return self._end(own, *end)
        if self.interrupts.requested:
            self.watch.left(trial_id)
            return TrialScheduler.STOP  # it stays under way in the log
        return TrialScheduler.CONTINUE

    def _failed(self, own: Trial, outcome: str, reason: str) -> str:
        """Take a failure that the trial reported itself."""
        if outcome == DISK_FULL:
            self.failure, self.interrupts.requested = DiskFullError(reason), True
            self.watch.left(own.asked["trial_id"])
            return TrialScheduler.STOP
        if outcome == OUT_OF_MEMORY:
            if not own.alone and self.slots.has_spare(own.asked["model"]):
                return self._restart(own, MEMORY, f"{reason}; it gets the device to itself")
            outcome = "crashed"
        if outcome == "crashed" and own.restarts[FAILED] < self.decisions.repeats:
            return self._restart(own, FAILED, reason)
        return self._end(own, outcome, reason)

    def on_trial_error(self, tune_controller: Any, trial: ray.tune.experiment.Trial) -> None:
        """Have a trial begun again whose process died, unless that happens too often."""
        trial_id = trial.config["trial_id"]
        own = self.under_way.trials.get(trial_id)
        if own is None:  # it had ended before
            return
        if self.interrupts.requested:  # whoever stops the sweep may stop its processes, too
            self.watch.left(trial_id)
            return
        node = self.slots.node(trial_id)
        ended = self.watch.left(trial_id)
        cause, times = (STALLED, STALLS) if ended else (DIED, self.max_restarts)
        reason = ended or _why(trial.get_error())
        if trial_id in self._misplaced:
            self._misplaced.remove(trial_id)
            cause, times = MISPLACED, MISPLACEMENTS
        elif not ended and node is not None and self.is_lost(node):
            self.slots.lose(node)
            cause, reason = LOST, "its node was lost"
        if own.restarts[cause] < times or (cause == LOST and own.epoch > own.begun_after):
            self._restart(own, cause, reason)
        else:
            again = f", {times + 1} times" if times else ""
            self._end(own, "crashed", f"{reason}{again}")

    def _restart(self, own: Trial, cause: str, reason: str) -> str:
        self.watch.left(own.asked["trial_id"])
        self.append(own.event("restarted", cause=cause, reason=reason))
        return TrialScheduler.STOP

    def _end(self, own: Trial, state: str, reason: str) -> str:
        self.watch.left(own.asked["trial_id"])
        self.append(own.ended(state, reason))
        return TrialScheduler.STOP

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the scheduler are never read back, so they are kept empty."""
        return {}


def _why(error: Exception | None) -> str:
    """Why a process is no more."""
    if error is not None and "creation task" in str(error):
        return f"its process could not start: {last_line(error)}"
    return "its process died: killed, or out of memory"
