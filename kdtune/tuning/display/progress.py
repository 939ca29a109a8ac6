"""How far a sweep or a confirmation is, in numbers; a fold over its log.

What is left is guessed: trials are taken to need as long as the latest of the same student that
have ended. The first to end may be those that were stopped early, and the first of a cell are not
stopped as easily as later ones, so early guesses can be wrong by a factor of two.

A view is what the cache of a node holds for all trials: decoded images, the teacher's targets.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from kdtune.config.train import TrainConfig
from kdtune.log.events import (
    FAILED_STATES,
    SUCCESSFUL_STATES,
    CacheUpdated,
    Cell,
    ConfirmStarted,
    EpochFinished,
    Event,
    LogOpening,
    SpaceExhausted,
    TrialEnded,
    TrialProposed,
    TrialState,
    WeightsMissing,
)
from kdtune.log.stopwatch import Stopwatch
from kdtune.storage.array_cache import CacheProgress, CacheState
from kdtune.training.epoch_data import should_cache_targets
from kdtune.units import format_bytes

RATE_WINDOW_EPOCHS = 50
"""Epochs of which the rate is that of the latest, at most."""

MAX_RECENT_TRIALS = 10
"""Trials by which those to come are judged: resources and other users of a machine change."""


@dataclass(frozen=True)
class Goal:
    """What is to be done.

    Attributes:
        trials: in each cell; None where nobody can tell.
        epochs: of all trials together, at most; None without a limit.
        seconds: that drivers run, at most; None without a limit.
    """

    trials_per_cell: Mapping[Cell, int | None]
    max_epochs: int | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class Leader:
    """What leads a cell: a trial, or in a confirmation a candidate.

    Attributes:
        trial_id: of the search.
        accuracy: its best validation accuracy so far, or the mean of its finished runs, of 1.
        runs: so many; None in a search.
        parameters: what was searched; empty in a confirmation.
    """

    trial_id: str
    accuracy: float
    num_runs: int | None
    params: Mapping[str, Any]


@dataclass(frozen=True)
class CellProgress:
    """How far a cell is.

    Attributes:
        states: how many trials are ``running``, or ended as `TrialState` says.
        best: None while nothing is known.
        latest: when something happened last, in seconds of the stopwatch.
    """

    state_counts: Counter[TrialState]
    leader: Leader | None
    updated_at: float

    @property
    def num_ended(self) -> int:
        """Trials that have ended."""
        return self.state_counts.total() - self.state_counts[TrialState.RUNNING]

    @property
    def num_failed(self) -> int:
        """Trials that ended without a result that counts."""
        return sum(self.state_counts[state] for state in FAILED_STATES)


@dataclass
class _CellRecord:
    """A cell's trials, and of these what would take long to count each time."""

    trials: dict[str, "_TrialRecord"] = field(default_factory=dict)
    state_counts: Counter[TrialState] = field(default_factory=Counter)
    updated_at: float = 0.0
    cached_leader: Leader | None = None
    leader_is_current: bool = True
    """Whether `best` is still what leads."""

    def note_change(self, trial_id: str, trial: "_TrialRecord") -> None:
        """Take note that a trial's accuracy or state is another."""
        leader = self.cached_leader
        is_leader = leader is not None and leader.trial_id in (trial_id, trial.candidate_id)
        may_lead = trial.has_valid_score and (
            leader is None or (trial.accuracy or 0.0) >= leader.accuracy
        )
        if is_leader or may_lead or trial.candidate_id:
            self.leader_is_current = False

    def find_leader(self) -> Leader | None:
        """What leads."""
        if not self.leader_is_current:
            self.cached_leader, self.leader_is_current = _find_leader(self.trials), True
        return self.cached_leader


@dataclass
class _TrialRecord:
    """A trial or a run, as it was asked for, and how far it is; times are the stopwatch's."""

    cell: Cell
    candidate_id: str | None
    params: Mapping[str, Any]
    started_at: float
    updated_at: float
    state: TrialState = TrialState.RUNNING
    accuracy: float | None = None

    @property
    def has_valid_score(self) -> bool:
        """Whether its accuracy does: a run's is one of its last epoch only."""
        if self.candidate_id:
            return self.accuracy is not None and self.state is TrialState.FINISHED
        is_valid = self.state in (*SUCCESSFUL_STATES, TrialState.RUNNING)
        return self.accuracy is not None and is_valid


