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

from kdtune.log.events import Cell, Event, cell_of
from kdtune.tuning.scheduling.search_policy import Search
from kdtune.tuning.scheduling.trial_state import Trial
from kdtune.tuning.trials.trial_checkpoints import SHARE

MakeSearch = Callable[[Callable[[], float]], Search]
"""Makes what decides, from a clock."""


@dataclass(frozen=True)
class Costs:
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

    epoch: Mapping[str, float]
    scatter: float = 0.0
    start: float = 0.0
    begin: Mapping[str, float] = field(default_factory=dict)
    checkpoint: Mapping[str, float] = field(default_factory=dict)
    report: float = 0.0
    prepare: float = 0.0
    view: float = 0.0
    views: int = 0
    event: float = 0.0
    trial: float = 0.0
    of_slot: float = 0.0
    ask: Sequence[tuple[int, float]] = ((0, 0.0),)
    random_first: int = 0
    tables: float = 0.0

    def proposal(self, started: int, ended: int) -> float:
        """Seconds of the driver for a proposal, when so many trials of its cell have."""
        counts, seconds = zip(*self.ask, strict=True)
        before = started if ended >= self.random_first else 0
        known, last = float(np.interp(before, counts, seconds)), counts[-1]
        if before <= last or not last:
            return known
        growth = max(0.0, known - float(np.interp(last / 2, counts, seconds)))
        return known + growth * (before - last) / (last / 2)


class Curves(Protocol):
    """Says what a trial would reach."""

    def draw(self, asked: Event) -> Sequence[float]:
        """Validation accuracies of a trial by epoch, from the event that asked for it."""


class Timeline:
    """What is going to happen, in the order of time; what is at the same time, as it was added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self._added = 0

    def add(self, time: float, what: Any) -> None:
        """Have something happen."""
        heapq.heappush(self._heap, (time, self._added, what))
        self._added += 1

    def next(self) -> tuple[float, Any]:
        """When the next thing happens, and what."""
        time, _, what = heapq.heappop(self._heap)
        return time, what

    def __len__(self) -> int:
        return len(self._heap)


@dataclass
class Outcome:
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
    wall: float = 0.0
    training: float = 0.0
    starting: float = 0.0
    waiting: float = 0.0
    driver: float = 0.0
    trials: int = 0
    stopped: int = 0
    epochs: int = 0
    saved: int = 0
    most: int = 0

    def times(self, factor: float) -> "Outcome":
        """Of a sweep that is so many times larger, as far as that can be told."""
        sizes = {k: v for k, v in asdict(self).items() if k not in ("slots", "most")}
        scaled = {
            k: type(v)(round(v * factor) if isinstance(v, int) else v * factor)
            for k, v in sizes.items()
        }
        return replace(self, **scaled)

    @property
    def unused(self) -> float:
        """Seconds of slots for which there was no trial."""
        return max(0.0, self.slots * self.wall - self.training - self.starting - self.waiting)

    @property
    def idle_share(self) -> float:
        """Part of the slots' time in which they did not train."""
        return 1 - self.training / (self.slots * self.wall) if self.wall else 0.0

    @property
    def driver_share(self) -> float:
        """Part of the time in which the driver was busy."""
        return self.driver / self.wall if self.wall else 0.0


def simulate(
    make_search: MakeSearch,
    costs: Costs,
    curves: Curves,
    slots: int,
    seed: int = 0,
    learned: Iterable[Event] = (),
) -> Outcome:
    """Run a sweep in simulated time.

    Args:
        make_search: makes what decides.
        costs: what takes time.
        curves: what trials reach.
        slots: trials at once.
        seed: of the scatter of epochs.
        learned: events with which the sweep begins, of earlier ones.
    """
    return _Simulation(make_search, costs, curves, slots, seed).run(learned)


