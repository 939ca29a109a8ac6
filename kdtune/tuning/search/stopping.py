"""Early stopping: asha, hyperband and median, as a fold over the log.

A trial is compared only with others of its cell, by the best accuracy at the same epoch. Repeats
are neither compared nor stopped, and neither is a trial in its first `hint_epochs`.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Cell, EpochFinished, Event, TrialProposed, TrialState, WarmStart

_MIN_COMPETITORS = {"asha": 1, "hyperband": 1, "median": 4, "none": 0}  # to stop a trial

_HOPELESS_SHARE, _MIN_HOPELESS_COMPETITORS = 0.5, 3
"""Share of the median below which `asha` stops a trial early, and the trials it takes for that."""


class Threshold(NamedTuple):
    """The accuracy, a share of 1, that a trial missed, and the number of its competitors."""

    epoch: int
    value: float
    competitors: int


class EarlyStopping:
    """The early-stopping rule of a sweep, with the accuracies that it has seen.

    * ``asha`` (Li et al. 2020): at each rung a trial continues if it is among the best
      1/`reduction_factor` of those that were there before; the first one always continues. After
      half of the grace period a trial stops that has learned next to nothing: it is below half of
      the median of the others.
    * ``hyperband`` (Li et al. 2018): several such brackets, each without the first rung of the one
      before; the last has no rung. The bracket with the fewest epochs gets the next trial.
    * ``median`` (Golovin et al. 2017): from the grace period on, a trial stops at any epoch at
      which it is below the median of the others.
    * ``none``: no trial stops.
    """

    def __init__(self, sweep: SweepConfig):
        self.scheduler, self.epochs = sweep.scheduler, sweep.epochs
        rungs = rung_epochs(sweep.epochs, sweep.grace_period, sweep.reduction_factor)
        brackets: dict[str, list[tuple[int, ...]]] = {
            "asha": [rungs],
            "hyperband": [rungs[first:] for first in range(len(rungs) + 1)],
            "median": [tuple(range(sweep.grace_period, sweep.epochs))],
            "none": [()],
        }
        self.brackets = brackets[sweep.scheduler]  # epochs after which their trials are judged
        is_asha = sweep.scheduler == "asha"
        self._hopeless_epoch = sweep.grace_period // 2 if is_asha and rungs else 0
        self._quantile = 0.5 if sweep.scheduler == "median" else 1 - 1 / sweep.reduction_factor
        self.bracket_of: dict[str, int] = {}  # by trial; repeats have none
        self._hint_epochs: dict[str, int] = {}  # by trial; no epoch of these is judged
        self._epochs_trained: dict[Cell, list[int]] = defaultdict(lambda: [0] * len(self.brackets))
        self._accuracies: dict[tuple[Cell, int, int], list[float]] = defaultdict(list)
        self.missed_thresholds: dict[str, Threshold | None] = {}  # after each trial's last epoch

    def describe_rule(self) -> str:
        """Return in words when trials are judged."""
        if self.scheduler == "none":
            return "no trial is stopped early"
        rungs = " and ".join(map(str, self.brackets[0]))
        if not rungs:
            return f"{self.scheduler} never stops a trial: its first rung is the end"
        hopeless = f", and after {self._hopeless_epoch} what is below half of their median"
        stops = f"stops what is below {100 * self._quantile:.0f} % of the others"
        return {
            "asha": f"asha {stops} after epochs {rungs}{hopeless * bool(self._hopeless_epoch)}",
            "hyperband": f"hyperband, in {len(self.brackets)} brackets, {stops} after {rungs}",
            "median": f"median {stops} from epoch {self.brackets[0][0]} on",
        }[self.scheduler]

    def decide(self, epoch: EpochFinished) -> tuple[TrialState, str] | None:
        """Return state and reason of a trial whose latest epoch is its last; None if it is not."""
        if epoch.epoch == self.epochs:
            return TrialState.FINISHED, f"all {self.epochs} epochs"
        if (threshold := self.missed_thresholds[epoch.trial_id]) is None:
            return None
        best = 100 * epoch.best_validation_accuracy
        return TrialState.STOPPED, (
            f"{self.scheduler}, epoch {threshold.epoch}: {best:.2f} %, "
            f"the cut was {100 * threshold.value:.2f} % among {threshold.competitors}"
        )

    def fold(self, event: Event) -> None:
        """Add an event of the log."""
        match event:
            case TrialProposed() if not event.is_repeat:
                self._assign_bracket(event.cell, event.trial_id, event.config)
            case EpochFinished(trial_id=trial_id, epoch=epoch, best_validation_accuracy=best):
                missed = self._check_threshold(event.cell, trial_id, epoch, best)
                self.missed_thresholds[trial_id] = missed
            case WarmStart():
                for seen in event.observations:
                    self._assign_bracket(event.cell, seen.trial_id, seen.params)
                    for epoch, best in enumerate(seen.best_validation_accuracies, start=1):
                        self._check_threshold(event.cell, seen.trial_id, epoch, best)

    def _assign_bracket(self, cell: Cell, trial_id: str, settings: Mapping[str, Any]) -> None:
        self._hint_epochs[trial_id] = settings.get("hint_epochs", 0)
        epochs_trained = self._epochs_trained[cell]
        self.bracket_of[trial_id] = epochs_trained.index(min(epochs_trained))

    def _check_threshold(
        self, cell: Cell, trial: str, epoch: int, best: float
    ) -> Threshold | None:
        if (bracket := self.bracket_of.get(trial)) is None:
            return None
        self._epochs_trained[cell][bracket] += 1
        if epoch <= self._hint_epochs[trial]:
            return None
        is_hopeless_check = epoch == self._hopeless_epoch
        if epoch not in self.brackets[bracket] and not is_hopeless_check:
            return None
        reached = self._accuracies[cell, bracket, epoch]
        competitors = reached.copy()
        reached.append(best)
        minimum = _MIN_COMPETITORS[self.scheduler]
        if len(competitors) < (_MIN_HOPELESS_COMPETITORS if is_hopeless_check else minimum):
            return None
        if is_hopeless_check:
            threshold = _HOPELESS_SHARE * float(np.median(competitors))
        else:
            threshold = float(np.quantile(competitors, self._quantile))
        return Threshold(epoch, threshold, len(competitors)) if best < threshold else None


def rung_epochs(epochs: int, grace_period: int, reduction_factor: int) -> tuple[int, ...]:
    """Return the epochs, all before the last, after which trials are compared.

    >>> rung_epochs(16, 2, 2), rung_epochs(50, 13, 3)
    ((2, 4, 8), (13, 39))

    Args:
        epochs: epochs of a trial that is not stopped.
        grace_period: the first rung.
        reduction_factor: ratio of successive rungs.
    """
    rungs = []
    while grace_period < epochs:
        rungs.append(grace_period)
        grace_period *= reduction_factor
    return tuple(rungs)
