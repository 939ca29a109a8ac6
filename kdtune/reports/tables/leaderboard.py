"""Leaderboard: one row per cell, with the results of its search and its confirmation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.errors import UserError
from kdtune.log.events import (
    ENDED_STATES,
    SUCCESSFUL_STATES,
    Cell,
    Event,
    SweepStarted,
    TrialState,
)
from kdtune.reports.tables.columns import LEADERBOARD
from kdtune.reports.tables.comparison import CellResult, comparison_table
from kdtune.reports.tables.confirmed import (
    collect_cell_results,
    group_by_cell,
    seed_sd_points,
    select_cell,
    select_deciding_runs,
    select_successful,
)
from kdtune.reports.tables.log_tables import models_table, runs_table, trials_table
from kdtune.reports.tables.statistics import MIN_SEEDS, Verdict, estimate_mean


class CellStatus(StrEnum):
    """State of a cell; the meaning of each is in `LEADERBOARD`."""

    OK = "ok"
    UNSTABLE = "unstable"
    INCOMPLETE = "incomplete"
    NOT_CONFIRMED = "not_confirmed"
    FAILED = "failed"
    RUNNING = "running"


@dataclass(frozen=True)
class SweepTables:
    """Tables of a sweep that follow from one another.

    Attributes:
        trials, runs, models: the tables `TRIALS`, `RUNS` and `MODELS`.
        cell_results: test results by cell.
        comparison, leaderboard: the tables `COMPARISON` and `LEADERBOARD`.
    """

    trials: pd.DataFrame
    runs: pd.DataFrame
    models: pd.DataFrame
    cell_results: dict[Cell, CellResult]
    comparison: pd.DataFrame
    leaderboard: pd.DataFrame


def build_sweep_tables(
    events: Sequence[Event],
    confirm_events: Sequence[Event] = (),
    correct: Mapping[str, np.ndarray] | None = None,
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> SweepTables:
    """Make the tables of a sweep, confirmed or not.

    Args:
        events: log of the search.
        confirm_events: log of the confirmation.
        correct: by run, which test images were classified correctly, bool [n].
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.

    Raises:
        UserError: a log is damaged, or a trial was chosen that was never searched.
    """
    data = next((event.data for event in events if isinstance(event, SweepStarted)), None)
    trials = trials_table(events)
    runs, models = runs_table(confirm_events), models_table(confirm_events)
    chance = 1 / len(data.classes) if data else 0.0
    cell_results = collect_cell_results(trials, runs, correct or {}, chance)
    comparison = comparison_table(cell_results, groups, min_difference)
    cells = [
        _CellData(cell, cell_trials, select_cell(runs, cell), cell_results[cell])
        for cell, cell_trials in group_by_cell(trials)
    ]
    ranks, gains = _compute_ranks(comparison), _student_gains(comparison)
    student_costs = models.set_index("model").to_dict("index")
    leaderboard = LEADERBOARD.make_frame(
        {
            "rank": ranks.get(data_of_cell.cell),
            "validation_images": data.validation_images if data else None,
            **data_of_cell.search_columns(min_difference),
            **data_of_cell.confirm_columns(groups),
            **gains.get(data_of_cell.cell, {}),
            **student_costs.get(data_of_cell.cell[1], {}),
        }
        for data_of_cell in cells
    )
    leaderboard["validation_minus_test_points"] = (
        leaderboard["validation_accuracy_percent"] - leaderboard["test_accuracy_percent"]
    )
    sorted_leaderboard = sort_leaderboard(leaderboard)
    return SweepTables(trials, runs, models, cell_results, comparison, sorted_leaderboard)


def sort_leaderboard(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Sort a leaderboard by model, then test accuracy, then best score of the search."""
    return leaderboard.sort_values(
        ["model", "test_accuracy_percent", "search_best_percent"],
        ascending=[True, False, False],
        kind="stable",
        ignore_index=True,
    )


