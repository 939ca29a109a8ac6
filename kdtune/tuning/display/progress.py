"""Progress of a sweep or a confirmation in numbers; a fold over its log."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdtune.config.strengths import trained_values
from kdtune.config.train import TrainConfig
from kdtune.log import events
from kdtune.log.events import FAILED_STATES, Cell, TrialState
from kdtune.log.stopwatch import Stopwatch
from kdtune.storage.array_cache import CacheProgress, CacheState
from kdtune.training.epoch_data import should_cache_targets
from kdtune.units import format_bytes

RATE_WINDOW_EPOCHS, MAX_RECENT_TRIALS = 50, 10
"""Maximum numbers of latest epochs and trials that rates and times are computed from."""


@dataclass(frozen=True)
class Goal:
    """Limits of a sweep or a confirmation; epochs and seconds are those of all trials together."""

    trials_per_cell: Mapping[Cell, int | None]
    max_epochs: int | None = None
    max_seconds: float | None = None


@dataclass
class _Trial:
    """A trial or a run; times are seconds of the stopwatch."""

    proposal: events.TrialProposed
    started_at: float
    updated_at: float
    max_epochs: int
    state: TrialState = TrialState.RUNNING
    epochs: int = 0  # the last one that it has finished
    accuracy: float | None = None


@dataclass(frozen=True)
class Leader:
    """The first trial with the best settings of a cell, or the best candidate."""

    trial_id: str
    accuracy: float  # mean of the finished runs, or best validation accuracy so far
    num_runs: int | None  # number of finished runs; None in a search
    params: Mapping[str, Any]  # see `trained_values`; empty in a confirmation


class Progress:
    """Progress of all cells."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.stopwatch = Stopwatch(clock)
        self._cells: defaultdict[Cell, dict[str, _Trial]] = defaultdict(dict)
        self._leaders: dict[Cell, Leader] = {}  # those that are known
        self._models: dict[Cell, events.CellModelled] = {}  # of cells without a later trial
        self.exhausted_cells: set[Cell] = set()
        self._epoch_times = deque([0.0], maxlen=RATE_WINDOW_EPOCHS + 1)
        self._cache_progress: list[CacheProgress] = []
        self._caches_targets: dict[str, bool] = {}  # of trials that have a teacher
        self._epochs_by_target_mode: Counter[bool | None] = Counter()

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        self.stopwatch.fold(event)
        logged_at = self.stopwatch.logged_seconds
        match event:
            case events.LogOpening():
                self._cache_progress += event.cache.prepared
                self._epoch_times = deque([logged_at], maxlen=RATE_WINDOW_EPOCHS + 1)
                if isinstance(event, events.ConfirmStarted):  # crashed runs run again
                    self._leaders.clear()
                    for cell, trials in self._cells.items():
                        kept = {k: t for k, t in trials.items() if t.state != TrialState.CRASHED}
                        self._cells[cell] = kept
            case events.CacheUpdated():
                self._cache_progress.append(event.progress)
            case events.TrialProposed():
                config = TrainConfig.parse(event.config)
                trial = _Trial(event, logged_at, logged_at, config.epochs)
                self._cells[event.cell][event.trial_id] = trial
                self._drop_model(event.cell)
                if config.teacher_model is not None:
                    self._caches_targets[event.trial_id] = should_cache_targets(config)
            case events.WeightsMissing():
                del self._cells[event.cell][event.trial_id]
                self._leaders.clear()
            case events.SpaceExhausted():
                self.exhausted_cells.add(event.cell)
            case events.EpochFinished():
                trial = self._cells[event.cell][event.trial_id]
                self._epoch_times.append(logged_at)
                self._epochs_by_target_mode[self._caches_targets.get(event.trial_id)] += 1
                if trial.accuracy is None:  # its process may have had to start
                    trial.started_at = max(trial.started_at, logged_at - event.seconds)
                trial.epochs = event.epoch
                self._update(trial, event.best_validation_accuracy, logged_at)
            case events.TrialEnded() if event.trial_id in self._cells[event.cell]:
                trial = self._cells[event.cell][event.trial_id]
                trial.state = event.state
                self._update(trial, event.best_validation_accuracy, logged_at)
                self._drop_model(event.cell)
            case events.CellModelled():
                self._models[event.cell] = event
                self._leaders.pop(event.cell, None)

    def _drop_model(self, cell: Cell) -> None:
        if self._models.pop(cell, None) is not None:
            self._leaders.pop(cell, None)

    def _update(self, trial: _Trial, accuracy: float | None, logged_at: float) -> None:
        trial.accuracy, trial.updated_at = accuracy, logged_at
        proposal, leader = trial.proposal, self._leaders.get(trial.proposal.cell)
        # A cell can have thousands of trials, so the leader is sought again only if need be.
        if leader is None:
            return
        was_leader = proposal.candidate or proposal.trial_id == leader.trial_id
        if was_leader or (accuracy or 0.0) >= leader.accuracy:
            del self._leaders[proposal.cell]

    def reset_rate(self) -> None:
        """Measure the rate of epochs from now on."""
        self._epoch_times = deque([self.stopwatch.elapsed_seconds], maxlen=RATE_WINDOW_EPOCHS + 1)

    def _select_trials(self, running: bool) -> list[_Trial]:
        all_trials = (trial for trials in self._cells.values() for trial in trials.values())
        return [trial for trial in all_trials if (trial.state is TrialState.RUNNING) == running]

    @property
    def epochs_trained(self) -> int:
        """Number of epochs of all trials."""
        return self._epochs_by_target_mode.total()

    @property
    def num_running(self) -> int:
        """Number of trials that have not ended, with or without a process."""
        return len(self._select_trials(running=True))

    @property
    def num_ended(self) -> int:
        """Number of trials that have ended."""
        return len(self._select_trials(running=False))

    def state_counts(self, cell: Cell) -> Counter[TrialState]:
        """Return how many trials of a cell are in each state."""
        return Counter(trial.state for trial in self._cells[cell].values())

    def updated_at(self, cell: Cell) -> float:
        """Return the time of the latest event of a cell's trials, in seconds of the stopwatch."""
        return max((trial.updated_at for trial in self._cells[cell].values()), default=0.0)

    def leader(self, cell: Cell) -> Leader | None:
        """Return the best trial or candidate of a cell; None without one."""
        if cell in self._leaders:
            return self._leaders[cell]
        trials, scores = self._cells[cell], self._scores(cell)
        if not scores:
            return None
        model = self._models.get(cell)
        by_mean = max(scores, key=lambda name: fmean(scores[name]))
        best = model.estimates[0].trial_id if model and model.estimates else by_mean
        proposal = trials[best].proposal if best in trials else None
        params = trained_values(proposal.params, proposal.config) if proposal else {}
        num_runs = None if best in trials else len(scores[best])
        self._leaders[cell] = Leader(best, fmean(scores[best]), num_runs, params)
        return self._leaders[cell]

    def _scores(self, cell: Cell) -> dict[str, list[float]]:
        """Return the accuracies of all settings or candidates, in the order of their proposals."""
        finished, scores = defaultdict[str, list[float]](list), dict[str, list[float]]()
        for trial_id, trial in self._cells[cell].items():
            candidate, state = trial.proposal.candidate, trial.state
            if trial.accuracy is None or state in FAILED_STATES:
                continue
            name = candidate or trial_id
            if state is TrialState.FINISHED:
                finished[name].append(trial.accuracy)
                scores[name] = finished[name]
            elif not candidate:  # of other runs, early epochs say nothing about the last
                scores[name] = [trial.accuracy]
        return scores

    def describe_trial(self, event: events.TrialEvent) -> str:
        """Return a trial's id, with the candidate of a repeat."""
        return self._cells[event.cell][event.trial_id].proposal.describe()

    def epoch_rate(self) -> tuple[int, float]:
        """Return the number of latest epochs of this session, and the seconds since the first."""
        return len(self._epoch_times) - 1, self.stopwatch.elapsed_seconds - self._epoch_times[0]

    def estimate_time_left(
        self, goal: Goal, slots: int, noun: str = "trial"
    ) -> tuple[float | None, str]:
        """Return the seconds left and their basis, or None and what must happen first.

        Args:
            goal: the limits.
            slots: number of trials at once.
            noun: what a trial is called.
        """
        estimates, num_ended = [], self.num_ended
        if goal.max_seconds is not None:
            seconds = max(0.0, goal.max_seconds - self.stopwatch.elapsed_seconds)
            estimates.append((seconds, "until the time budget is spent"))
        if goal.max_epochs is not None and (epochs := self.epochs_trained):
            seconds = max(0, goal.max_epochs - epochs) * self.stopwatch.logged_seconds / epochs
            estimates.append((seconds, f"from {epochs} of {goal.max_epochs} epochs"))
        if None not in goal.trials_per_cell.values() and num_ended:
            basis = f"from {num_ended} ended {noun}{'s' * (num_ended > 1)}"
            estimates.append((self._estimate_from_trials(goal, slots), basis))
        if estimates:
            return min(estimates)
        return None, f"a {noun} has ended" if goal.max_epochs is None else "an epoch has ended"

    def _estimate_from_trials(self, goal: Goal, slots: int) -> float:
        """Estimate from the epochs that trials will train, and the seconds of an epoch."""
        running, ended = (self._select_trials(running=is_running) for is_running in (True, False))
        trials = [*running, *ended]
        lifetimes = estimate_epochs_left(
            [(trial.epochs, trial.state is not TrialState.RUNNING) for trial in trials],
            max(trial.max_epochs for trial in trials),
        )
        recent = defaultdict[str | None, list[_Trial]](list)
        for trial in sorted(trials, key=lambda trial: trial.updated_at, reverse=True):
            for model in (trial.proposal.model, None):
                if trial.epochs and len(recent[model]) < MAX_RECENT_TRIALS:
                    recent[model].append(trial)
        per_epoch = {
            model: sum(t.updated_at - t.started_at for t in of_model)
            / sum(t.epochs for t in of_model)
            for model, of_model in recent.items()
            if of_model
        }
        overall = per_epoch.get(None, 0.0)
        now = self.stopwatch.elapsed_seconds
        remaining = [
            max(0.0, lifetimes[t.epochs] * per_epoch.get(t.proposal.model, overall) - late)
            for t, late in ((t, now - t.updated_at) for t in running)
        ]
        pending = [
            lifetimes[0] * per_epoch.get(cell[1], overall)
            for cell, total in goal.trials_per_cell.items()
            if cell not in self.exhausted_cells
            for _ in range((total or 0) - len(self._cells[cell]))
        ]
        return estimate_seconds_left(pending, remaining, slots)

    def describe_cache_savings(self) -> str:
        """Return a sentence about what the cache saved; empty without a cache and a teacher."""
        clauses, epochs, arrays = [], self._epochs_by_target_mode, self._cache_progress
        built = [p for p in arrays if p.state is CacheState.BUILT]
        if epochs[True]:
            passes = [p.seconds for p in built if p.content == "targets"]
            times = "once" if len(passes) == 1 else f"{len(passes)} times"
            work = f"ran {times} ({sum(passes):.1f} s)" if passes else "had run before"
            work += f" for the {epochs[True]} epochs that learned from it"
            clauses.append(f"the teacher {work}")
        if epochs[False]:
            clauses.append(f"the teacher ran live for {epochs[False]} epochs")
        if arrays:
            present = [*built, *(p for p in arrays if p.state is CacheState.CACHED)]
            num_bytes = sum({p.label: p.num_bytes for p in present}.values())
            clauses.append(f"{format_bytes(num_bytes)} of arrays")
        return f"Cache: {'; '.join(clauses)}." if clauses else ""


