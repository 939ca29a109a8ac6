"""When a trial ends: ASHA with rungs of its own for each cell, and every result into the log.

The scheduler sees every result that Ray gets, so it is the one that writes `epoch` and `ended`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from kdtune.results import Event
from kdtune.tuning.search import Cell
from kdtune.tuning.trainable import NOTE, OUTCOME, figures_of


@dataclass(frozen=True)
class _Named:
    """All that Ray's ASHA uses of a trial; our names stay the same when Ray's change."""

    trial_id: str


class Rungs:
    """The rungs of each cell, and what they decide.

    Args:
        cells: the sweep's cells.
        epochs: the last rung.
        grace_period: the first rung; rungs between are its products with the reduction factor.
        reduction_factor: one in so many trials goes on at a rung.
    """

    def __init__(
        self, cells: Iterable[Cell], epochs: int, grace_period: int, reduction_factor: int
    ):
        self.epochs = epochs
        self._asha = {
            cell: ASHAScheduler(
                time_attr="epoch",
                metric="best_validation_accuracy",
                mode="max",
                max_t=epochs,
                grace_period=grace_period,
                reduction_factor=reduction_factor,
            )
            for cell in cells
        }
        self._stop: dict[str, bool] = {}
        self.last: dict[str, Event] = {}
        """The latest epoch of each trial."""

    def fold(self, event: Event) -> None:
        """Take an event of the log into the rungs."""
        if event["event"] not in ("asked", "epoch"):
            return
        asha = self._asha[event["method"], event["model"]]
        trial = _Named(event["trial_id"])
        if event["event"] == "asked":
            asha.on_trial_add(None, trial)
        else:
            decision = asha.on_trial_result(None, trial, event)
            self._stop[trial.trial_id] = decision == TrialScheduler.STOP
            self.last[trial.trial_id] = event

    def stops(self, trial_id: str) -> bool:
        """Whether the trial ends after the epoch that was folded last."""
        return self._stop[trial_id]


class Schedule(FIFOScheduler):
    """Ray's side of the rungs.

    Args:
        rungs: what decides.
        append: writes an event to the log and folds it.
    """

    def __init__(self, rungs: Rungs, append: Callable[[Event], None]):
        super().__init__()
        self.rungs, self.append = rungs, append

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Log an epoch, or the end that the trainable reported, and say whether to go on."""
        if OUTCOME in result:
            self._end(trial, result[OUTCOME], result["reason"])
            return TrialScheduler.STOP
        if NOTE in result:
            note = json.loads(result[NOTE])
            self.append({"event": "view", "trial_id": trial.config["trial_id"], **note})
            return TrialScheduler.CONTINUE
        event = {"event": "epoch", **_identity(trial), **figures_of(result)}
        self.append(event)
        if not self.rungs.stops(event["trial_id"]):
            return TrialScheduler.CONTINUE
        if event["epoch"] == self.rungs.epochs:
            self._end(trial, "finished", f"all {event['epoch']} epochs")
        else:
            best = 100 * event["best_validation_accuracy"]
            self._end(
                trial,
                "stopped",
                f"epoch {event['epoch']}: {best:.2f} % was below the cut of its rung",
            )
        return TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Log the end of a trial whose process died; other errors are reported as results."""
        self._end(trial, "crashed", "its process died: killed, out of memory, or its node lost")

    def _end(self, trial: Trial, state: str, reason: str) -> None:
        identity = _identity(trial)
        last = self.rungs.last.get(identity["trial_id"], {})
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