def _compute_ranks(comparison: pd.DataFrame) -> dict[Cell, int]:
    ranks: dict[Cell, int] = {}
    for row in comparison[comparison["models"] == 1].itertuples():
        if row.verdict in (Verdict.NOT_CONFIRMED, Verdict.UNSTABLE):
            continue
        losers = {Verdict.BETTER_B: row.method_a, Verdict.BETTER_A: row.method_b}
        for method in (row.method_a, row.method_b):
            rank = ranks.get((method, row.model), 1)
            ranks[method, row.model] = rank + (losers.get(row.verdict) == method)
    return ranks


def _student_gains(comparison: pd.DataFrame) -> dict[Cell, dict[str, float]]:
    is_gain = (comparison["method_b"] == "student") & (comparison["models"] == 1)
    return {
        (row.method_a, row.model): {
            "gain_over_student_points": row.difference_points,
            "gain_over_student_half_width_points": row.half_width_points,
        }
        for row in comparison[is_gain].itertuples()
    }


@dataclass(frozen=True)
class _CellData:
    """Trials and runs of a cell, and what the leaderboard says of them."""

    cell: Cell
    trials: pd.DataFrame
    runs: pd.DataFrame
    result: CellResult

    @cached_property
    def deciding_runs(self) -> pd.DataFrame:
        return select_deciding_runs(self.runs)

    @cached_property
    def is_chosen(self) -> bool:
        return bool(self.deciding_runs["chosen"].any())

    @cached_property
    def best_trial(self) -> Any:
        """The best successful trial, the earliest of equals; None if there is none."""
        successful = self.trials[self.trials["state"].isin(SUCCESSFUL_STATES)]
        scores = successful["best_validation_accuracy"].dropna()
        return successful.loc[scores.idxmax()] if len(scores) else None

    def search_columns(self, min_difference: float) -> dict[str, object]:
        late_gain = self.result.late_gain
        still_improving = late_gain > max(
            min_difference, 0.75 * seed_sd_points(self.deciding_runs)
        )
        states = self.trials["state"]
        columns: dict[str, object] = {
            "method": self.cell[0],
            "model": self.cell[1],
            "search_luck_points": self.result.search_luck,
            "late_gain_points": late_gain,
            "search_still_improving": None if np.isnan(late_gain) else still_improving,
            "trials_started": len(self.trials),
            **{f"trials_{state}": (states == state).sum() for state in ENDED_STATES},
            "search_epochs": self.trials["epochs"].sum(),
            "search_device_seconds": self.trials["device_seconds"].sum(),
        }
        best = self.best_trial
        if best is not None:
            score, rerun = (
                best["best_validation_accuracy"],
                self.runs["trial_id"] == best["trial_id"],
            )
            repeated = select_successful(self.runs[rerun])["best_validation_accuracy"]
            columns |= {
                "search_best_percent": 100 * score,
                "optimism_gap_points": 100 * (score - repeated.mean()),
                "trial_id": best["trial_id"],
                "configuration": best["configuration"],
            }
        return columns

    def confirm_columns(self, groups: Sequence[object] | None) -> dict[str, object]:
        scores = 100 * select_successful(self.deciding_runs)["best_validation_accuracy"]
        columns: dict[str, object] = {
            "status": self._status(len(scores)),
            "seeds_ok": len(scores),
            "seeds_diverged": self.result.seeds_diverged,
            "confirm_epochs": self.runs["epochs"].sum(),
            "confirm_device_seconds": self.runs["device_seconds"].sum(),
            **self._test_columns(groups),
        }
        if self.is_chosen:
            trial_id = self.deciding_runs["trial_id"].iloc[0]
            chosen = self.trials[self.trials["trial_id"] == trial_id]
            if chosen.empty:
                raise UserError(
                    f"The log is damaged: {trial_id} was confirmed, but never searched."
                )
            columns |= {
                "validation_accuracy_percent": scores.mean(),
                "validation_seed_sd_points": scores.std(),
                "trial_id": trial_id,
                "configuration": chosen["configuration"].iloc[0],
            }
        return columns

    def _status(self, seeds_ok: int) -> CellStatus:
        if len(self.deciding_runs):
            if not self.is_chosen:
                return CellStatus.FAILED
            if self.result.seeds_diverged:
                return CellStatus.UNSTABLE
            return CellStatus.OK if seeds_ok >= MIN_SEEDS else CellStatus.INCOMPLETE
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