def estimate_epochs_left(trials: Sequence[tuple[int, bool]], max_epochs: int) -> list[float]:
    """Return how many further epochs a trial trains, by the number that it has finished.

    Trials that end early end first, so those that have ended say too little: the shares that go on
    after an epoch are of all trials that finished it (Kaplan and Meier 1958).

    Args:
        trials: the epochs of each trial, and True if it has ended.
        max_epochs: of a trial.

    >>> estimate_epochs_left([(1, True), (2, False)], 4)
    [2.5, 1.5, 2.0, 1.0, 0.0]
    """
    left = [0.0] * (max_epochs + 1)
    for epoch in reversed(range(max_epochs)):
        at_risk = sum(e > epoch or (e == epoch and has_ended) for e, has_ended in trials)
        ended = sum(e == epoch and has_ended for e, has_ended in trials)
        goes_on = 1 - ended / at_risk if at_risk else 1.0
        left[epoch] = goes_on * (1 + left[epoch + 1])
    return left


def estimate_seconds_left(
    pending_seconds: Sequence[float], running_seconds: Sequence[float], slots: int
) -> float:
    """Return how long trials will still take if no slot is ever idle.

    Args:
        pending_seconds: expected seconds of each trial that has not started.
        running_seconds: remaining seconds of each running trial.
        slots: number of trials at once.

    >>> estimate_seconds_left([10, 10, 10], [4, 0], slots=2)
    17.0
    """
    all_seconds = [*pending_seconds, *running_seconds]
    return float(max([sum(all_seconds) / slots, *all_seconds]))
