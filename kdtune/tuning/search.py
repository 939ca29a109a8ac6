"""What is tried next: one Optuna study a cell, and free slots to the cell that has had least.

A study is a fold over the log: built from it on open, and kept by it while the sweep runs.
"""

import json
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState
from ray.tune.search import Searcher

from kdtune.results import Event
from kdtune.seeds import derive_seed
from kdtune.tuning.space import Space

Cell = tuple[str, str]
"""(method, model)."""

OPTUNA_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "crashed": TrialState.FAIL,
}


class Studies:
    """One Optuna study a cell.

    Every suggestion has a sampler of its own, seeded from (sweep seed, cell, trial number), so it
    depends on the cell's history alone. The value of a trial, and each of its intermediate values,
    is its best validation accuracy so far.

    Args:
        cells: the sweep's cells.
        spaces: the search space of each method.
        seed: the sweep's seed.
    """

    def __init__(self, cells: list[Cell], spaces: dict[str, Space], seed: int):
        self.spaces, self.seed = spaces, seed
        self.by_cell = {
            cell: optuna.create_study(direction="maximize", study_name="-".join(cell))
            for cell in cells
        }
        self.started = dict.fromkeys(cells, 0)
        """Trials asked for, by cell."""
        self._open: dict[str, tuple[optuna.Study, optuna.Trial]] = {}

    def ask(self, cell: Cell, trial_id: str) -> dict[str, Any]:
        """Propose the cell's next trial.

        Args:
            cell: whose trial it is.
            trial_id: its name.

        Returns:
            What the log keeps of a proposal: ``number`` in the cell, from 0; ``origin``
            (``start`` or ``sampler``); ``parameters``, the searched values; ``distributions`` of
            these, as Optuna writes them; and ``settings``, all that the space decides.
        """
        study, space, number = self.by_cell[cell], self.spaces[cell[0]], self.started[cell]
        study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, *cell, number))
        from_start = number < len(space.start)
        if from_start:
            study.enqueue_trial(space.start[number])
        trial, settings = space.ask(study)
        self._enter(cell, trial_id, trial)
        return {
            "number": number,
            "origin": "start" if from_start else "sampler",
            "parameters": trial.params,
            "distributions": {
                name: json.loads(distribution_to_json(distribution))
                for name, distribution in trial.distributions.items()
            },
            "settings": settings,
        }

    def _enter(self, cell: Cell, trial_id: str, trial: optuna.Trial) -> None:
        trial.set_user_attr("trial_id", trial_id)
        self._open[trial_id] = (self.by_cell[cell], trial)
        self.started[cell] += 1

    def fold(self, event: Event) -> None:
        """Take an event of the log into the studies; the search spaces are not needed for it."""
        trial_id = event.get("trial_id", "")
        if event["event"] == "asked" and trial_id not in self._open:
            cell = (event["method"], event["model"])
            study = self.by_cell[cell]
            study.enqueue_trial(event["parameters"])
            distributions = {
                name: json_to_distribution(json.dumps(distribution))
                for name, distribution in event["distributions"].items()
            }
            self._enter(cell, trial_id, study.ask(distributions))
        elif event["event"] == "epoch":
            self._open[trial_id][1].report(event["best_validation_accuracy"], event["epoch"])
        elif event["event"] == "ended":
            study, trial = self._open.pop(trial_id)
            state = OPTUNA_STATES[event["state"]]
            value = event["best_validation_accuracy"] if state == TrialState.COMPLETE else None
            study.tell(trial, value, state)


class Search(Searcher):
    """Ray's side of the studies: proposes trials until every cell has its number.

    Args:
        studies: where proposals come from.
        trials: the number of trials of each cell.
        configure: makes the complete settings of a trial of a cell, from its number and what its
            space decided.
        append: writes an event to the log.
    """

    def __init__(
        self,
        studies: Studies,
        trials: int,
        configure: Callable[[Cell, int, dict[str, Any]], dict[str, Any]],
        append: Callable[[Event], None],
    ):
        super().__init__()
        self.studies, self.trials, self.configure, self.append = (
            studies,
            trials,
            configure,
            append,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Propose a trial for the cell that has started the fewest; `trial_id` is Ray's."""
        started = self.studies.started
        cell = min(started, key=lambda cell: started[cell])
        if started[cell] >= self.trials:
            return Searcher.FINISHED
        own_id = f"{cell[0]}-{cell[1]}-{started[cell]:03d}"
        proposal = self.studies.ask(cell, own_id)
        config = self.configure(cell, proposal["number"], proposal.pop("settings"))
        self.append(
            {
                "event": "asked",
                "trial_id": own_id,
                "method": cell[0],
                "model": cell[1],
                **proposal,
                "config": config,
            }
        )
        return {"trial_id": own_id, "config": config}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which sees every result, writes them to the log."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler writes the ends of trials to the log."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of the searcher are never read back, so they are kept empty."""
        return {}
