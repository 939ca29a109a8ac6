"""Trials and runs of each cell, and its columns in the leaderboard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdtune.errors import UserError
from kdtune.log.events import ENDED_STATES, SUCCESSFUL_STATES, Cell, TrialState
from kdtune.reports.tables.comparison import CellResult
from kdtune.reports.tables.statistics import MIN_SEEDS, estimate_mean, late_gain, search_luck


class CellStatus(StrEnum):
    """State of a cell; the meaning of each is in `LEADERBOARD`."""

    OK = "ok"
    UNSTABLE = "unstable"
    INCOMPLETE = "incomplete"
    NOT_CONFIRMED = "not_confirmed"
    FAILED = "failed"
    RUNNING = "running"


@dataclass(frozen=True)
class CellData:
    """Trials and runs of a cell, and what follows from them.

    Attributes:
        cell: method and model.
        trials: its rows of the table `TRIALS`.
        runs: its rows of the table `RUNS`.
        correct: by run, which test images were classified correctly, bool [n].
        chance: accuracy of guessing, share of 1; the score of a diverged trial.
    """

    cell: Cell
    trials: pd.DataFrame
    runs: pd.DataFrame
    correct: Mapping[str, np.ndarray]
    chance: float

    @cached_property
    def deciding_runs(self) -> pd.DataFrame:
        """Runs by which the cell is judged.

        These are the runs of the chosen configuration. If every configuration diverged, they are
        those of the configuration that diverged least.
        """
        chosen = self.runs[self.runs["chosen"]]
        if len(chosen) or self.runs.empty or self.runs["status"].isin(["running", "ok"]).any():
            return chosen
        is_diverged = self.runs["status"] == TrialState.DIVERGED
        diverged = is_diverged.groupby(self.runs["trial_id"], sort=False).sum()
        is_least = self.runs["trial_id"] == diverged.idxmin()
        return self.runs[is_least] if diverged.min() else chosen

    @cached_property
    def is_chosen(self) -> bool:
        """True if a configuration is chosen."""
        return bool(self.deciding_runs["chosen"].any())

    @cached_property
    def seeds_diverged(self) -> int:
        """Number of deciding runs that diverged."""
        return int((self.deciding_runs["status"] == TrialState.DIVERGED).sum())

    @cached_property
    def confirm_scores(self) -> pd.Series:
        """Validation accuracies of the deciding runs that finished, in percent."""
        return 100 * _accuracies(self.deciding_runs)

    @cached_property
    def seed_sd_points(self) -> float:
        """Standard deviation over seeds of the chosen configuration; 0 if unknown."""
        is_known = self.is_chosen and len(self.confirm_scores) > 1
        return float(self.confirm_scores.std()) if is_known else 0.0

    @cached_property
    def best_trial(self) -> Any:
        """The best successful trial, the earliest of equals; None if there is none."""
        successful = self.trials[self.trials["state"].isin(SUCCESSFUL_STATES)]
        scores = successful["best_validation_accuracy"].dropna()
        return successful.loc[scores.idxmax()] if len(scores) else None

    @cached_property
    def result(self) -> CellResult:
        """The values that the comparison needs."""
        chosen_runs = self.deciding_runs[self.deciding_runs["chosen"]]
        accuracies = self.trials["best_validation_accuracy"].where(
            self.trials["state"].isin(SUCCESSFUL_STATES)
        )
        is_diverged = self.trials["state"] == TrialState.DIVERGED
        scores = 100 * accuracies.mask(is_diverged, self.chance).astype(float)
        return CellResult(
            correct={
                run.seed: self.correct[run.run_id]
                for run in chosen_runs[chosen_runs["status"] == "ok"].itertuples()
                if run.run_id in self.correct
            },
            seeds_run=len(self.deciding_runs) or self.runs["seed"].nunique(),
            seeds_diverged=self.seeds_diverged,
            search_luck=search_luck(scores, self.seed_sd_points),
            late_gain=late_gain(scores),
        )

    def search_columns(self, min_difference: float) -> dict[str, object]:
        """Return the columns of the leaderboard about the search."""
        late_gain = self.result.late_gain
        is_improving = late_gain > max(min_difference, 0.75 * self.seed_sd_points)
        states, best = self.trials["state"], self.best_trial
        columns: dict[str, object] = {
            "method": self.cell[0],
            "model": self.cell[1],
            "search_luck_points": self.result.search_luck,
            "late_gain_points": late_gain,
            "search_still_improving": None if np.isnan(late_gain) else is_improving,
            "trials_started": len(self.trials),
            **{f"trials_{state}": (states == state).sum() for state in ENDED_STATES},
            "search_epochs": self.trials["epochs"].sum(),
            "search_device_seconds": self.trials["device_seconds"].sum(),
        }
        if best is not None:
            accuracy = best["best_validation_accuracy"]
            repeated = _accuracies(self.runs[self.runs["trial_id"] == best["trial_id"]])
            columns |= {
                "search_best_percent": 100 * accuracy,
                "optimism_gap_points": 100 * (accuracy - repeated.mean()),
                "trial_id": best["trial_id"],
                "configuration": best["configuration"],
            }
        return columns

    def confirm_columns(self, groups: Sequence[object] | None) -> dict[str, object]:
        """Return the columns of the leaderboard about the confirmation.

        Raises:
            UserError: a trial was chosen that was never searched.
        """
        columns: dict[str, object] = {
            "status": self._status(),
            "seeds_ok": len(self.confirm_scores),
            "seeds_diverged": self.seeds_diverged,
            "confirm_epochs": self.runs["epochs"].sum(),
            "confirm_device_seconds": self.runs["device_seconds"].sum(),
        }
        if self.is_chosen:
            trial_id = self.deciding_runs["trial_id"].iloc[0]
            chosen = self.trials[self.trials["trial_id"] == trial_id]
            if chosen.empty:
                raise UserError(
                    f"The log is damaged: {trial_id} was confirmed, but never searched."
                )
            columns |= {
                "validation_accuracy_percent": self.confirm_scores.mean(),
                "validation_seed_sd_points": self.confirm_scores.std(),
                "trial_id": trial_id,
                "configuration": chosen["configuration"].iloc[0],
            }
        return columns | self._test_columns(groups)

    def _status(self) -> CellStatus:
        if len(self.deciding_runs):
            if not self.is_chosen:
                return CellStatus.FAILED
            if self.seeds_diverged:
                return CellStatus.UNSTABLE
            is_ok = len(self.confirm_scores) >= MIN_SEEDS
            return CellStatus.OK if is_ok else CellStatus.INCOMPLETE
        if len(self.runs):
            return CellStatus.INCOMPLETE
        if self.best_trial is not None:
            return CellStatus.NOT_CONFIRMED
        is_running = (self.trials["state"] == TrialState.RUNNING).any()
        return CellStatus.RUNNING if is_running else CellStatus.FAILED

    def _test_columns(self, groups: Sequence[object] | None) -> dict[str, object]:
        if not self.result.correct:
            return {}
        points = 100 * np.stack(list(self.result.correct.values()), axis=1)
        columns: dict[str, object] = {
            "test_accuracy_percent": points.mean(),
            "test_seed_sd_points": pd.Series(points.mean(axis=0)).std(),
            "test_images": len(points),
        }
        if points.shape[1] >= MIN_SEEDS:
            interval = estimate_mean(points, groups=groups)
            columns["test_half_width_points"] = interval.half_width
            columns["test_low_percent"] = max(interval.low, 0.0)
            columns["test_high_percent"] = min(interval.high, 100.0)
        return columns


def _accuracies(runs: pd.DataFrame) -> pd.Series:
    """Return the best validation accuracies of the runs that finished."""
    return runs[runs["status"] == "ok"]["best_validation_accuracy"].dropna()
