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
from kdtune.log.events import SOUND, Cell, Event, cell_of
from kdtune.log.stopwatch import Stopwatch
from kdtune.training.inputs import keeps_targets
from kdtune.units import amount

WINDOW = 50
"""Epochs of which the rate is that of the latest, at most."""

RECENT = 10
"""Trials by which those to come are judged: resources and other users of a machine change."""


@dataclass(frozen=True)
class Goal:
    """What is to be done.

    Attributes:
        trials: in each cell; None where nobody can tell.
        epochs: of all trials together, at most; None without a limit.
        seconds: that drivers run, at most; None without a limit.
    """

    trials: Mapping[Cell, int | None]
    epochs: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Best:
    """What leads a cell: a trial, or in a confirmation a candidate.

    Attributes:
        trial_id: of the search.
        accuracy: its best validation accuracy so far, or the mean of its finished runs, of 1.
        runs: so many; None in a search.
        parameters: what was searched; empty in a confirmation.
    """

    trial_id: str
    accuracy: float
    runs: int | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CellProgress:
    """How far a cell is.

    Attributes:
        states: how many trials are ``running``, or ended as `kdtune.log.events.STATES` says.
        best: None while nothing is known.
        latest: when something happened last, in seconds of the stopwatch.
    """

    states: Counter[str]
    best: Best | None
    latest: float

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return self.states.total() - self.states["running"]

    @property
    def failed(self) -> int:
        """Trials that ended without a result that counts."""
        return self.states["diverged"] + self.states["crashed"]


@dataclass
class _Cell:
    """A cell's trials, and of these what would take long to count each time."""

    trials: dict[str, "_Trial"] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    latest: float = 0.0
    best: Best | None = None
    known: bool = True
    """Whether `best` is still what leads."""

    def changed(self, name: str, trial: "_Trial") -> None:
        """Take note that a trial's accuracy or state is another."""
        best = self.best
        leads = best is not None and best.trial_id in (name, trial.confirms)
        ahead = trial.counts and (best is None or (trial.accuracy or 0.0) >= best.accuracy)
        if leads or ahead or trial.confirms:
            self.known = False

    def leader(self) -> Best | None:
        """What leads."""
        if not self.known:
            self.best, self.known = _best(self.trials), True
        return self.best


@dataclass
class _Trial:
    """A trial or a run, as it was asked for, and how far it is; times are the stopwatch's."""

    cell: Cell
    confirms: str | None
    parameters: Mapping[str, Any]
    began: float
    latest: float
    state: str = "running"
    accuracy: float | None = None

    @property
    def counts(self) -> bool:
        """Whether its accuracy does: a run's is one of its last epoch only."""
        states = ("finished",) if self.confirms else (*SOUND, "running")
        return self.accuracy is not None and self.state in states


