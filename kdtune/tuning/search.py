"""Ray's side of the studies: a trial for the cell whose turn it is, until the budget is spent."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from kdtune.config import TrainConfig
from kdtune.results import Cell, Event
from kdtune.tuning.budget import Budget
from kdtune.tuning.studies import Studies


class Search(Searcher):
    """Proposes trials.

    Args:
        studies: where proposals come from.
        budget: says whose turn it is.
        configure: makes the complete settings of a trial of a cell, from its number and what its
            space decided.
        append: writes an event to the log and folds it.
    """

    def __init__(
        self,
        studies: Studies,
        budget: Budget,
        configure: Callable[[Cell, int, dict[str, Any]], TrainConfig],
        append: Callable[[Event], None],
    ):
        super().__init__()
        self.studies, self.budget, self.configure, self.append = (
            studies,
            budget,
            configure,
            append,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Propose a trial for the cell whose turn it is; `trial_id` is Ray's."""
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
            return {"trial_id": own_id, "config": config}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which sees every result, writes them to the log."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler writes the ends of trials to the log."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the searcher are never read back, so they are kept empty."""
        return {}
