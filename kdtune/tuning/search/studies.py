"""What is tried next: one Optuna study a cell, a fold over the log."""

import json
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import file_stem
from kdtune.log.distributions import read_distributions
from kdtune.log.events import Cell, Event, cell_of
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.search.samplers import (
    AUTO,
    GRID,
    STATELESS,
    choose_sampler,
    grid_points,
    make_sampler,
)
from kdtune.tuning.search.space import Space, distributions_of

ATTEMPTS, RANDOM_ATTEMPTS = 3, 100
"""Proposals of the sampler, and then random ones, among which a point must be that was not tried
before."""


class Studies:
    """One Optuna study a cell.

    A proposal depends on the cell's history alone: what draws it is seeded from (sweep seed, cell,
    trial number), or has drawn everything before, too.

    A sampler is told one number of each trial, what it would have reached at the end: its best
    validation accuracy and, if it was stopped, the median of what the cell's whole trials gained
    from that epoch on. So it compares like with like, and samplers that take no notice of pruned
    trials (gp, cmaes) learn from all. A trial that diverged counts as the worst so far; one that
    crashed says nothing of its settings.

    Args:
        sweep: gives cells, sampler and seed.
        spaces: the search space of each method.

    Raises:
        UserError: there is no such sampler, or it does not go with a space.
    """

    def __init__(self, sweep: SweepConfig, spaces: Mapping[str, Space]):
        self.sweep, self.spaces = sweep, spaces
        cells = sweep.cells()
        self.by_cell = {
            cell: optuna.create_study(direction="maximize", study_name="-".join(cell))
            for cell in cells
        }
        self.started = dict.fromkeys(cells, 0)
        """Trials asked for, by cell."""
        self._start = {cell: list(spaces[cell[0]].start) for cell in cells}
        self._grid: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
        self._tried: dict[Cell, set[str]] = {cell: set() for cell in cells}
        self._open: dict[str, tuple[optuna.Trial, list[float]]] = {}
        self._whole: dict[Cell, list[list[float]]] = {cell: [] for cell in cells}
        seeds = {cell: derive_seed(sweep.seed, *cell) for cell in cells}
        self._stateful: dict[Cell, BaseSampler] = {}
        if sweep.sampler == GRID:
            self._grid = {
                cell: grid_points(spaces[cell[0]], sweep.trials, seed)
                for cell, seed in seeds.items()
            }
        elif sweep.sampler not in (AUTO, *STATELESS):
            self._stateful = {c: make_sampler(sweep.sampler, seed) for c, seed in seeds.items()}

    def ask(self, cell: Cell, trial_id: str) -> dict[str, Any] | None:
        """Propose the cell's next trial.

        Args:
            cell: whose trial it is.
            trial_id: its name.

        Returns:
            What the log keeps of a proposal: ``number`` in the cell, from 0; ``origin``
            (``start`` or ``sampler``); ``parameters``, the searched values; ``distributions`` of
            these, as Optuna writes them; and ``settings``, all that the space decides. None if the
            space has no further point.
        """
        space, number = self.spaces[cell[0]], self.started[cell]
        point, origin = self._next_point(cell)
        if (proposed := self._new_trial(cell, point, space.ask)) is None:
            return None
        trial, settings = proposed
        self._enter(cell, trial_id, trial)
        return {
            "number": number,
            "origin": origin,
            "parameters": trial.params,
            "distributions": distributions_of(trial),
            "settings": settings,
        }

    def _new_trial(
        self,
        cell: Cell,
        point: dict[str, Any] | None,
        ask: Callable[[optuna.Study], tuple[optuna.Trial, dict[str, Any]]],
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """Ask, as `Space.ask` does, until there is a trial that was not tried before."""
        study = self.by_cell[cell]
        if point is not None:
            study.enqueue_trial(point)
        elif self.sweep.sampler == GRID:
            return None
        for attempt in range(ATTEMPTS + RANDOM_ATTEMPTS):
            study.sampler = self._sampler(cell, attempt)
            trial, settings = ask(study)
            if self.sweep.repeats or _key(trial.params) not in self._tried[cell]:
                return trial, settings
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _sampler(self, cell: Cell, attempt: int) -> BaseSampler:
        if cell in self._stateful and attempt < ATTEMPTS:
            return self._stateful[cell]
        name = self.sweep.sampler
        if name == GRID or attempt >= ATTEMPTS:
            name = "random"
        elif name == AUTO:
            name = choose_sampler(self.spaces[cell[0]], len(self._tried[cell]))
        names = self.started[cell], *([attempt] if attempt else [])
        return make_sampler(name, derive_seed(self.sweep.seed, *cell, *names))

    def _next_point(self, cell: Cell) -> tuple[dict[str, Any] | None, str]:
        """The next point that is known beforehand, or None; and the origin of the proposal."""
        for origin, points in (("start", self._start[cell]), ("sampler", self._grid[cell])):
            while points:
                point = points.pop(0)
                if self.sweep.repeats or _key(point) not in self._tried[cell]:
                    return point, origin
        return None, "sampler"

    def _enter(self, cell: Cell, trial_id: str, trial: optuna.Trial) -> None:
        trial.set_user_attr("trial_id", trial_id)
        self._open[trial_id] = trial, []
        self._tried[cell].add(_key(trial.params))
        self.started[cell] += 1

    def fold(self, event: Event) -> None:
        """Take an event of the log into the studies; the search spaces are not needed for it."""
        trial_id = event.get("trial_id", "")
        if event["event"] == "asked" and trial_id not in self._open:
            self._ask_again(event)
        elif event["event"] == "epoch":
            self._open[trial_id][1].append(event["best_validation_accuracy"])
        elif event["event"] == "ended":
            cell, (trial, bests) = cell_of(event), self._open.pop(trial_id)
            value = self._value(cell, event["state"], bests)
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self.by_cell[cell].tell(trial, value, state)
        elif event["event"] == "warm_start":
            self._learn(event)

    def _ask_again(self, event: Event) -> None:
        """Bring a study to where it was when it proposed a trial of the log."""
        cell, parameters = cell_of(event), event["parameters"]
        distributions = read_distributions(event["distributions"])
        expected = f"{file_stem(*cell)}-{event['number']:03d}"
        if event["trial_id"] != expected:
            raise ValueError(f"the trial {event['trial_id']} should be {expected}")
        study = self.by_cell[cell]
        point = None
        if self.sweep.sampler == GRID:  # of another number of trials the grid may be another
            for points in (self._start[cell], self._grid[cell]):
                points[:] = [p for p in points if not p.items() <= parameters.items()]
        else:
            point, _ = self._next_point(cell)
            while point is not None and not point.items() <= parameters.items():
                point, _ = self._next_point(cell)
        proposed = None
        if cell in self._stateful:  # what draws the proposals must have drawn this one, too
            proposed = self._new_trial(cell, point, lambda study: (study.ask(distributions), {}))
            if proposed is not None and proposed[0].params != parameters:
                # Another Optuna's: the log is right.
                study.tell(proposed[0], state=TrialState.FAIL)
                proposed = None
        if proposed is None:
            study.enqueue_trial(parameters)
            proposed = study.ask(distributions), {}
        self._enter(cell, event["trial_id"], proposed[0])

    def _learn(self, event: Event) -> None:
        """Take what an earlier sweep has found."""
        cell = cell_of(event)
        self._start[cell] += event["start"]
        for seen in event["observations"]:
            self._tried[cell].add(_key(seen["parameters"]))
            self.by_cell[cell].add_trial(
                optuna.trial.create_trial(
                    value=self._value(cell, seen["state"], seen["best_validation_accuracies"]),
                    params=seen["parameters"],
                    distributions=read_distributions(seen["distributions"]),
                    user_attrs={"trial_id": seen["trial_id"]},
                )
            )

    def _value(self, cell: Cell, state: str, bests: list[float]) -> float | None:
        """What a sampler is told of a trial, see above; `bests` are those after each epoch."""
        if state == "diverged":
            told = self.by_cell[cell].get_trials(deepcopy=False)
            return min((trial.value for trial in told if trial.value is not None), default=0.0)
        if state == "crashed" or not bests:
            return None
        if state == "finished":
            self._whole[cell].append(bests)
            return bests[-1]
        gains = [whole[-1] - whole[len(bests) - 1] for whole in self._whole[cell]]
        return bests[-1] + (median(gains) if gains else 0.0)


def _key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)
