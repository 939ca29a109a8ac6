"""Studies: one Optuna study per cell, as a fold over the log."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import file_stem
from kdtune.log.distributions import parse_distributions
from kdtune.log.events import (
    Cell,
    EpochFinished,
    Event,
    TrialEnded,
    TrialProposed,
    TrialState,
    WarmStart,
)
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.search.samplers import (
    AUTO_SAMPLER,
    GRID_SAMPLER,
    STATELESS_SAMPLERS,
    choose_sampler,
    make_sampler,
    require_finite,
)
from kdtune.tuning.search.space import SearchSpace, serialize_distributions

SAMPLER_ATTEMPTS, RANDOM_ATTEMPTS = 3, 100
"""Proposals of the sampler, then at random, until one is a point that was not tried before."""


@dataclass(frozen=True)
class Proposal:
    """A point of a search space to be tried.

    Attributes:
        origin: ``start`` for a known good point, else ``sampler``.
        params: the searched values.
        distributions: their distributions, as Optuna serializes them.
        settings: all settings that the space decides.
    """

    origin: Literal["start", "sampler"]
    params: dict[str, Any]
    distributions: dict[str, dict[str, Any]]
    settings: dict[str, Any]


class CellStudies:
    """One Optuna study per cell.

    A proposal depends only on the cell's history: its sampler is seeded from the sweep's seed, the
    cell and the trial's number, or has made all earlier proposals of the cell.

    A sampler gets one value per trial, an estimate of its accuracy after all epochs: its best
    validation accuracy and, if it was stopped, the median of what the cell's finished trials
    gained from that epoch on. So samplers that ignore pruned trials (gp, cmaes) learn from all. A
    trial that diverged counts as the worst so far; one that crashed does not count.

    Args:
        sweep: gives cells, sampler and seed.
        spaces: the search space of each method.

    Raises:
        UserError: there is no such sampler, or it does not work with a space.
    """

    def __init__(self, sweep: SweepConfig, spaces: Mapping[str, SearchSpace]):
        self.sweep, self.spaces = sweep, spaces
        cells = sweep.cells()
        self.by_cell = {
            cell: optuna.create_study(direction="maximize", study_name="-".join(cell))
            for cell in cells
        }
        self.trial_counts = dict.fromkeys(cells, 0)
        """Trials proposed so far, by cell."""
        self._start_points = {cell: list(spaces[cell[0]].start_points) for cell in cells}
        self._tried_points: dict[Cell, set[str]] = {cell: set() for cell in cells}
        self._active_trials: dict[str, tuple[optuna.Trial, list[float]]] = {}
        self._finished_curves: dict[Cell, list[Sequence[float]]] = {cell: [] for cell in cells}
        self._stateful_samplers: dict[Cell, BaseSampler] = {}
        if sweep.sampler == GRID_SAMPLER:
            for method in sweep.methods:
                require_finite(spaces[method])
        elif sweep.sampler not in (AUTO_SAMPLER, *STATELESS_SAMPLERS):
            self._stateful_samplers = {
                cell: make_sampler(sweep.sampler, derive_seed(sweep.seed, *cell)) for cell in cells
            }

    def propose(self, cell: Cell, trial_id: str) -> Proposal | None:
        """Propose the next trial of a cell.

        Args:
            cell: the cell.
            trial_id: the trial's id.

        Returns:
            The proposal; None if the space has no further point.
        """
        space = self.spaces[cell[0]]
        point = self._take_start_point(cell)
        if (proposed := self._ask_new_trial(cell, point, space.ask_study)) is None:
            return None
        trial, settings = proposed
        self._register_trial(cell, trial_id, trial)
        origin: Literal["start", "sampler"] = "sampler" if point is None else "start"
        return Proposal(origin, trial.params, serialize_distributions(trial), settings)

    def _ask_new_trial(
        self,
        cell: Cell,
        point: dict[str, Any] | None,
        ask_study: Callable[[optuna.Study], tuple[optuna.Trial, dict[str, Any]]],
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """Ask for trials until one has a point that was not tried before."""
        study = self.by_cell[cell]
        if point is not None:
            study.enqueue_trial(point)
        may_repeat = self.sweep.allow_duplicates and self.sweep.sampler != GRID_SAMPLER
        for attempt in range(SAMPLER_ATTEMPTS + RANDOM_ATTEMPTS):
            study.sampler = self._make_sampler(cell, attempt)
            trial, settings = ask_study(study)
            if may_repeat or _point_key(trial.params) not in self._tried_points[cell]:
                return trial, settings
            study.tell(trial, state=OptunaState.FAIL)
        return None

    def _make_sampler(self, cell: Cell, attempt: int) -> BaseSampler:
        if cell in self._stateful_samplers and attempt < SAMPLER_ATTEMPTS:
            return self._stateful_samplers[cell]
        sampler_name = self.sweep.sampler
        if attempt >= SAMPLER_ATTEMPTS:
            sampler_name = "random"
        elif sampler_name == AUTO_SAMPLER:
            sampler_name = choose_sampler(self.spaces[cell[0]], len(self._tried_points[cell]))
        seed_parts = self.trial_counts[cell], *([attempt] if attempt else [])
        return make_sampler(sampler_name, derive_seed(self.sweep.seed, *cell, *seed_parts))

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

    def fold(self, event: Event) -> None:
        """Add an event of the log; this does not need the search spaces."""
        match event:
            case TrialProposed() if event.trial_id not in self._active_trials:
                self._replay_proposal(event)
            case EpochFinished():
                best_accuracies = self._active_trials[event.trial_id][1]
                best_accuracies.append(event.best_validation_accuracy)
            case TrialEnded():
                trial, best_accuracies = self._active_trials.pop(event.trial_id)
                value = self._objective_value(event.cell, event.state, best_accuracies)
                state = OptunaState.FAIL if value is None else OptunaState.COMPLETE
                self.by_cell[event.cell].tell(trial, value, state)
            case WarmStart():
                self._add_observations(event)

    def _replay_proposal(self, event: TrialProposed) -> None:
        """Bring a study to its state after it proposed a trial of the log."""
        cell, params = event.cell, event.params
        distributions = parse_distributions(event.distributions)
        expected_id = f"{file_stem(*cell)}-{event.number:03d}"
        if event.trial_id != expected_id:
            raise ValueError(f"the trial {event.trial_id} should be {expected_id}")
        study = self.by_cell[cell]
        point = self._take_start_point(cell)
        while point is not None and not point.items() <= params.items():
            point = self._take_start_point(cell)
        proposed = None
        if cell in self._stateful_samplers:  # the sampler must have drawn this point, too
            proposed = self._ask_new_trial(
                cell, point, lambda study: (study.ask(distributions), {})
            )
            if proposed is not None and proposed[0].params != params:
                # Another version of Optuna proposed something else: the log is right.
                study.tell(proposed[0], state=OptunaState.FAIL)
                proposed = None
        if proposed is None:
            study.enqueue_trial(params)
            proposed = study.ask(distributions), {}
        self._register_trial(cell, event.trial_id, proposed[0])

    def _add_observations(self, event: WarmStart) -> None:
        cell = event.cell
        self._start_points[cell] += event.start
        for observation in event.observations:
            self._tried_points[cell].add(_point_key(observation.params))
            accuracies = observation.best_validation_accuracies
            self.by_cell[cell].add_trial(
                optuna.trial.create_trial(
                    value=self._objective_value(cell, observation.state, accuracies),
                    params=observation.params,
                    distributions=parse_distributions(observation.distributions),
                    user_attrs={"trial_id": observation.trial_id},
                )
            )

    def _objective_value(
        self, cell: Cell, state: TrialState, best_accuracies: Sequence[float]
    ) -> float | None:
        """Return the value of a trial, from its best accuracy after each epoch; None for none."""
        if state is TrialState.DIVERGED:
            previous_trials = self.by_cell[cell].get_trials(deepcopy=False)
            return min(
                (trial.value for trial in previous_trials if trial.value is not None), default=0.0
            )
        if state is TrialState.CRASHED or not best_accuracies:
            return None
        if state is TrialState.FINISHED:
            self._finished_curves[cell].append(best_accuracies)
            return best_accuracies[-1]
        curves, last = self._finished_curves[cell], len(best_accuracies) - 1
        return best_accuracies[-1] + median([curve[-1] - curve[last] for curve in curves] or [0.0])


def _point_key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
