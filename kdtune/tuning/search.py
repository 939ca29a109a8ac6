"""What is tried next: one Optuna study a cell, and free slots to the cell that has had least.

A study is a fold over the log: built from it on open, and kept by it while the sweep runs.
"""

from collections.abc import Callable
from typing import Any

import optuna
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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spaces, self.seed = spaces, seed
        self.by_cell = {
            cell: optuna.create_study(direction="maximize", study_name="-".join(cell))
            for cell in cells
        }
        self._open: dict[str, tuple[optuna.Study, optuna.Trial]] = {}

    def started(self, cell: Cell) -> int:
        """Trials proposed for a cell so far."""
        return len(self.by_cell[cell].get_trials(deepcopy=False))

    def ask(
        self, cell: Cell, trial_id: str, parameters: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Propose the cell's next trial, or repeat a recorded proposal.

        Args:
            cell: whose trial it is.
            trial_id: its name.
            parameters: the searched values that the log has, or None for a new proposal.

        Returns:
            The searched values, all settings that the space decides, and where they come from:
            ``start`` or ``sampler``.
        """
        study, space, number = self.by_cell[cell], self.spaces[cell[0]], self.started(cell)
        study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, *cell, number))
        from_start = number < len(space.start)
        point = space.start[number] if parameters is None and from_start else parameters
        if point is not None:
            study.enqueue_trial(point, user_attrs={"trial_id": trial_id})
        trial, settings = space.ask(study)
        trial.set_user_attr("trial_id", trial_id)
        self._open[trial_id] = (study, trial)
        return trial.params, settings, "start" if from_start else "sampler"

    def fold(self, event: Event) -> None:
        """Take an event of the log into the studies."""
        trial_id = event.get("trial_id", "")
        if event["event"] == "asked" and trial_id not in self._open:
            self.ask((event["method"], event["model"]), trial_id, event["parameters"])
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
        cell = min(self.studies.by_cell, key=self.studies.started)
        number = self.studies.started(cell)
        if number >= self.trials:
            return Searcher.FINISHED
        own_id = f"{cell[0]}-{cell[1]}-{number:03d}"
        parameters, settings, origin = self.studies.ask(cell, own_id)
        config = self.configure(cell, number, settings)
        self.append(
            {
                "event": "asked",
                "trial_id": own_id,
                "method": cell[0],
                "model": cell[1],
                "number": number,
                "origin": origin,
                "parameters": parameters,
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
