"""Simulation of a sweep with the real search and stopping code.

The driver handles one event at a time, so many slots wait for it. Not simulated: crashes,
divergence, the network between nodes, and that a slot trains faster beside idle ones.
"""

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count

import numpy as np

from kdtune.log import events
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.trial_state import ActiveTrial
from kdtune.tuning.search.warm_start import Earlier
from kdtune.tuning.trials.trial_checkpoints import CHECKPOINT_TIME_SHARE


@dataclass(frozen=True)
class SweepCosts:
    """Costs of a sweep in seconds; mappings are by cell, as ``method-model``."""

    epoch_seconds: Mapping[str, float]
    epoch_relative_sd: float = 0.0  # standard deviation of an epoch's time, as a share of it
    process_start_seconds: float = 0.0
    trial_start_seconds: Mapping[str, float] = field(default_factory=dict)
    checkpoint_seconds: Mapping[str, float] = field(default_factory=dict)
    report_seconds: float = 0.0  # way of a result from its process to the driver and back
    prepare_seconds: float = 0.0  # arrays that a node builds before its first trial
    view_seconds: float = 0.0  # building one more augmented view, for which trials wait
    num_views: int = 0
    event_seconds: float = 0.0  # the driver's work for the result of an epoch
    trial_seconds: float = 0.0  # the driver's other work for a trial, without the proposal
    proposal_seconds: float = 0.0
    startup_trials: int = 0  # trials of a cell whose proposals cost nothing
    tables_seconds: float = 0.0  # the driver's work after the last trial


class LearningCurves(ABC):
    """Learning curves of trials."""

    @abstractmethod
    def draw_curve(self, proposal: events.TrialProposed) -> Sequence[float]:
        """Return the validation accuracies of a trial by epoch."""


@dataclass
class SimulationResult:
    """Outcome of a simulation; training, start-up and waiting are of all slots together."""

    slots: int
    wall_seconds: float = 0.0  # from the first proposal until the tables are written
    training_seconds: float = 0.0
    startup_seconds: float = 0.0  # start and end of processes and trials
    waiting_seconds: float = 0.0  # for the driver
    driver_seconds: float = 0.0
    trials: int = 0
    stopped: int = 0  # by the stopping rule
    epochs: int = 0
    saved_epochs: int = 0  # epochs that stopped trials did not train
    max_running: int = 0

    def scale(self, factor: float) -> "SimulationResult":
        """Return an estimate for a sweep that is `factor` times larger."""
        names = ("trials", "stopped", "epochs", "saved_epochs")
        scaled = {name: factor * value for name, value in asdict(self).items()}
        scaled |= {name: round(scaled[name]) for name in names}
        return replace(self, **{**scaled, "slots": self.slots, "max_running": self.max_running})

    @property
    def unused_seconds(self) -> float:
        """Time in which slots had no trial, of all slots together."""
        remaining = self.slots * self.wall_seconds - self.training_seconds - self.startup_seconds
        return max(0.0, remaining - self.waiting_seconds)

    @property
    def idle_share(self) -> float:
        """Share of the slots' time in which they did not train."""
        return 1 - self.training_seconds / (self.slots * self.wall_seconds)

    @property
    def driver_share(self) -> float:
        """Share of the time in which the driver was busy."""
        return self.driver_seconds / self.wall_seconds


