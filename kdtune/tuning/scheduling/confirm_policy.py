"""What decides in a confirmation: which runs there are, what is chosen, what may be tested.

The winner of a search is the luckiest of many. So the best trials of every cell, its candidates,
are trained with further seeds, which are the same in all cells: student initialisation and order
of the data are paired. The choice among them is by validation images. Only then, and once, is what
was chosen judged by the test images. A choice stands: later seeds are trained for it alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import (
    SUCCESSFUL_STATES,
    CandidateChosen,
    Cell,
    ConfirmStarted,
    Event,
    RunTested,
    TrialEnded,
    TrialProposed,
    TrialState,
    WeightsMissing,
)
from kdtune.reports.tables.statistics import MIN_SEEDS
from kdtune.runtime.console import say
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.search.stopping import EarlyStopping

Candidates = dict[Cell, list[str]]
"""Trials of each cell that are trained again, the best first."""


class ConfirmPolicy(SchedulingPolicy):
    """What decides in a confirmation.

    Args:
        sweep: complete settings.
        settings: complete settings of each trial of the search.
        clock: seconds, which nobody sets.
        say: as for `Decisions`.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        trial_configs: Mapping[str, dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = say,
    ):
        no_stopping = EarlyStopping(
            "none", sweep.epochs, sweep.grace_period, sweep.reduction_factor
        )
        super().__init__(sweep, no_stopping, 1, clock, say)
        self.trial_configs = trial_configs
        self.candidates: Candidates = {}
        self.num_seeds = 0
        """Fresh seeds, from 1."""
        self.chosen_trials: dict[Cell, str] = {}
        self.run_ids: dict[tuple[str, int], str] = {}
        """The run of each candidate and seed."""
        self.proposals: dict[str, TrialProposed] = {}
        """How each run was asked for."""
        self.end_events: dict[str, TrialEnded] = {}
        """How each run ended."""
        self.tested_runs: set[str] = set()

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        """What takes every event of the log."""
        return [self.fold, *super().folds]

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        match event:
            case ConfirmStarted():
                self.num_seeds = max(self.num_seeds, event.seeds)
                for run_id in self.crashed_runs():
                    self._requeue(run_id)  # what made it crash may have passed
                for candidate in event.candidates:
                    self.candidates.setdefault(candidate.cell, []).append(candidate.trial_id)
            case TrialProposed(candidate=candidate_id, number=seed):
                is_known = candidate_id is not None and candidate_id in self.trial_configs
                if not is_known or event.trial_id != make_run_id(str(candidate_id), seed):
                    raise ValueError(f"there is no run {event.trial_id}")
                self.run_ids[str(candidate_id), seed] = event.trial_id
                self.proposals[event.trial_id] = event
            case TrialEnded():
                self.end_events[event.trial_id] = event
            case CandidateChosen():
                self.chosen_trials[event.cell] = event.candidate
            case RunTested():
                self.tested_runs.add(event.trial_id)
            case WeightsMissing():
                self._requeue(event.trial_id)

    def crashed_runs(self) -> list[str]:
        """Return the ids of the runs that crashed and were not proposed again."""
        ends = self.end_events.items()
        return [run_id for run_id, end in ends if end.state is TrialState.CRASHED]

    def _requeue(self, run_id: str) -> None:
        """Have a run that has ended run again."""
        del self.end_events[run_id]
        self.run_ids = {key: name for key, name in self.run_ids.items() if name != run_id}

    def planned_runs(self) -> Iterator[tuple[Cell, str, int]]:
        """All that is to be run: cell, trial, seed. A cell is complete before the next begins."""
        for cell, trials in self.candidates.items():
            chosen = self.chosen_trials.get(cell)
            for seed in range(1, self.num_seeds + 1):
                for trial in trials:
                    if chosen in (None, trial):
                        yield cell, trial, seed

    def next_cells(self) -> list[Cell]:
        """The cells of which a run is left."""
        return list(
            dict.fromkeys(
                cell for cell, *run in self.planned_runs() if tuple(run) not in self.run_ids
            )
        )

    def propose(self, cell: Cell) -> TrialProposed:
        """The next run of a cell."""
        trial, seed = next(
            (trial, seed)
            for run_cell, trial, seed in self.planned_runs()
            if run_cell == cell and (trial, seed) not in self.run_ids
        )
        return TrialProposed(
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
        """Runs of each cell, those of candidates that were not chosen among them."""
        runs = {(trial, seed): cell for cell, trial, seed in self.planned_runs()}
        proposed = {key: self.proposals[run].cell for key, run in self.run_ids.items()}
        return Counter((runs | proposed).values())

    @property
    def num_runs(self) -> int:
        """Runs of all cells."""
        return sum(self.runs_per_cell.values())

    def configure_run(self, trial_id: str, seed: int) -> TrainConfig:
        """A trial's settings with a fresh seed, the same for all trials."""
        fresh_seed = derive_seed(self.sweep.seed, "confirm", seed)
        return TrainConfig.parse({**self.trial_configs[trial_id], "seed": fresh_seed})

    def exhausted_reason(self, cell: Cell) -> str | None:
        """Nothing: the budget of a confirmation is the number of its runs."""
        return None

    @property
    def finished(self) -> bool:
        """Whether all has been run."""
        return not self.active_trials.by_id and not self.next_cells()

    def choose_candidates(self) -> list[CandidateChosen]:
        """The choice in each cell that has none yet, and of which a run was sound.

        It is the candidate with the highest mean validation accuracy over its sound runs, the
        earliest of equals, among those of which no run diverged, if there are any, and then those
        with as many sound runs as a comparison needs.
        """
        events = []
        for cell, trials in self.candidates.items():
            ranked = []
            for trial in sorted(trials, key=lambda trial: int(trial.rpartition("-")[2])):
                end_events = [
                    self.end_events[run]
                    for (candidate, _), run in self.run_ids.items()
                    if candidate == trial
                ]
                accuracies = [
                    end.best_validation_accuracy
                    for end in end_events
                    if end.state is TrialState.FINISHED
                    and end.best_validation_accuracy is not None
                ]
                if accuracies:
                    diverged = any(end.state is TrialState.DIVERGED for end in end_events)
                    has_enough_seeds = len(accuracies) >= MIN_SEEDS
                    ranked.append((not diverged, has_enough_seeds, fmean(accuracies), trial))
            if ranked and cell not in self.chosen_trials:
                *_, best = max(ranked, key=lambda rank: rank[:-1])
                choice = CandidateChosen(method=cell[0], model=cell[1], candidate=best)
                events.append(choice)
        return events

    def testable_runs(self) -> list[str]:
        """Sound runs whose networks may be tested: all of a cell until one is chosen."""
        return [
            run
            for cell, trial, seed in self.planned_runs()
            if (run := self.run_ids.get((trial, seed))) is not None
            and run not in self.tested_runs
            and run in self.end_events
            and self.end_events[run].state is TrialState.FINISHED
        ]

    def untested_runs(self) -> list[tuple[Cell, str]]:
        """Sound runs of what was chosen for which the test images were not read yet."""
        return [
            (cell, run)
            for cell, trial in self.chosen_trials.items()
            for (candidate, _), run in self.run_ids.items()
            if candidate == trial
            and self.end_events[run].state is TrialState.FINISHED
            and run not in self.tested_runs
        ]


def make_run_id(trial_id: str, seed: int) -> str:
    """The name of a run.

    >>> make_run_id("at-ResNet18-017", 3)
    'at-ResNet18-017-seed3'
    """
    return f"{trial_id}-seed{seed}"


def best_trials(trials: pd.DataFrame, top: int) -> Candidates:
    """The best sound trials of each cell, so many; cells of slow students first.

    So the last cell, at whose end slots are idle, is one of short runs.

    Args:
        trials: as `kdtune.reports.tables.log_tables.trials_table` makes it.
        top: at most so many in each cell.
    """
    totals = trials.groupby("model")[["device_seconds", "epochs"]].sum()
    seconds_per_epoch = (totals["device_seconds"] / totals["epochs"]).to_dict()
    successful = trials[trials["state"].isin(SUCCESSFUL_STATES)].dropna(
        subset="best_validation_accuracy"
    )
    ranked = successful.sort_values("best_validation_accuracy", ascending=False, kind="stable")
    cells = ranked.groupby(["method", "model"], sort=False)["trial_id"]
    best = {(str(m), str(s)): list(ids.head(top)) for (m, s), ids in cells}
    return dict(sorted(best.items(), key=lambda cell: -seconds_per_epoch[cell[0][1]]))
