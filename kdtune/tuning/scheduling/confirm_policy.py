"""The policy of a confirmation: its runs, the choice among candidates, and what may be tested.

The best trials of a search profit from luck. So the best trials of every cell, its candidates, are
trained again with further seeds, which are the same in all cells. Validation images decide among
them, and only the chosen candidate is tested, once. A choice is final: it alone gets later seeds.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log import events
from kdtune.log.events import Cell, TrialState
from kdtune.reports.tables.statistics import MIN_SEEDS
from kdtune.runtime.console import say
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.search.stopping import EarlyStopping

Candidates = dict[Cell, list[str]]  # trials that are trained again, the best first


@dataclass
class ConfirmPolicy(SchedulingPolicy):
    """Runs, choices and tests of a confirmation; runs are known by their ids."""

    sweep: SweepConfig
    trial_configs: Mapping[str, dict[str, Any]]  # of the search's trials, in their order
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = say
    failure_restarts = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stopping = EarlyStopping(self.sweep.model_copy(update={"scheduler": "none"}))
        self.candidates: Candidates = {}
        self.num_seeds = 0  # of each candidate, at the first look; they are numbered from 1
        self._added_seeds: dict[Cell, int] = {}  # numbers of cells that got more
        self.chosen_trials: dict[Cell, str] = {}
        self.proposals: dict[str, events.TrialProposed] = {}
        self.end_events: dict[str, events.TrialEnded] = {}
        self.tested_runs: set[str] = set()

    @property
    def folds(self) -> list[Callable[[events.Event], None]]:
        return [self.fold, *super().folds]

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        match event:
            case events.ConfirmStarted():
                self.num_seeds = max(self.num_seeds, event.seeds)
                for run_id in self.crashed_runs():
                    self._requeue(run_id)  # the cause of the crash may be gone
                for candidate in event.candidates:
                    self.candidates.setdefault(candidate.cell, []).append(candidate.trial_id)
            case events.SeedsAdded():
                for cell in event.cells:  # one that is compared with it may have had more
                    self._added_seeds[cell] = max(self.seeds_of(cell), event.seeds)
            case events.TrialProposed(candidate=candidate_id, number=seed):
                is_known = candidate_id is not None and candidate_id in self.trial_configs
                if not is_known or event.trial_id != make_run_id(str(candidate_id), seed):
                    raise ValueError(f"there is no run {event.trial_id}")
                self.proposals[event.trial_id] = event
            case events.TrialEnded():
                self.end_events[event.trial_id] = event
            case events.CandidateChosen():
                self.chosen_trials[event.cell] = event.candidate
            case events.RunTested():
                self.tested_runs.add(event.trial_id)
            case events.WeightsMissing():
                self._requeue(event.trial_id)

    def crashed_runs(self) -> list[str]:
        """Return the ids of the runs that crashed and were not proposed again."""
        ends = self.end_events.items()
        return [run_id for run_id, end in ends if end.state is TrialState.CRASHED]

    def _requeue(self, run_id: str) -> None:
        del self.end_events[run_id], self.proposals[run_id]

    def _planned_runs(self) -> dict[str, tuple[Cell, str, int]]:
        """Return cell, trial and seed of all runs by id, one cell after the other."""
        return {
            make_run_id(trial, seed): (cell, trial, seed)
            for cell, trials in self.candidates.items()
            for seed in range(1, self.seeds_of(cell) + 1)
            for trial in trials
            if self.chosen_trials.get(cell) in (None, trial)
        }

    def seeds_of(self, cell: Cell) -> int:
        """Return the number of seeds of a cell's chosen candidate."""
        return max(self.num_seeds, self._added_seeds.get(cell, 0))

    def _missing_runs(self) -> list[tuple[Cell, str, int]]:
        return [run for i, run in self._planned_runs().items() if i not in self.proposals]

    def next_cells(self) -> list[Cell]:
        return list(dict.fromkeys(cell for cell, *_ in self._missing_runs()))

    def propose(self, cell: Cell) -> events.TrialProposed:
        trial, seed = next((t, s) for run_cell, t, s in self._missing_runs() if run_cell == cell)
        return events.TrialProposed(
            trial_id=make_run_id(trial, seed),
            method=cell[0],
            model=cell[1],
            candidate=trial,
            number=seed,
            origin="confirm",
            params={},
            distributions={},
            config=self.configure_run(trial, seed).model_dump(),
        )

    @property
    def runs_per_cell(self) -> dict[Cell, int]:
        """Number of runs of each cell, those of candidates that were not chosen included."""
        planned = {run_id: cell for run_id, (cell, *_) in self._planned_runs().items()}
        proposed = {run_id: run.cell for run_id, run in self.proposals.items()}
        return Counter((planned | proposed).values())

    @property
    def num_runs(self) -> int:
        """Number of runs of all cells."""
        return sum(self.runs_per_cell.values())

    def configure_run(self, trial_id: str, seed: int) -> TrainConfig:
        """Return a trial's settings with a fresh seed, which is the same for all trials.

        Args:
            trial_id: the trial of the search.
            seed: number of the seed, from 1.
        """
        fresh_seed = derive_seed(self.sweep.seed, "confirm", seed)
        return TrainConfig.parse({**self.trial_configs[trial_id], "seed": fresh_seed})

    def exhausted_reason(self, cell: Cell) -> str | None:
        return None  # the number of runs is the budget

    def choose_candidates(self) -> list[events.CandidateChosen]:
        """Return the choice in each cell that has none yet and has a finished run.

        It is the candidate with the highest mean validation accuracy over its finished runs, the
        earliest of equals. Candidates without a diverged run come before all others, then those
        with as many finished runs as a comparison needs.
        """
        choices = []
        for (method, model), trials in self.candidates.items():
            ranked = []
            for trial in (t for t in self.trial_configs if t in trials):
                ends = [self.end_events[run_id] for run_id in self._runs_of(trial)]
                finished = [end for end in ends if end.state is TrialState.FINISHED]
                bests = [end.best_validation_accuracy for end in finished]
                if accuracies := [best for best in bests if best is not None]:
                    diverged = any(end.state is TrialState.DIVERGED for end in ends)
                    has_enough_seeds = len(accuracies) >= MIN_SEEDS
                    ranked.append((not diverged, has_enough_seeds, fmean(accuracies), trial))
            if ranked and (method, model) not in self.chosen_trials:
                *_, best = max(ranked, key=lambda rank: rank[:-1])
                choices.append(events.CandidateChosen(method=method, model=model, candidate=best))
        return choices

    def _runs_of(self, trial: str) -> list[str]:
        return [run_id for run_id, run in self.proposals.items() if run.candidate == trial]

    def testable_runs(self) -> list[str]:
        """Return the finished, untested runs of the candidates that are or may be chosen."""
        return list(filter(self._is_testable, self._planned_runs()))

    def untested_runs(self) -> list[tuple[Cell, str]]:
        """Return cell and id of the finished, untested runs of the chosen candidates."""
        return [
            (cell, run_id)
            for cell, trial in self.chosen_trials.items()
            for run_id in self._runs_of(trial)
            if self._is_testable(run_id)
        ]

    def _is_testable(self, run_id: str) -> bool:
        end = self.end_events.get(run_id)
        is_finished = end is not None and end.state is TrialState.FINISHED
        return is_finished and run_id not in self.tested_runs


def make_run_id(trial_id: str, seed: int) -> str:
    """Return the id of a run.

    Args:
        trial_id: the trial of the search.
        seed: number of the seed, from 1.
    """
    return f"{trial_id}-seed{seed}"


def best_trials(trials: pd.DataFrame, top: int) -> Candidates:
    """Return the first trials with the best settings of each cell, those of slow students first.

    So the last cell, at whose end slots are idle, has short runs.

    Args:
        trials: see `kdtune.reports.tables.log_tables.trials_table`.
        top: trials of each cell, at most.
    """
    totals = trials.groupby("model")[["device_seconds", "epochs"]].sum()
    seconds_per_epoch = (totals["device_seconds"] / totals["epochs"]).to_dict()
    keys, ascending = ["rank_in_cell", "mean_validation_accuracy"], [True, False]
    ranked = trials.dropna(subset=keys[0]).sort_values(keys, ascending=ascending, kind="stable")
    cells = ranked.groupby(["method", "model"], sort=False)["trial_id"]
    candidates = {(str(m), str(s)): list(ids.head(top)) for (m, s), ids in cells}
    return dict(sorted(candidates.items(), key=lambda cell: -seconds_per_epoch[cell[0][1]]))