class Progress:
    """How far all cells are.

    Args:
        clock: seconds, which nobody sets.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.stopwatch = Stopwatch(clock)
        self.epochs_trained = 0
        """Epochs trained, of all trials."""
        self._trials: dict[str, _TrialRecord] = {}
        self._cells: dict[Cell, _CellRecord] = defaultdict(_CellRecord)
        self._exhausted_cells: set[Cell] = set()
        self._epoch_times: deque[float] = deque([0.0], maxlen=RATE_WINDOW_EPOCHS + 1)
        self._cache_progress: list[CacheProgress] = []
        self._target_modes: dict[str, str] = {}
        self._epochs_by_target_mode = {"cached": 0, "live": 0}

    def fold(self, event: Event) -> None:
        """Add an event of the log."""
        self.stopwatch.fold(event)
        logged_at = self.stopwatch.logged_seconds
        match event:
            case LogOpening():
                self._cache_progress += event.cache.prepared
                self._epoch_times = deque([logged_at], maxlen=RATE_WINDOW_EPOCHS + 1)
                if isinstance(event, ConfirmStarted):  # what crashed runs again
                    trials = self._trials.items()
                    for name in [n for n, t in trials if t.state is TrialState.CRASHED]:
                        self._remove_trial(name)
            case CacheUpdated():
                self._cache_progress.append(event.progress)
            case TrialProposed():
                self._add_trial(event, logged_at)
            case WeightsMissing():
                self._remove_trial(event.trial_id)
            case SpaceExhausted():
                self._exhausted_cells.add(event.cell)
            case EpochFinished():
                self._finish_epoch(event, logged_at)
            case TrialEnded() if event.trial_id in self._trials:
                self._end_trial(event, logged_at)

    def _finish_epoch(self, event: EpochFinished, logged_at: float) -> None:
        self.epochs_trained += 1
        self._epoch_times.append(logged_at)
        trial = self._trials[event.trial_id]
        if trial.accuracy is None:  # its process may have had to start
            trial.started_at = max(trial.started_at, logged_at - event.seconds)
        self._update_score(event, logged_at)
        if target_mode := self._target_modes.get(event.trial_id):
            self._epochs_by_target_mode[target_mode] += 1

    def _end_trial(self, event: TrialEnded, logged_at: float) -> None:
        trial = self._trials[event.trial_id]
        counts = self._cells[trial.cell].state_counts
        counts[trial.state] -= 1
        counts[event.state] += 1
        trial.state = event.state
        self._update_score(event, logged_at)

    def _update_score(self, event: EpochFinished | TrialEnded, logged_at: float) -> None:
        trial = self._trials[event.trial_id]
        trial.updated_at, trial.accuracy = logged_at, event.best_validation_accuracy
        cell = self._cells[trial.cell]
        cell.updated_at = logged_at
        cell.note_change(event.trial_id, trial)

    def _add_trial(self, event: TrialProposed, logged_at: float) -> None:
        trial = _TrialRecord(
            event.cell, event.candidate, event.params, started_at=logged_at, updated_at=logged_at
        )
        self._trials[event.trial_id] = trial
        cell = self._cells[trial.cell]
        cell.trials[event.trial_id], cell.updated_at = trial, trial.updated_at
        cell.state_counts[trial.state] += 1
        config = TrainConfig.parse(event.config)
        if config.teacher_model is not None:
            is_cached = should_cache_targets(config)
            self._target_modes[event.trial_id] = "cached" if is_cached else "live"

    def _remove_trial(self, trial_id: str) -> None:
        trial = self._trials.pop(trial_id)
        cell = self._cells[trial.cell]
        del cell.trials[trial_id]
        cell.state_counts[trial.state] -= 1
        cell.updated_at = max((other.updated_at for other in cell.trials.values()), default=0.0)
        cell.leader_is_current = False

    def reset_rate(self) -> None:
        """Trials run from now on: the rate is theirs."""
        self._epoch_times = deque([self.stopwatch.elapsed_seconds], maxlen=RATE_WINDOW_EPOCHS + 1)

    def expected_trials(self, cell: Cell, requested: int | None) -> int | None:
        """Trials that a cell will have: as many as are wanted, unless it has no further point."""
        num_proposed = len(self._cells[cell].trials)
        return num_proposed if cell in self._exhausted_cells else requested

    @property
    def num_ended(self) -> int:
        """Trials that have ended."""
        return len(self._trials) - self.num_running

    @property
    def num_running(self) -> int:
        """Trials that have not, whether a process works on them or none."""
        return sum(cell.state_counts[TrialState.RUNNING] for cell in self._cells.values())

    def cell_progress(self, cell: Cell) -> CellProgress:
        """How far a cell is."""
        record = self._cells[cell]
        return CellProgress(+record.state_counts, record.find_leader(), record.updated_at)

    def epoch_rate(self) -> tuple[int, float]:
        """The latest epochs of this session, `WINDOW` at most, and the seconds that they took.

        These end now, so that it shows if no epoch comes any more.
        """
        return len(self._epoch_times) - 1, self.stopwatch.elapsed_seconds - self._epoch_times[0]

    def estimate_time_left(
        self, goal: Goal, slots: int, noun: str = "trial"
    ) -> tuple[float | None, str]:
        """How long it will still take.

        Args:
            goal: what is to be done.
            slots: trials at once.
            what: what a trial is called, for people.

        Returns:
            Seconds, and what they follow from. Of several limits it is that which is reached
            first; None while nothing is known, and then what must happen first.
        """
        estimates = []
        if goal.max_seconds is not None:
            seconds = max(0.0, goal.max_seconds - self.stopwatch.elapsed_seconds)
            estimates.append((seconds, "until the time budget is spent"))
        if goal.max_epochs is not None and self.epochs_trained:
            seconds = (
                max(0, goal.max_epochs - self.epochs_trained)
                * self.stopwatch.logged_seconds
                / self.epochs_trained
            )
            estimates.append((seconds, f"from {self.epochs_trained} of {goal.max_epochs} epochs"))
        if None not in goal.trials_per_cell.values() and self.num_ended:
            basis = f"from {self.num_ended} ended {noun}{'s' * (self.num_ended > 1)}"
            estimates.append((self._estimate_from_trials(goal, slots), basis))
        if estimates:
            return min(estimates)
        return None, f"a {noun} has ended" if goal.max_epochs is None else "an epoch has ended"

    def _estimate_from_trials(self, goal: Goal, slots: int) -> float:
        """Seconds that the trials of all cells still take, once one has ended."""
        durations = defaultdict(list)
        for trial in sorted(self._trials.values(), key=lambda trial: trial.updated_at):
            if trial.state is not TrialState.RUNNING:
                for key in (trial.cell[1], None):
                    durations[key].append(trial.updated_at - trial.started_at)
        expected_seconds = {
            model: fmean(times[-MAX_RECENT_TRIALS:]) for model, times in durations.items()
        }
        unproposed = Counter({cell: total or 0 for cell, total in goal.trials_per_cell.items()})
        unproposed.subtract(trial.cell for trial in self._trials.values())
        pending_seconds = [
            expected_seconds.get(cell[1], expected_seconds[None])
            for cell, count in unproposed.items()
            if cell not in self._exhausted_cells
            for _ in range(count)
        ]
        elapsed_seconds = self.stopwatch.elapsed_seconds
        running_seconds = [
            max(
                0.0,
                expected_seconds.get(trial.cell[1], expected_seconds[None])
                - (elapsed_seconds - trial.started_at),
            )
            for trial in self._trials.values()
            if trial.state is TrialState.RUNNING
        ]
        return estimate_seconds_left(pending_seconds, running_seconds, slots)

    def describe_cache_savings(self) -> str:
        """What the views were good for, in a sentence; empty without views and without teacher."""
        clauses = []
        built = [p for p in self._cache_progress if p.state is CacheState.BUILT]
        if num_epochs := self._epochs_by_target_mode["cached"]:
            passes = [progress.seconds for progress in built if progress.content == "targets"]
            num_passes = "once" if len(passes) == 1 else f"{len(passes)} times"
            work = f"ran {num_passes} ({sum(passes):.1f} s)" if passes else "had run before"
            clauses.append(f"the teacher {work} for the {num_epochs} epochs that learned from it")
        if self._epochs_by_target_mode["live"]:
            clauses.append(
                f"the teacher ran live for {self._epochs_by_target_mode['live']} epochs"
            )
        if self._cache_progress:
            cached_bytes = {
                progress.label: progress.num_bytes
                for progress in self._cache_progress
                if progress.state in (CacheState.BUILT, CacheState.CACHED)
            }
            clauses.append(f"{format_bytes(sum(cached_bytes.values()))} in the cache")
        return f"Views: {'; '.join(clauses)}." if clauses else ""


def estimate_seconds_left(
    pending_seconds: Sequence[float], running_seconds: Sequence[float], slots: int
) -> float:
    """How long trials will still take, if no slot is ever idle, and none is shared.

    Args:
        to_start: seconds of each trial that has not begun.
        under_way: seconds that each trial under way still needs.
        slots: trials at once.

    >>> estimate_seconds_left([10, 10, 10], [4, 0], slots=2)
    17.0
    >>> estimate_seconds_left([], [30, 0], slots=2)
    30.0
    """
    all_seconds = [*pending_seconds, *running_seconds]
    return float(max([sum(all_seconds) / slots, *all_seconds]))


def _find_leader(trials: Mapping[str, _TrialRecord]) -> Leader | None:
    """What leads among the trials of a cell; of equals the earliest."""
    scored_trials: dict[str, list[_TrialRecord]] = defaultdict(list)
    for trial_id, trial in trials.items():
        if trial.has_valid_score:
            scored_trials[trial.candidate_id or trial_id].append(trial)
    means = {
        name: fmean(t.accuracy or 0.0 for t in group) for name, group in scored_trials.items()
    }
    if not means:
        return None
    leader_id = max(means, key=means.__getitem__)
    leader_trials = scored_trials[leader_id]
    num_runs = len(leader_trials) if leader_trials[0].candidate_id else None
    return Leader(leader_id, means[leader_id], num_runs, leader_trials[0].params)
