"""Studies: one Optuna study per cell, as a fold over the log."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from statistics import median
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState

from kdtune.config.names import file_stem
from kdtune.config.sweep import SweepConfig
from kdtune.log import events
from kdtune.log.distributions import parse_distributions, quiet_optuna
from kdtune.log.events import Cell, TrialState
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.search import samplers
from kdtune.tuning.search.cell_model import CellModel
from kdtune.tuning.search.cell_models import CellModels
from kdtune.tuning.search.luck import LEFT_TO_GAIN_QUANTILE, draw_left_to_gain, search_luck
from kdtune.tuning.search.space import SearchSpace, serialize_distributions

_SAMPLER_ATTEMPTS, _RANDOM_ATTEMPTS = 3, 100
"""Proposals of the sampler, then at random, until one is a point that was not tried before."""

TRIALS_BEFORE_REPEATS = 8  # of a cell

NUM_CANDIDATES = 3
"""The best settings of a cell, of which there are repeats."""

_Asked = tuple[optuna.Trial, dict[str, Any]]  # and all settings that its space decides


def make_trial_id(cell: Cell, number: int) -> str:
    """Return the id of a trial, which is also a name of files.

    Args:
        cell: of the trial.
        number: of the trial in its cell, from 0.
    """
    return f"{file_stem(*cell)}-{number:03d}"


def _point_key(params: Mapping[str, Any]) -> str:
    """Return a key that equal points have, whatever their rounding errors."""
    rounded = {k: float(f"{v:.12g}") if isinstance(v, float) else v for k, v in params.items()}
    return json.dumps(rounded, sort_keys=True)


@dataclass(frozen=True)
class Proposal:
    """A point to be tried: searched values with their distributions, and all settings of it."""

    origin: Literal["start", "sampler", "repeat"]
    params: dict[str, Any]
    distributions: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    candidate: str | None = None  # the trial that a repeat trains again


@dataclass
class CellStudies:
    """One Optuna study per cell.

    A proposal depends only on the history of the sweep: its sampler is seeded from the sweep's
    seed, the cell and the trial's number, or has made all earlier proposals of the cell.

    Part of the trials are repeats: the best settings so far with another seed. They show how much
    runs differ in the seed alone, and which settings are the best.

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
        self._outcomes: dict[Cell, _Outcomes] = defaultdict(_Outcomes)
        self._stateful_samplers: dict[Cell, BaseSampler] = {}
        self._models = CellModels(self.by_cell, self.spaces)
        self._repeats: Counter[Cell] = Counter()
        name, seed = self.sweep.sampler, self.sweep.seed
        if name == samplers.GRID_SAMPLER:
            for method in self.sweep.methods:
                samplers.require_enumerable(spaces[method])
        elif name not in (samplers.AUTO_SAMPLER, *samplers.STATELESS_SAMPLERS):
            for cell in cells:
                sampler = samplers.make_sampler(name, derive_seed(seed, *cell))
                self._stateful_samplers[cell] = sampler

    def estimates(self, cell: Cell) -> list[events.TrialEstimate]:
        """Return what the model of a cell expects of its finished trials, the best first."""
        model = self._models.with_prior_mean(cell)
        return model.estimates() if model is not None else []

    def rank(self, cell: Cell) -> list[str]:
        """Return the first trials of a cell's settings by its model, the best first."""
        return [estimate.trial_id for estimate in self.estimates(cell)]

    def model_cell(self, cell: Cell) -> events.CellModelled | None:
        """Return the model of a cell; None if it has none, or no finished trial."""
        model = self._models.with_prior_mean(cell)
        if model is None or not (estimates := tuple(model.estimates())):
            return None
        gains = draw_left_to_gain(model, derive_seed(self.sweep.seed, *cell, "luck"))
        return events.CellModelled(
            method=cell[0],
            model=cell[1],
            noise_sd=model.noise_sd,
            left_to_gain=float(np.quantile(gains, LEFT_TO_GAIN_QUANTILE)),
            search_luck=search_luck(model, gains),
            estimates=estimates,
        )

    def propose(self, cell: Cell, trial_id: str) -> Proposal | None:
        """Propose the next trial of a cell; return None if the space has no further point.

        Args:
            cell: the cell.
            trial_id: the trial's id.
        """
        if (candidate := self._choose_candidate(cell)) is not None:
            return self._repeat(cell, trial_id, candidate)
        point = self._take_start_point(cell)
        if (asked := self._ask_new_trial(cell, point, self.spaces[cell[0]].ask_study)) is None:
            return None
        trial, settings = asked
        self._register_trial(cell, trial_id, trial)
        origin: Literal["start", "sampler"] = "sampler" if point is None else "start"
        return Proposal(origin, trial.params, serialize_distributions(trial), settings)

    def _repeat(self, cell: Cell, trial_id: str, candidate: optuna.trial.FrozenTrial) -> Proposal:
        """Propose the settings of an earlier trial again, for another seed."""
        study, first_trial_id = self.by_cell[cell], candidate.user_attrs["first_trial_id"]
        study.enqueue_trial(candidate.params)
        trial, settings = self.spaces[cell[0]].ask_study(study)
        self._register_trial(cell, trial_id, trial, first_trial_id)
        distributions = serialize_distributions(trial)
        return Proposal("repeat", trial.params, distributions, settings, first_trial_id)

    def _choose_candidate(self, cell: Cell) -> optuna.trial.FrozenTrial | None:
        """Return the trial that the next one repeats; None if it is to try other settings.

        It is the one of the best settings with the fewest runs, the best of equals.
        """
        due = self.sweep.repeat_share * (self.trial_counts[cell] + 1 - TRIALS_BEFORE_REPEATS)
        if self._repeats[cell] + 1 > due or self.sweep.sampler == samplers.GRID_SAMPLER:
            return None
        trials = self.by_cell[cell].get_trials(deepcopy=False)
        runs = Counter(trial.user_attrs.get("first_trial_id") for trial in trials)
        best = self.rank(cell)[:NUM_CANDIDATES]
        chosen = min(best, key=lambda trial_id: runs[trial_id], default=None)
        is_chosen = (trial.user_attrs.get("trial_id") == chosen for trial in trials)
        return next(compress(trials, is_chosen)) if chosen else None

    def _ask_new_trial(
        self, cell: Cell, point: dict[str, Any] | None, ask: Callable[[optuna.Study], _Asked]
    ) -> _Asked | None:
        study = self.by_cell[cell]
        if point is not None:
            study.enqueue_trial(point)
        may_repeat = self.sweep.allow_duplicates and self.sweep.sampler != samplers.GRID_SAMPLER
        for attempt in range(_SAMPLER_ATTEMPTS + _RANDOM_ATTEMPTS):
            study.sampler = self._make_sampler(cell, attempt)
            try:
                trial, settings = ask(study)
            except optuna.TrialPruned:  # a point that the space does not have
                continue
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
            name = samplers.choose_sampler(self.spaces[cell[0]])
        seed_parts = self.trial_counts[cell], *([attempt] if attempt else [])
        seed = derive_seed(self.sweep.seed, *cell, *seed_parts)
        options: dict[str, Any] = {}
        if name == samplers.GP_SAMPLER and (model := self._models.find(cell)):
            options = {"space": model.space, "sources": self._models.sources(cell)}
        return samplers.make_sampler(name, seed, **options)

    def _take_start_point(self, cell: Cell) -> dict[str, Any] | None:
        points = self._start_points[cell]
        while points:
            point = points.pop(0)
            if self.sweep.allow_duplicates or _point_key(point) not in self._tried_points[cell]:
                return point
        return None

    def _register_trial(
        self, cell: Cell, trial_id: str, trial: optuna.Trial, candidate: str | None = None
    ) -> None:
        trial.set_user_attr("trial_id", trial_id)
        trial.set_user_attr("first_trial_id", candidate or trial_id)
        self._repeats[cell] += candidate is not None
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
                value = self._outcomes[event.cell].value(event.state, best_accuracies)
                trial.set_user_attr("finished", event.state is TrialState.FINISHED)
                state = OptunaState.FAIL if value is None else OptunaState.COMPLETE
                self.by_cell[event.cell].tell(trial, value, state)
            case events.WarmStart():
                self._add_observations(event)
            case events.EarlierCell():
                self._add_earlier_cell(event)

    def _replay_proposal(self, event: events.TrialProposed) -> None:
        """Bring a study to its state after it proposed a trial of the log."""
        cell, params = event.cell, event.params
        distributions = parse_distributions(event.distributions)
        if event.trial_id != (expected_id := make_trial_id(cell, event.number)):
            raise ValueError(f"the trial {event.trial_id} should be {expected_id}")
        study, trial = self.by_cell[cell], None
        if not event.is_repeat:
            while (point := self._take_start_point(cell)) and not point.items() <= params.items():
                pass
            if cell in self._stateful_samplers:  # the sampler must have drawn this point, too
                asked = self._ask_new_trial(cell, point, lambda s: (s.ask(distributions), {}))
                if asked is not None and asked[0].params == params:
                    trial = asked[0]
                elif asked is not None:  # another version of Optuna made the log, which is right
                    study.tell(asked[0], state=OptunaState.FAIL)
        if trial is None:
            study.enqueue_trial(params)
            trial = study.ask(distributions)
        self._register_trial(cell, event.trial_id, trial, event.candidate)

    def _add_observations(self, event: events.WarmStart) -> None:
        self._start_points[event.cell] += event.start
        outcomes = self._outcomes[event.cell]
        for seen in event.observations:
            self._tried_points[event.cell].add(_point_key(seen.params))
            self.by_cell[event.cell].add_trial(outcomes.to_optuna(seen))

    def _add_earlier_cell(self, event: events.EarlierCell) -> None:
        outcomes = _Outcomes()
        trials = [outcomes.to_optuna(seen) for seen in event.observations]
        spaces = [trial.distributions for trial in trials]
        common = {k: d for k, d in spaces[0].items() if all(s.get(k) == d for s in spaces)}
        self._models.earlier.append(CellModel(trials, common))


@dataclass
class _Outcomes:
    """Values of a cell's trials for its sampler; see `CellStudies`."""

    _finished_curves: list[Sequence[float]] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)

    def value(self, state: TrialState, best_accuracies: Sequence[float]) -> float | None:
        """Return the value of a trial, from its best accuracy after each epoch; None for none."""
        if state is TrialState.DIVERGED:
            value = min(self._values, default=0.0)
        elif state is TrialState.CRASHED or not best_accuracies:
            return None
        else:
            value = best_accuracies[-1]
            if state is TrialState.FINISHED:
                self._finished_curves.append(best_accuracies)
            else:
                last = len(best_accuracies) - 1
                gains = [curve[-1] - curve[last] for curve in self._finished_curves]
                value += median(gains or [0.0])
        self._values.append(value)
        return value

    def to_optuna(self, seen: events.Observation) -> optuna.trial.FrozenTrial:
        """Return a trial of another sweep as a study has it."""
        return optuna.trial.create_trial(
            value=self.value(seen.state, seen.best_validation_accuracies),
            params=seen.params,
            distributions=parse_distributions(seen.distributions),
            user_attrs={"trial_id": seen.trial_id},
        )