class Progress:
    """How far all cells are.

    Args:
        clock: seconds, which nobody sets.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.stopwatch = Stopwatch(clock)
        self.epochs = 0
        """Epochs trained, of all trials."""
        self._trials: dict[str, _Trial] = {}
        self._cells: dict[Cell, _Cell] = defaultdict(_Cell)
        self._exhausted: set[Cell] = set()
        self._times: deque[float] = deque([0.0], maxlen=WINDOW + 1)
        self._views: list[Event] = []
        self._ways: dict[str, str] = {}
        self._taught = {"kept": 0, "live": 0}

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        self.stopwatch.fold(event)
        now, kind = self.stopwatch.logged, event["event"]
        trial = self._trials.get(event.get("trial_id", ""))
        if kind in ("sweep", "resumed", "confirm"):
            self._views += event["views"]["prepared"]
            self._times = deque([now], maxlen=WINDOW + 1)
            if kind == "confirm":  # what crashed runs again
                for name in [n for n, t in self._trials.items() if t.state == "crashed"]:
                    self._forget(name)
        elif kind == "view":
            self._views.append(event)
        elif kind == "asked":
            about = cell_of(event), event.get("confirms"), event["parameters"]
            self._enter(event["trial_id"], _Trial(*about, began=now, latest=now))
            config = TrainConfig.check(event["config"])
            if config.teacher_model is not None:
                self._ways[event["trial_id"]] = "kept" if keeps_targets(config) else "live"
        elif kind == "lost":
            self._forget(event["trial_id"])
        elif kind == "exhausted":
            self._exhausted.add(cell_of(event))
        elif kind in ("epoch", "ended") and trial is not None:
            if kind == "epoch" and trial.accuracy is None:  # its process may have had to start
                trial.began = max(trial.began, now - event["seconds"])
            trial.latest, trial.accuracy = now, event["best_validation_accuracy"]
            cell = self._cells[trial.cell]
            cell.latest = now
            if kind == "ended":
                cell.states[trial.state] -= 1
                trial.state = event["state"]
                cell.states[trial.state] += 1
            cell.changed(event["trial_id"], trial)
            if kind == "ended":
                return
            self.epochs += 1
            self._times.append(now)
            if way := self._ways.get(event["trial_id"]):
                self._taught[way] += 1

    def _enter(self, name: str, trial: _Trial) -> None:
        self._trials[name] = trial
        cell = self._cells[trial.cell]
        cell.trials[name], cell.latest = trial, trial.latest
        cell.states[trial.state] += 1

    def _forget(self, name: str) -> None:
        trial = self._trials.pop(name)
        cell = self._cells[trial.cell]
        del cell.trials[name]
        cell.states[trial.state] -= 1
        cell.latest = max((own.latest for own in cell.trials.values()), default=0.0)
        cell.known = False

    def begin(self) -> None:
        """Trials run from now on: the rate is theirs."""
        self._times = deque([self.stopwatch.seconds], maxlen=WINDOW + 1)

    def total(self, cell: Cell, wanted: int | None) -> int | None:
        """Trials that a cell will have: as many as are wanted, unless it has no further point."""
        known = len(self._cells[cell].trials)
        return known if cell in self._exhausted else wanted

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return len(self._trials) - self.running

    @property
    def running(self) -> int:
        """Trials that have not, whether a process works on them or none."""
        return sum(cell.states["running"] for cell in self._cells.values())

    def cell(self, cell: Cell) -> CellProgress:
        """How far a cell is."""
        own = self._cells[cell]
        return CellProgress(+own.states, own.leader(), own.latest)

    def rate(self) -> tuple[int, float]:
        """The latest epochs of this session, `WINDOW` at most, and the seconds that they took.

        These end now, so that it shows if no epoch comes any more.
        """
        return len(self._times) - 1, self.stopwatch.seconds - self._times[0]

    def left(self, goal: Goal, slots: int, what: str = "trial") -> tuple[float | None, str]:
        """How long it will still take.

        Args:
            goal: what is to be done.
            slots: trials at once.
            what: what a trial is called, for people.

        Returns:
            Seconds, and what they follow from. Of several limits it is that which is reached
            first; None while nothing is known, and then what must happen first.
        """
        guesses = []
        if goal.seconds is not None:
            rest = max(0.0, goal.seconds - self.stopwatch.seconds)
            guesses.append((rest, "until the time budget is spent"))
        if goal.epochs is not None and self.epochs:
            rest = max(0, goal.epochs - self.epochs) * self.stopwatch.logged / self.epochs
            guesses.append((rest, f"from {self.epochs} of {goal.epochs} epochs"))
        if None not in goal.trials.values() and self.ended:
            basis = f"from {self.ended} ended {what}{'s' * (self.ended > 1)}"
            guesses.append((self._by_trials(goal, slots), basis))
        if guesses:
            return min(guesses)
        return None, f"a {what} has ended" if goal.epochs is None else "an epoch has ended"

    def _by_trials(self, goal: Goal, slots: int) -> float:
        """Seconds that the trials of all cells still take, once one has ended."""
        took = defaultdict(list)
        for trial in sorted(self._trials.values(), key=lambda trial: trial.latest):
            if trial.state != "running":
                for key in (trial.cell[1], None):
                    took[key].append(trial.latest - trial.began)
        likely = {model: fmean(times[-RECENT:]) for model, times in took.items()}
        missing = Counter({cell: total or 0 for cell, total in goal.trials.items()})
        missing.subtract(trial.cell for trial in self._trials.values())
        to_start = [
            likely.get(cell[1], likely[None])
            for cell, count in missing.items()
            if cell not in self._exhausted
            for _ in range(count)
        ]
        now = self.stopwatch.seconds
        rests = [
            max(0.0, likely.get(trial.cell[1], likely[None]) - (now - trial.began))
            for trial in self._trials.values()
            if trial.state == "running"
        ]
        return seconds_left(to_start, rests, slots)

    def saved(self) -> str:
        """What the views were good for, in a sentence; empty without views and without teacher."""
        said = []
        if self._taught["kept"]:
            built = [e for e in self._views if e["kind"] == "targets" and e["state"] == "built"]
            seconds = sum(event["seconds"] for event in built)
            times = "once" if len(built) == 1 else f"{len(built)} times"
            ran = f"ran {times} ({seconds:.1f} s)" if built else "had run before"
            said.append(
                f"the teacher {ran} for the {self._taught['kept']} epochs that learned from it"
            )
        if self._taught["live"]:
            said.append(f"the teacher ran live for {self._taught['live']} epochs")
        if self._views:
            kept = {e["what"]: e["bytes"] for e in self._views if e["state"] in ("built", "found")}
            said.append(f"{amount(sum(kept.values()))} in the cache")
        return f"Views: {'; '.join(said)}." if said else ""


def seconds_left(to_start: Sequence[float], under_way: Sequence[float], slots: int) -> float:
    """How long trials will still take, if no slot is ever idle, and none is shared.

    Args:
        to_start: seconds of each trial that has not begun.
        under_way: seconds that each trial under way still needs.
        slots: trials at once.

    >>> seconds_left([10, 10, 10], [4, 0], slots=2)
    17.0
    >>> seconds_left([], [30, 0], slots=2)
    30.0
    """
    rests = [*to_start, *under_way]
    return float(max([sum(rests) / slots, *rests]))


def _best(trials: Mapping[str, _Trial]) -> Best | None:
    """What leads among the trials of a cell; of equals the earliest."""
    found: dict[str, list[_Trial]] = defaultdict(list)
    for name, trial in trials.items():
        if trial.counts:
            found[trial.confirms or name].append(trial)
    means = {name: fmean(t.accuracy or 0.0 for t in own) for name, own in found.items()}
    if not means:
        return None
    leader = max(means, key=means.__getitem__)
    own = found[leader]
    runs = len(own) if own[0].confirms else None
    return Best(leader, means[leader], runs, own[0].parameters)
