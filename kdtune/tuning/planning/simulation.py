"""A sweep in simulated time: the very search and stopping code, on curves that are not trained.

Proposals, stops and budgets are decided by `Search`, as in a sweep. What takes time is given as
`Costs`. Every slot is a process that goes from trial to trial; the driver takes one event at a
time, in the order in which they come, so where there are many slots they wait for it.

What is left out: processes that die, trials that diverge, networks between nodes, and that a slot
trains faster while its neighbours are idle.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from kdtune.log.events import (
    Cell,
    EpochFinished,
    EpochMetrics,
    Event,
    TrialProposed,
    TrialState,
    WarmStart,
)
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.trial_state import ActiveTrial
from kdtune.tuning.trials.trial_checkpoints import CHECKPOINT_TIME_SHARE

MakePolicy = Callable[[Callable[[], float]], SearchPolicy]
"""Makes what decides, from a clock."""


@dataclass(frozen=True)
class SweepCosts:
    """What takes time, in seconds.

    Attributes:
        epoch: an epoch of each cell (``method-model``), validation included.
        scatter: standard deviation of an epoch's time, as a share of it.
        start: a process, until its first trial can begin.
        begin: a trial of each cell in a process that is there, until its first epoch.
        checkpoint: to write one, of each cell.
        report: an epoch's result, from the process to the driver and back.
        prepare: what a node builds before its first trial.
        view: to build one more augmented view; trials wait for it.
        views: augmented views with which epochs take turns.
        event: the driver's, for an epoch's result.
        trial: the driver's, for all else of a trial but its proposal.
        of_slot: the driver's, more for every event and trial at work.
        ask: the driver's, for a proposal: after so many trials of a cell, so long; after more of
            them it grows as it did over the second half, which is too little for some samplers.
        random_first: trials of a cell that must have ended before its proposals cost so much.
        tables: the driver's at the end.
    """

    epoch_seconds: Mapping[str, float]
    epoch_relative_sd: float = 0.0
    process_start_seconds: float = 0.0
    trial_start_seconds: Mapping[str, float] = field(default_factory=dict)
    checkpoint_seconds: Mapping[str, float] = field(default_factory=dict)
    report_seconds: float = 0.0
    prepare_seconds: float = 0.0
    view_seconds: float = 0.0
    num_views: int = 0
    event_seconds: float = 0.0
    trial_seconds: float = 0.0
    event_seconds_per_trial: float = 0.0
    proposal_times: Sequence[tuple[int, float]] = ((0, 0.0),)
    startup_trials: int = 0
    tables_seconds: float = 0.0

    def proposal_seconds(self, num_started: int, num_ended: int) -> float:
        """Seconds of the driver for a proposal, when so many trials of its cell have."""
        counts, seconds = zip(*self.proposal_times, strict=True)
        num_trials = num_started if num_ended >= self.startup_trials else 0
        interpolated, last_count = float(np.interp(num_trials, counts, seconds)), counts[-1]
        if num_trials <= last_count or not last_count:
            return interpolated
        growth = max(0.0, interpolated - float(np.interp(last_count / 2, counts, seconds)))
        return interpolated + growth * (num_trials - last_count) / (last_count / 2)


class LearningCurves(Protocol):
    """Says what a trial would reach."""

    def draw_curve(self, proposal: TrialProposed) -> Sequence[float]:
        """Validation accuracies of a trial by epoch, from the event that asked for it."""


class Timeline:
    """What is going to happen, in the order of time; what is at the same time, as it was added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self._num_added = 0

    def add(self, time: float, item: Any) -> None:
        """Have something happen."""
        heapq.heappush(self._heap, (time, self._num_added, item))
        self._num_added += 1

    def pop_next(self) -> tuple[float, Any]:
        """When the next thing happens, and what."""
        time, _, item = heapq.heappop(self._heap)
        return time, item

    def __len__(self) -> int:
        return len(self._heap)