class _Simulation:
    def __init__(
        self, make_search: MakeSearch, costs: Costs, curves: Curves, slots: int, seed: int
    ):
        self.now = 0.0
        self.search = make_search(lambda: self.now)
        self.costs, self.curves = costs, curves
        self.outcome = Outcome(slots)
        self._random = np.random.default_rng(seed)
        self._timeline = Timeline()
        self._driver_free = 0.0
        self._drawn: dict[str, Sequence[float]] = {}
        self._views: dict[int, float] = {0: 0.0}
        self._free = [0.0] * slots
        self._started = 0
        self._ended: Counter[Cell] = Counter()

    def run(self, learned: Iterable[Event]) -> Outcome:
        for event in learned:
            self._append(event)
        self._fill()
        while self._timeline:
            arrival, (trial, seconds) = self._timeline.next()
            self._take(trial, arrival, seconds)
        self.outcome.wall = max(self.outcome.wall, self.now) + self.costs.tables
        self.outcome.driver += self.costs.tables
        return self.outcome

    def _append(self, event: Event) -> None:
        event = {**event, "time": self.now, "session_seconds": self.now}
        for fold in self.search.folds:
            fold(event)

    def _serve(self, arrival: float, seconds: float) -> None:
        """Have the driver do something; then it is the time at which that is done."""
        self._driver_free = self.now = max(arrival, self._driver_free) + seconds
        self.outcome.driver += seconds

    def _fill(self) -> None:
        """Give free slots trials, as long as there are both."""
        self._free = [max(free, self.now) for free in self._free]
        while self._free and (trial := self._proposed()) is not None:
            took = self.costs.proposal(trial.asked["number"], self._ended[cell_of(trial.asked)])
            self._serve(self.now, took + self.costs.trial)
            self._begin(trial, self._free.pop(0))

    def _proposed(self) -> Trial | None:
        """The next trial; None if there is none now."""
        while cells := self.search.turns():
            self._append(event := self.search.propose(cells[0]))
            if event["event"] == "asked":
                return self.search.under_way.take(event["trial_id"])
        return None

    def _begin(self, trial: Trial, free: float) -> None:
        """Begin a trial in a slot that is free from some time on."""
        self._drawn[trial.asked["trial_id"]] = self.curves.draw(trial.asked)
        self.outcome.trials += 1
        self.outcome.most = max(self.outcome.most, len(self._drawn))
        self.outcome.waiting += max(0.0, self.now - free)
        took = self.costs.begin.get(_name(trial.asked), 0.0)
        if self._started < self.outcome.slots:  # later trials take over processes
            took += self.costs.start + self.costs.prepare
            self._started += 1
        self.outcome.starting += took
        self._train(trial, max(self.now, free) + took)

    def _train(self, trial: Trial, begun: float) -> None:
        """Have a slot train an epoch, once there is the view that it sees."""
        if self.costs.views:
            view = trial.epoch % self.costs.views
            ready = self._views.setdefault(view, begun + self.costs.view)
            self.outcome.starting += max(0.0, ready - begun)
            begun = max(begun, ready)
        name = _name(trial.asked)
        seconds = self.costs.epoch[name]
        spread = max(0.2, 1 + self.costs.scatter * self._random.standard_normal())
        kept = min(self.costs.checkpoint.get(name, 0.0), SHARE * seconds)
        seconds *= spread
        self.outcome.training += seconds
        self.outcome.starting += kept
        self._timeline.add(begun + seconds + kept + self.costs.report, (trial, seconds))

    def _take(self, trial: Trial, arrival: float, seconds: float) -> None:
        """Take the result of an epoch, and say whether its trial goes on."""
        self._serve(arrival, self.costs.event + self.costs.of_slot * len(self._drawn))
        accuracies = self._drawn[trial.asked["trial_id"]]
        figures = {
            "epoch": trial.epoch + 1,
            "validation_accuracy": accuracies[trial.epoch],
            "best_validation_accuracy": max(accuracies[: trial.epoch + 1]),
            "seconds": seconds,
        }
        self._append(trial.event("epoch", **figures))
        self.outcome.epochs += 1
        self.outcome.waiting += self.now - arrival + self.costs.report
        if (end := self.search.end(trial)) is None:
            self._train(trial, self.now)
            return
        self._append(trial.ended(*end))
        self._ended[cell_of(trial.asked)] += 1
        if end[0] == "stopped" and self.search.stopping.verdict(trial.last) is not None:
            self.outcome.stopped += 1
            self.outcome.saved += len(accuracies) - trial.epoch
        del self._drawn[trial.asked["trial_id"]]
        last = self.costs.checkpoint.get(_name(trial.asked), 0.0)
        self.outcome.starting += last
        self.outcome.wall = max(self.outcome.wall, self.now + last)
        self._free.append(self.now + last)
        self._fill()


def _name(event: Event) -> str:
    return "-".join(cell_of(event))
