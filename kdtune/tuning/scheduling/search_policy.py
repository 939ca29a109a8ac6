"""The policy of a search: a proposal for the next cell, until the budget is spent."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdtune.config.strengths import strengths_to_weights
from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Cell, CellModelled, Event, SpaceExhausted, TrialProposed
from kdtune.log.settings_scores import SettingsScores
from kdtune.runtime.console import say
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.search.budget import Budget
from kdtune.tuning.search.space import ConfigureTrial, MeasureScales, SearchSpace
from kdtune.tuning.search.studies import CellStudies, make_trial_id


@dataclass
class SearchPolicy(SchedulingPolicy):
    """Studies, early stopping and budget of a search."""

    sweep: SweepConfig
    spaces: Mapping[str, SearchSpace]
    configure_trial: ConfigureTrial
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = say
    measure_scales: MeasureScales | None = None  # without it, strengths are the weights

    def __post_init__(self) -> None:
        super().__post_init__()
        self.studies = CellStudies(self.sweep, self.spaces)
        self.budget = Budget(self.sweep, self.clock)
        self.scores = SettingsScores()

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        return [*super().folds, self.studies.fold, self.budget.fold, self.scores.fold]

    def next_cells(self) -> list[Cell]:
        return self.budget.next_cells()

    def propose(self, cell: Cell) -> TrialProposed | SpaceExhausted:
        method, model = cell
        number = self.studies.trial_counts[cell]
        trial_id = make_trial_id(cell, number)
        if (proposal := self.studies.propose(cell, trial_id)) is None:
            reason = f"its space has no point that was not tried; {number} trials are all"
            return SpaceExhausted(method=method, model=model, reason=reason)
        measure = self.measure_scales
        loss_scales = measure(cell, proposal.settings) if measure is not None else {}
        settings = strengths_to_weights(proposal.settings, loss_scales)
        return TrialProposed(
            trial_id=trial_id,
            method=method,
            model=model,
            number=number,
            origin=proposal.origin,
            candidate=proposal.candidate,
            params=proposal.params,
            distributions=proposal.distributions,
            config=self.configure_trial(cell, number, settings).model_dump(),
            loss_scales=loss_scales,
        )

    def model_cells(self) -> list[CellModelled]:
        """Return the models of the cells that have one which the log lacks."""
        cells = (cell for cell in self.sweep.cells() if cell not in self.scores.models)
        return [model for cell in cells if (model := self.studies.model_cell(cell))]

    def exhausted_reason(self, cell: Cell) -> str | None:
        return self.budget.exhausted_reason(cell)