@dataclass
class SimulationResult:
    """What a simulated sweep took; seconds are the sweep's, or those of slots and added up.

    Attributes:
        slots: trials at once.
        wall: from the first proposal until all is written.
        training: of slots, in which they trained.
        starting: of slots, in which processes and trials began or ended.
        waiting: of slots, for the driver.
        driver: in which the driver was busy.
        trials: that began.
        stopped: of these, by the rule.
        epochs: trained.
        saved: epochs that stopped trials did not train.
        most: trials at work at once, at most.
    """

    slots: int
    wall_seconds: float = 0.0
    training_seconds: float = 0.0
    startup_seconds: float = 0.0
    waiting_seconds: float = 0.0
    driver_seconds: float = 0.0
    trials: int = 0
    stopped: int = 0
    epochs: int = 0
    saved_epochs: int = 0
    max_running: int = 0

    def scale(self, factor: float) -> "SimulationResult":
        """Of a sweep that is so many times larger, as far as that can be told."""
        figures = {k: v for k, v in asdict(self).items() if k not in ("slots", "max_running")}
        scaled = {
            k: type(v)(round(v * factor) if isinstance(v, int) else v * factor)
            for k, v in figures.items()
        }
        return replace(self, **scaled)

    @property
    def unused_seconds(self) -> float:
        """Seconds of slots for which there was no trial."""
        return max(
            0.0,
            self.slots * self.wall_seconds
            - self.training_seconds
            - self.startup_seconds
            - self.waiting_seconds,
        )

    @property
    def idle_share(self) -> float:
        """Part of the slots' time in which they did not train."""
        return (
            1 - self.training_seconds / (self.slots * self.wall_seconds)
            if self.wall_seconds
            else 0.0
        )

    @property
    def driver_share(self) -> float:
        """Part of the time in which the driver was busy."""
        return self.driver_seconds / self.wall_seconds if self.wall_seconds else 0.0


def simulate(
    make_policy: MakePolicy,
    costs: SweepCosts,
    learning_curves: LearningCurves,
    slots: int,
    seed: int = 0,
    warm_start_events: Iterable[WarmStart] = (),
) -> SimulationResult:
    """Run a sweep in simulated time.

    Args:
        make_search: makes what decides.
        costs: what takes time.
        curves: what trials reach.
        slots: trials at once.
        seed: of the scatter of epochs.
        learned: events with which the sweep begins, of earlier ones.
    """
    return _Simulation(make_policy, costs, learning_curves, slots, seed).run(warm_start_events)


