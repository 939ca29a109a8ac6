"""Ray's side of the studies: a trial for the cell whose turn it is, until the budget is spent."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from kdtune.config import TrainConfig
from kdtune.results import Cell, Event, cell_of
from kdtune.tuning.decisions import Decisions
from kdtune.tuning.under_way import Trial


class Search(Searcher):
    """Proposes trials; those that were begun and lost their process come first.

    Args:
        decisions: of the sweep.
        configure: makes the complete settings of a trial of a cell, from its number and what its
            space decided.
        append: writes an event to the log and folds it.
    """

    def __init__(
        self,
        decisions: Decisions,
        configure: Callable[[Cell, int, dict[str, Any]], TrainConfig],
        append: Callable[[Event], None],
    ):
        super().__init__()
        self.sweep = decisions.sweep
        self.studies, self.budget = decisions.studies, decisions.budget
        self.stopping, self.under_way = decisions.stopping, decisions.under_way
        self.interrupts = decisions.interrupts
        self.configure, self.append = configure, append

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Hand out a trial; `trial_id` is Ray's."""
        if self.interrupts.requested:
            return Searcher.FINISHED
        trial = self._again() or self._new() or self._again(alone=True)
        if trial is not None:
            config = {**trial.asked["config"], **self._places(trial)}
            return {"trial_id": trial.asked["trial_id"], "config": config, "alone": trial.alone}
        # Ray does not ask again once it was told that all is finished, but a trial that is under
        # way may lose its process.
        return None if self.under_way.trials else Searcher.FINISHED

    def _places(self, trial: Trial) -> dict[str, Any]:
        """Where data and teacher lie now: they may have been moved since it was asked for."""
        sweep = self.sweep
        places = {"data_dir": sweep.data, "cache_gb": sweep.cache_gb}
        taught = trial.asked["config"]["teacher_model"] is not None
        return {**places, "teacher_model": sweep.teacher} if taught else places

    def _again(self, alone: bool = False) -> Trial | None:
        """A trial that was begun before; those for which nothing is left end here."""
        while (trial := self.under_way.take(alone)) is not None:
            end = self.stopping.verdict(trial.last) if trial.last else None
            if end is None and (reason := self.budget.spent(cell_of(trial.asked))) is not None:
                end = "stopped", reason
            if end is None:
                return trial
            self.append(trial.ended(*end))
        return None

    def _new(self) -> Trial | None:
        """A trial for the cell whose turn it is."""
        while (cell := self.budget.turn()) is not None:
            identity = {"method": cell[0], "model": cell[1]}
            number = self.studies.started[cell]
            own_id = f"{cell[0]}-{cell[1]}-{number:03d}"
            proposal = self.studies.ask(cell, own_id)
            if proposal is None:
                reason = f"its space has no point that was not tried; {number} trials are all"
                self.append({"event": "exhausted", **identity, "reason": reason})
                continue
            config = self.configure(cell, number, proposal.pop("settings")).model_dump()
            self.append(
                {"event": "asked", "trial_id": own_id, **identity, **proposal, "config": config}
            )
            return self.under_way.take()
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which sees every result, writes them to the log."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler writes the ends of trials to the log."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the searcher are never read back, so they are kept empty."""
        return {}
