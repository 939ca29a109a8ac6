"""Trials and runs of each cell, and its columns in the leaderboard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdtune.errors import UserError
from kdtune.log.events import ENDED_STATES, Cell, CellModelled, TrialState
from kdtune.log.settings_scores import SettingsScores
from kdtune.reports.tables.comparison import CellResult
from kdtune.reports.tables.statistics import MIN_SEEDS, accuracy_interval, bootstrap_best_sd


@dataclass(frozen=True)
class CellData:
    """Trials and runs of a cell, and what follows from them.

    Attributes:
        trials, runs: its rows of the tables `TRIALS` and `RUNS`.
        settings_scores: of the search, for the noise over seeds and the luck by the model.
        image_scores: by run, see `kdtune.log.image_scores.score_images`.
        chance: accuracy of answers of one class, share of 1; the score of a diverged trial.
    """

    cell: Cell
    trials: pd.DataFrame
    runs: pd.DataFrame
    settings_scores: SettingsScores
    image_scores: Mapping[str, np.ndarray]
    chance: float

    @cached_property
    def _deciding_runs(self) -> pd.DataFrame:
        """Runs of the chosen configuration; of the one that diverged least if all diverged."""
        chosen = self.runs[self.runs["chosen"]]
        states = self.runs["state"]
        if len(chosen) or states.empty or states.isin(["running", "finished"]).any():
            return chosen
        diverged = (states == TrialState.DIVERGED).groupby(self.runs["trial_id"], sort=False).sum()
        return self.runs[self.runs["trial_id"] == diverged.idxmin()] if diverged.min() else chosen

    @cached_property
    def _is_chosen(self) -> bool:
        return bool(self._deciding_runs["chosen"].any())

    @cached_property
    def _seeds_diverged(self) -> int:
        return int((self._deciding_runs["state"] == TrialState.DIVERGED).sum())

    @cached_property
    def _confirm_scores(self) -> pd.Series:
        """Validation accuracies of the deciding runs that finished, in percent."""
        return 100 * _accuracies(self._deciding_runs)

    @cached_property
    def _best_trial(self) -> Any:
        """The first trial with the best settings; None if no trial was successful."""
        best = self.trials[self.trials["rank_in_cell"] == 1]
        return best.iloc[0] if len(best) else None

    @cached_property
    def result(self) -> CellResult:
        """The values that the comparison needs."""
        runs = self._deciding_runs
        finished = runs[runs["chosen"] & (runs["state"] == TrialState.FINISHED)]
        run_ids = zip(finished["seed"], finished["run_id"], strict=True)
        scores = self.image_scores
        return CellResult(
            image_scores={seed: scores[run] for seed, run in run_ids if run in scores},
            seeds_run=len(runs) or self.runs["seed"].nunique(),
            seeds_diverged=self._seeds_diverged,
            search_luck=self._search_luck,
            trials=len(self.trials),
        )

    @property
    def _search_luck(self) -> float:
        """Luck by the model; by the scores of the settings without one."""
        if (model := self._model) is not None:
            return 100 * model.search_luck
        settings = self.trials[self.trials["candidate"].isna()]
        is_diverged = settings["state"] == TrialState.DIVERGED
        scores = settings["mean_validation_accuracy"].mask(is_diverged, self.chance)
        return 100 * bootstrap_best_sd(scores.dropna())

    @property
    def _model(self) -> CellModelled | None:
        return self.settings_scores.models.get(self.cell)

    def search_columns(self) -> dict[str, object]:
        """Return the columns of the leaderboard about the search."""
        states, best = self.trials["state"], self._best_trial
        noise_sd = self.settings_scores.noise_sd(self.cell)
        columns: dict[str, object] = {
            "method": self.cell[0],
            "model": self.cell[1],
            "search_luck_points": self.result.search_luck,
            "left_to_gain_points": 100 * self._model.left_to_gain if self._model else None,
            "search_noise_sd_points": None if noise_sd is None else 100 * noise_sd,
            "trials_started": len(self.trials),
            "trials_repeated": self.trials["candidate"].notna().sum(),
            **{f"trials_{state}": (states == state).sum() for state in ENDED_STATES},
            "search_epochs": self.trials["epochs"].sum(),
            "search_device_seconds": self.trials["device_seconds"].sum(),
        }
        if best is not None:
            accuracy = best["mean_validation_accuracy"]
            retrained = _accuracies(self.runs[self.runs["trial_id"] == best["trial_id"]])
            columns |= {
                "search_best_percent": 100 * accuracy,
                "validation_balanced_accuracy_percent": self._best_balanced_percent(),
                "optimism_gap_points": 100 * (accuracy - retrained.mean()),
                "trial_id": best["trial_id"],
                "configuration": best["configuration"],
            }
        return columns

    def confirm_columns(self, groups: Sequence[object] | None) -> dict[str, object]:
        """Return the columns of the leaderboard about the confirmation."""
        columns: dict[str, object] = {
            "status": self._status(),
            "seeds_finished": len(self._confirm_scores),
            "seeds_diverged": self._seeds_diverged,
            "confirm_epochs": self.runs["epochs"].sum(),
            "confirm_device_seconds": self.runs["device_seconds"].sum(),
        }
        if self._is_chosen:
            trial_id = self._deciding_runs["trial_id"].iloc[0]
            chosen = self.trials[self.trials["trial_id"] == trial_id]
            if chosen.empty:
                unknown = f"{trial_id} was confirmed, but never searched"
                raise UserError(f"The log is damaged: {unknown}.")
            finished = self._deciding_runs[self._deciding_runs["state"] == TrialState.FINISHED]
            for name in ("validation_balanced_accuracy", "test_balanced_accuracy"):
                columns[f"{name}_percent"] = 100 * finished[name].mean()
            columns |= {
                "validation_accuracy_percent": self._confirm_scores.mean(),
                "validation_seed_sd_points": self._confirm_scores.std(),
                "trial_id": trial_id,
                "configuration": chosen["configuration"].iloc[0],
            }
        return columns | self._test_columns(groups)

    def _best_balanced_percent(self) -> float:
        """Return the mean balanced accuracy of the runs that the best score is the mean of."""
        best, trials = self._best_trial["trial_id"], self.trials
        runs = trials[(trials["trial_id"] == best) | (trials["candidate"] == best)]
        finished = runs[runs["state"] == TrialState.FINISHED]
        scored = finished if len(finished) else runs[runs["trial_id"] == best]
        return float(100 * scored["validation_balanced_accuracy"].mean())

    def _status(self) -> str:
        if len(self._deciding_runs):
            if not self._is_chosen:
                return "failed"
            if self._seeds_diverged:
                return "unstable"
            return "ok" if len(self._confirm_scores) >= MIN_SEEDS else "incomplete"
        if len(self.runs):
            return "incomplete"
        if self._best_trial is not None:
            return "not_confirmed"
        return "running" if (self.trials["state"] == TrialState.RUNNING).any() else "failed"

    def _test_columns(self, groups: Sequence[object] | None) -> dict[str, object]:
        if not self.result.image_scores:
            return {}
        points = 100 * np.stack(list(self.result.image_scores.values()), axis=1)
        columns: dict[str, object] = {
            "test_accuracy_percent": points.mean(),
            "test_seed_sd_points": pd.Series(points.mean(axis=0)).std(),
            "test_images": len(points),
        }
        if points.shape[1] >= MIN_SEEDS:
            low, high = accuracy_interval(points, groups)
            columns["test_half_width_points"] = (high - low) / 2
            columns["test_low_percent"], columns["test_high_percent"] = low, high
        return columns


def _accuracies(runs: pd.DataFrame) -> pd.Series:
    return runs[runs["state"] == TrialState.FINISHED]["best_validation_accuracy"].dropna()