@dataclass
class Simulation:
    """A sweep in simulated time; each slot is a process that runs trial after trial."""

    make_policy: Callable[[Callable[[], float]], SearchPolicy]  # from a clock, in seconds
    costs: SweepCosts
    learning_curves: LearningCurves
    slots: int
    seed: int = 0  # of the random part of epoch times

    def __post_init__(self) -> None:
        self.now = self._driver_free_at = 0.0
        self.policy, self.result = self.make_policy(lambda: self.now), SimulationResult(self.slots)
        self._random = np.random.default_rng(self.seed)
        self._arrivals: list[tuple[float, int, ActiveTrial, float]] = []  # a heap of results
        self._order = count()  # of results with equal times
        self._curves_of_running: dict[str, Sequence[float]] = {}
        self._view_ready_at: dict[int, float] = {0: 0.0}
        self._slots_free_at = [0.0] * self.slots
        self._ended_per_cell: Counter[events.Cell] = Counter()

    def run(self, warm_start_events: Iterable[Earlier] = ()) -> SimulationResult:
        """Run the sweep; `warm_start_events` are what it learns from earlier ones."""
        result, tables_seconds = self.result, self.costs.tables_seconds
        for event in warm_start_events:
            self._log_event(event)
        self._fill_slots()
        while self._arrivals:
            arrives_at, _, trial, seconds = heapq.heappop(self._arrivals)
            self._finish_epoch(trial, arrives_at, seconds)
        result.wall_seconds = max(result.wall_seconds, self.now) + tables_seconds
        result.driver_seconds += tables_seconds
        return result

    def _log_event(self, event: events.Event) -> None:
        event = event.model_copy(update={"time": self.now, "session_seconds": self.now})
        for fold in self.policy.folds:
            fold(event)

    def _occupy_driver(self, arrives_at: float, seconds: float) -> None:
        self._driver_free_at = self.now = max(arrives_at, self._driver_free_at) + seconds
        self.result.driver_seconds += seconds

    def _fill_slots(self) -> None:
        self._slots_free_at = [max(free_at, self.now) for free_at in self._slots_free_at]
        while self._slots_free_at and (trial := self._propose_trial()) is not None:
            seconds = self.costs.trial_seconds
            if self._ended_per_cell[trial.proposal.cell] >= self.costs.startup_trials:
                seconds += self.costs.proposal_seconds
            self._occupy_driver(self.now, seconds)
            self._start_trial(trial, self._slots_free_at.pop(0))

    def _propose_trial(self) -> ActiveTrial | None:
        while cells := self.policy.next_cells():
            self._log_event(event := self.policy.propose(cells[0]))
            if isinstance(event, events.TrialProposed):
                return self.policy.active_trials.mark_running(event.trial_id)
        return None

    def _start_trial(self, trial: ActiveTrial, slot_free_at: float) -> None:
        costs, result = self.costs, self.result
        self._curves_of_running[trial.trial_id] = self.learning_curves.draw_curve(trial.proposal)
        result.max_running = max(result.max_running, len(self._curves_of_running))
        result.waiting_seconds += max(0.0, self.now - slot_free_at)
        startup_seconds = costs.trial_start_seconds.get(trial.proposal.cell_name, 0.0)
        if result.trials < result.slots:  # later trials take over processes
            startup_seconds += costs.process_start_seconds + costs.prepare_seconds
        result.trials += 1
        result.startup_seconds += startup_seconds
        self._train_epoch(trial, max(self.now, slot_free_at) + startup_seconds)

    def _train_epoch(self, trial: ActiveTrial, starts_at: float) -> None:
        costs, name = self.costs, trial.proposal.cell_name
        if costs.num_views:  # the first trial that needs a view builds it
            view = trial.epoch % costs.num_views
            ready_at = self._view_ready_at.setdefault(view, starts_at + costs.view_seconds)
            self.result.startup_seconds += max(0.0, ready_at - starts_at)
            starts_at = max(starts_at, ready_at)
        mean_seconds = costs.epoch_seconds[name]
        checkpoint_seconds = costs.checkpoint_seconds.get(name, 0.0)
        checkpoint_seconds = min(checkpoint_seconds, CHECKPOINT_TIME_SHARE * mean_seconds)
        deviation = costs.epoch_relative_sd * self._random.standard_normal()
        seconds = mean_seconds * max(0.2, 1 + deviation)
        self.result.training_seconds += seconds
        self.result.startup_seconds += checkpoint_seconds
        arrives_at = starts_at + seconds + checkpoint_seconds + costs.report_seconds
        heapq.heappush(self._arrivals, (arrives_at, next(self._order), trial, seconds))

    def _finish_epoch(self, trial: ActiveTrial, arrives_at: float, seconds: float) -> None:
        costs, result = self.costs, self.result
        self._occupy_driver(arrives_at, costs.event_seconds)
        accuracies = self._curves_of_running[trial.trial_id]
        reached = accuracies[: trial.epoch + 1]
        metrics = make_synthetic_metrics(len(reached), reached[-1], max(reached), seconds)
        self._log_event(events.EpochFinished(**trial.proposal.identity, **dict(metrics)))
        result.epochs += 1
        result.waiting_seconds += self.now - arrives_at + costs.report_seconds
        if (ending := self.policy.end_of(trial)) is None:
            self._train_epoch(trial, self.now)
            return
        self._log_event(trial.make_end_event(*ending))
        self._ended_per_cell[trial.proposal.cell] += 1
        was_stopped = ending[0] is events.TrialState.STOPPED
        if was_stopped and trial.last_epoch and self.policy.stopping.decide(trial.last_epoch):
            result.stopped += 1
            result.saved_epochs += len(accuracies) - trial.epoch
        del self._curves_of_running[trial.trial_id]
        checkpoint_seconds = costs.checkpoint_seconds.get(trial.proposal.cell_name, 0.0)
        free_at = self.now + checkpoint_seconds
        result.startup_seconds += checkpoint_seconds
        result.wall_seconds = max(result.wall_seconds, free_at)
        self._slots_free_at.append(free_at)
        self._fill_slots()


def make_synthetic_metrics(
    epoch: int, accuracy: float, best_accuracy: float, seconds: float
) -> events.EpochMetrics:
    """Return the metrics of an epoch that was not trained.

    Args:
        epoch: from 1.
        accuracy: on the validation images.
        best_accuracy: the best so far.
        seconds: duration of the epoch.
    """
    return events.EpochMetrics(
        epoch=epoch, lr=0.0, train_loss=0.0, train_accuracy=0.0, validation_loss=0.0,
        validation_accuracy=accuracy, best_validation_accuracy=best_accuracy, losses={},
        seconds=seconds, device="", threads=0,
    )  # fmt: skip
