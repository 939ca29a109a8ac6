"""Studies: one Optuna study per cell, as a fold over the log."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import file_stem
from kdtune.log import events
from kdtune.log.distributions import parse_distributions, quiet_optuna
from kdtune.log.events import Cell, TrialState
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.search import samplers
from kdtune.tuning.search.space import SearchSpace, serialize_distributions

_SAMPLER_ATTEMPTS, _RANDOM_ATTEMPTS = 3, 100
"""Proposals of the sampler, then at random, until one is a point that was not tried before."""

_Asked = tuple[optuna.Trial, dict[str, Any]]  # and all settings that its space decides

_point_key = partial(json.dumps, sort_keys=True)


@dataclass(frozen=True)
class Proposal:
    """A point to be tried: searched values with their distributions, and all settings of it."""

    origin: Literal["start", "sampler"]
    params: dict[str, Any]
    distributions: dict[str, dict[str, Any]]
    settings: dict[str, Any]


@dataclass
class CellStudies:
    """One Optuna study per cell.

    A proposal depends only on the cell's history: its sampler is seeded from the sweep's seed, the
    cell and the trial's number, or has made all earlier proposals of the cell.

    A sampler gets one value per trial, an estimate of its accuracy after all epochs: its best
    validation accuracy and, if it was stopped, the median of what the cell's finished trials
    gained from that epoch on. So samplers that ignore pruned trials (gp, cmaes) learn from all. A
    trial that diverged counts as the worst so far; one that crashed does not count.
    """

    sweep: SweepConfig
    spaces: Mapping[str, SearchSpace]

    def __post_init__(self) -> None:
        cells, spaces = self.sweep.cells(), self.spaces
        new_study = partial(optuna.create_study, direction="maximize")
        with quiet_optuna():
            self.by_cell = {cell: new_study(study_name="-".join(cell)) for cell in cells}
        self.trial_counts = dict.fromkeys(cells, 0)  # proposed trials
        self._start_points = {cell: list(spaces[cell[0]].start_points) for cell in cells}
        self._tried_points: dict[Cell, set[str]] = defaultdict(set)
        self._active_trials: dict[str, tuple[optuna.Trial, list[float]]] = {}
        self._finished_curves: dict[Cell, list[Sequence[float]]] = defaultdict(list)
        self._stateful_samplers: dict[Cell, BaseSampler] = {}
        name, seed = self.sweep.sampler, self.sweep.seed
        if name == samplers.GRID_SAMPLER:
            for method in self.sweep.methods:
                samplers.require_finite(spaces[method])
        elif name not in (samplers.AUTO_SAMPLER, *samplers.STATELESS_SAMPLERS):
            for cell in cells:
                sampler = samplers.make_sampler(name, derive_seed(seed, *cell))
                self._stateful_samplers[cell] = sampler

    def propose(self, cell: Cell, trial_id: str) -> Proposal | None:
        """Propose the next trial of a cell; return None if the space has no further point.

        Args:
            cell: the cell.
            trial_id: the trial's id.
        """
        point = self._take_start_point(cell)
        if (asked := self._ask_new_trial(cell, point, self.spaces[cell[0]].ask_study)) is None:
            return None
        trial, settings = asked
        self._register_trial(cell, trial_id, trial)
        origin: Literal["start", "sampler"] = "sampler" if point is None else "start"
        return Proposal(origin, trial.params, serialize_distributions(trial), settings)

    def _ask_new_trial(
        self, cell: Cell, point: dict[str, Any] | None, ask: Callable[[optuna.Study], _Asked]
    ) -> _Asked | None:
        study = self.by_cell[cell]
        if point is not None:
            study.enqueue_trial(point)
        may_repeat = self.sweep.allow_duplicates and self.sweep.sampler != samplers.GRID_SAMPLER
        for attempt in range(_SAMPLER_ATTEMPTS + _RANDOM_ATTEMPTS):
            study.sampler = self._make_sampler(cell, attempt)
            trial, settings = ask(study)
            if may_repeat or _point_key(trial.params) not in self._tried_points[cell]:
                return trial, settings
            study.tell(trial, state=OptunaState.FAIL)
        return None

    def _make_sampler(self, cell: Cell, attempt: int) -> BaseSampler:
        name = self.sweep.sampler
        if attempt >= _SAMPLER_ATTEMPTS:
            name = "random"
        elif cell in self._stateful_samplers:
            return self._stateful_samplers[cell]
        elif name == samplers.AUTO_SAMPLER:
            space, num_trials = self.spaces[cell[0]], len(self._tried_points[cell])
            name = samplers.choose_sampler(space, num_trials)
        seed_parts = self.trial_counts[cell], *([attempt] if attempt else [])
        return samplers.make_sampler(name, derive_seed(self.sweep.seed, *cell, *seed_parts))

    def _take_start_point(self, cell: Cell) -> dict[str, Any] | None:
        points = self._start_points[cell]
        while points:
            point = points.pop(0)
            if self.sweep.allow_duplicates or _point_key(point) not in self._tried_points[cell]:
                return point
        return None

    def _register_trial(self, cell: Cell, trial_id: str, trial: optuna.Trial) -> None:
        trial.set_user_attr("trial_id", trial_id)
        self._active_trials[trial_id] = trial, []
        self._tried_points[cell].add(_point_key(trial.params))
        self.trial_counts[cell] += 1

    def fold(self, event: events.Event) -> None:
        """Add an event of the log; this does not need the search spaces."""
        match event:
            case events.TrialProposed() if event.trial_id not in self._active_trials:
                self._replay_proposal(event)
            case events.EpochFinished():
                self._active_trials[event.trial_id][1].append(event.best_validation_accuracy)
            case events.TrialEnded():
                trial, best_accuracies = self._active_trials.pop(event.trial_id)
                value = self._objective_value(event.cell, event.state, best_accuracies)
                state = OptunaState.FAIL if value is None else OptunaState.COMPLETE
                self.by_cell[event.cell].tell(trial, value, state)
            case events.WarmStart():
                self._add_observations(event)

    def _replay_proposal(self, event: events.TrialProposed) -> None:
        """Bring a study to its state after it proposed a trial of the log."""
        cell, params = event.cell, event.params
        distributions = parse_distributions(event.distributions)
        expected_id = f"{file_stem(*cell)}-{event.number:03d}"
        if event.trial_id != expected_id:
            raise ValueError(f"the trial {event.trial_id} should be {expected_id}")
        study, trial = self.by_cell[cell], None
        while (point := self._take_start_point(cell)) and not point.items() <= params.items():
            pass
        if cell in self._stateful_samplers:  # the sampler must have drawn this point, too
            asked = self._ask_new_trial(cell, point, lambda study: (study.ask(distributions), {}))
            if asked is not None and asked[0].params == params:
                trial = asked[0]
            elif asked is not None:  # another version of Optuna made the log, which is right
                study.tell(asked[0], state=OptunaState.FAIL)
        if trial is None:
            study.enqueue_trial(params)
            trial = study.ask(distributions)
        self._register_trial(cell, event.trial_id, trial)

    def _add_observations(self, event: events.WarmStart) -> None:
        self._start_points[event.cell] += event.start
        for seen in event.observations:
            self._tried_points[event.cell].add(_point_key(seen.params))
            accuracies = seen.best_validation_accuracies
            trial = optuna.trial.create_trial(
                value=self._objective_value(event.cell, seen.state, accuracies),
                params=seen.params,
                distributions=parse_distributions(seen.distributions),
                user_attrs={"trial_id": seen.trial_id},
            )
            self.by_cell[event.cell].add_trial(trial)

    def _objective_value(
        self, cell: Cell, state: TrialState, best_accuracies: Sequence[float]
    ) -> float | None:
        """Return the value of a trial, from its best accuracy after each epoch; None for none."""
        if state is TrialState.DIVERGED:
            previous = self.by_cell[cell].get_trials(deepcopy=False)
            return min((t.value for t in previous if t.value is not None), default=0.0)
        if state is TrialState.CRASHED or not best_accuracies:
            return None
        if state is TrialState.FINISHED:
            self._finished_curves[cell].append(best_accuracies)
            return best_accuracies[-1]
        curves, last = self._finished_curves[cell], len(best_accuracies) - 1
        return best_accuracies[-1] + median([curve[-1] - curve[last] for curve in curves] or [0.0])