class _Simulation:
    def __init__(
        self,
        make_policy: MakePolicy,
        costs: SweepCosts,
        learning_curves: LearningCurves,
        slots: int,
        seed: int,
    ):
        self.now = 0.0
        self.policy = make_policy(lambda: self.now)
        self.costs, self.learning_curves = costs, learning_curves
        self.result = SimulationResult(slots)
        self._random = np.random.default_rng(seed)
        self._timeline = Timeline()
        self._driver_free_at = 0.0
        self._curves_of_running: dict[str, Sequence[float]] = {}
        self._view_ready_at: dict[int, float] = {0: 0.0}
        self._slots_free_at = [0.0] * slots
        self._processes_started = 0
        self._ended_per_cell: Counter[Cell] = Counter()

    def run(self, warm_start_events: Iterable[WarmStart]) -> SimulationResult:
        for event in warm_start_events:
            self._log_event(event)
        self._fill_slots()
        while self._timeline:
            arrives_at, (trial, seconds) = self._timeline.pop_next()
            self._finish_epoch(trial, arrives_at, seconds)
        self.result.wall_seconds = (
            max(self.result.wall_seconds, self.now) + self.costs.tables_seconds
        )
        self.result.driver_seconds += self.costs.tables_seconds
        return self.result

    def _log_event(self, event: Event) -> None:
        event = event.model_copy(update={"time": self.now, "session_seconds": self.now})
        for fold in self.policy.folds:
            fold(event)

    def _occupy_driver(self, arrives_at: float, seconds: float) -> None:
        """Have the driver do something; then it is the time at which that is done."""
        self._driver_free_at = self.now = max(arrives_at, self._driver_free_at) + seconds
        self.result.driver_seconds += seconds

    def _fill_slots(self) -> None:
        """Give free slots trials, as long as there are both."""
        self._slots_free_at = [max(free_at, self.now) for free_at in self._slots_free_at]
        while self._slots_free_at and (trial := self._propose_trial()) is not None:
            proposal_seconds = self.costs.proposal_seconds(
                trial.proposal.number, self._ended_per_cell[trial.proposal.cell]
            )
            self._occupy_driver(self.now, proposal_seconds + self.costs.trial_seconds)
            self._start_trial(trial, self._slots_free_at.pop(0))

    def _propose_trial(self) -> ActiveTrial | None:
        """The next trial; None if there is none now."""
        while cells := self.policy.next_cells():
            self._log_event(event := self.policy.propose(cells[0]))
            if isinstance(event, TrialProposed):
                return self.policy.active_trials.mark_running(event.trial_id)
        return None

    def _start_trial(self, trial: ActiveTrial, free_at: float) -> None:
        """Begin a trial in a slot that is free from some time on."""
        self._curves_of_running[trial.trial_id] = self.learning_curves.draw_curve(trial.proposal)
        self.result.trials += 1
        self.result.max_running = max(self.result.max_running, len(self._curves_of_running))
        self.result.waiting_seconds += max(0.0, self.now - free_at)
        startup_seconds = self.costs.trial_start_seconds.get(_cell_name(trial.proposal), 0.0)
        if self._processes_started < self.result.slots:  # later trials take over processes
            startup_seconds += self.costs.process_start_seconds + self.costs.prepare_seconds
            self._processes_started += 1
        self.result.startup_seconds += startup_seconds
        self._train_epoch(trial, max(self.now, free_at) + startup_seconds)

    def _train_epoch(self, trial: ActiveTrial, starts_at: float) -> None:
        """Have a slot train an epoch, once there is the view that it sees."""
        if self.costs.num_views:
            view = trial.epoch % self.costs.num_views
            ready_at = self._view_ready_at.setdefault(view, starts_at + self.costs.view_seconds)
            self.result.startup_seconds += max(0.0, ready_at - starts_at)
            starts_at = max(starts_at, ready_at)
        name = _cell_name(trial.proposal)
        seconds = self.costs.epoch_seconds[name]
        time_factor = max(0.2, 1 + self.costs.epoch_relative_sd * self._random.standard_normal())
        checkpoint_seconds = min(
            self.costs.checkpoint_seconds.get(name, 0.0), CHECKPOINT_TIME_SHARE * seconds
        )
        seconds *= time_factor
        self.result.training_seconds += seconds
        self.result.startup_seconds += checkpoint_seconds
        self._timeline.add(
            starts_at + seconds + checkpoint_seconds + self.costs.report_seconds, (trial, seconds)
        )

    def _finish_epoch(self, trial: ActiveTrial, arrives_at: float, seconds: float) -> None:
        """Take the result of an epoch, and say whether its trial goes on."""
        self._occupy_driver(
            arrives_at,
            self.costs.event_seconds
            + self.costs.event_seconds_per_trial * len(self._curves_of_running),
        )
        accuracies = self._curves_of_running[trial.trial_id]
        reached = accuracies[: trial.epoch + 1]
        metrics = make_synthetic_metrics(len(reached), reached[-1], max(reached), seconds)
        self._log_event(EpochFinished(**trial.proposal.identity, **dict(metrics)))
        self.result.epochs += 1
        self.result.waiting_seconds += self.now - arrives_at + self.costs.report_seconds
        if (ending := self.policy.end_of(trial)) is None:
            self._train_epoch(trial, self.now)
            return
        self._log_event(trial.make_end_event(*ending))
        self._ended_per_cell[trial.proposal.cell] += 1
        was_stopped = ending[0] is TrialState.STOPPED
        if was_stopped and trial.last_epoch and self.policy.stopping.decide(trial.last_epoch):
            self.result.stopped += 1
            self.result.saved_epochs += len(accuracies) - trial.epoch
        del self._curves_of_running[trial.trial_id]
        final_checkpoint_seconds = self.costs.checkpoint_seconds.get(
            _cell_name(trial.proposal), 0.0
        )
        self.result.startup_seconds += final_checkpoint_seconds
        self.result.wall_seconds = max(
            self.result.wall_seconds, self.now + final_checkpoint_seconds
        )
        self._slots_free_at.append(self.now + final_checkpoint_seconds)
        self._fill_slots()


def make_synthetic_metrics(
    epoch: int, accuracy: float, best_accuracy: float, seconds: float
) -> EpochMetrics:
    """Return the metrics of an epoch that was not trained.

    Args:
        epoch: from 1.
        accuracy: on the validation images.
        best_accuracy: the best so far.
        seconds: that the epoch took.
    """
    return EpochMetrics(
        epoch=epoch,
        lr=0.0,
        train_loss=0.0,
        train_accuracy=0.0,
        validation_loss=0.0,
        validation_accuracy=accuracy,
        best_validation_accuracy=best_accuracy,
        losses={},
        seconds=seconds,
        device="",
        threads=0,
    )


def _cell_name(proposal: TrialProposed) -> str:
    return "-".join(proposal.cell)
