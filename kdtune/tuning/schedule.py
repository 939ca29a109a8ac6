"""Ray's side of stopping: every result into the log, and whether its trial goes on.

The scheduler sees every result that Ray gets, so it is the one that writes `epoch` and `ended`.
"""

import json
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kdtune.results import Event, cell_of
from kdtune.tuning.budget import Budget
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.trainable import NOTE, OUTCOME, figures_of


class Schedule(FIFOScheduler):
    """Logs results and ends trials.

    Args:
        epochs: of a trial that goes all the way.
        stopping: the rule that ends trials early.
        budget: ends all trials once it is spent.
        append: writes an event to the log and folds it.
    """

    def __init__(
        self, epochs: int, stopping: Stopping, budget: Budget, append: Callable[[Event], None]
    ):
        super().__init__()
        self.epochs, self.stopping, self.budget, self.append = epochs, stopping, budget, append
        self._last: dict[str, Event] = {}
        self._ended: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Log an epoch, a note or the end that the trainable reported; say whether to go on."""
        identity = _identity(trial)
        if OUTCOME in result:
            return self._end(identity, result[OUTCOME], result["reason"])
        if NOTE in result:
            note = json.loads(result[NOTE])
            self.append({"event": "view", "trial_id": identity["trial_id"], **note})
        else:
            event = {"event": "epoch", **identity, **figures_of(result)}
            self.append(event)
            self._last[identity["trial_id"]] = event
            if event["epoch"] == self.epochs:
                return self._end(identity, "finished", f"all {self.epochs} epochs")
            if (cut := self.stopping.cuts[identity["trial_id"]]) is not None:
                best = 100 * event["best_validation_accuracy"]
                return self._end(
                    identity,
                    "stopped",
                    f"{self.stopping.scheduler}, epoch {cut.epoch}: {best:.2f} %, "
                    f"the cut was {100 * cut.value:.2f} % among {cut.others}",
                )
        if (reason := self.budget.spent(cell_of(identity))) is not None:
            return self._end(identity, "stopped", reason)
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Log the end of a trial whose process died; other errors are reported as results."""
        if (identity := _identity(trial))["trial_id"] not in self._ended:
            reason = "its process died: killed, out of memory, or its node lost"
            self._end(identity, "crashed", reason)

    def _end(self, identity: dict[str, str], state: str, reason: str) -> str:
        self._ended.add(identity["trial_id"])
        last = self._last.pop(identity["trial_id"], {})
        self.append(
            {
                "event": "ended",
                **identity,
                "state": state,
                "reason": reason,
                "epochs": last.get("epoch", 0),
                "best_validation_accuracy": last.get("best_validation_accuracy"),
            }
        )
        return TrialScheduler.STOP

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the scheduler are never read back, so they are kept empty."""
        return {}


def _identity(trial: Trial) -> dict[str, str]:
    config = trial.config["config"]
    return {
        "trial_id": trial.config["trial_id"],
        "method": config["method"],
        "model": config["model"],
    }
