"""Progress and display that fold the events of a sweep, each at a second of its session."""

import io
from types import SimpleNamespace

from event_logs import OPENING_FIELDS, make_metrics, make_trial_config
from rich.console import Console

from kdtune.log.events import (
    CachePlan,
    CacheUpdated,
    Completed,
    ConfirmStarted,
    EpochFinished,
    SweepResumed,
    SweepStarted,
    TrialEnded,
    TrialProposed,
)
from kdtune.storage.array_cache import CacheProgress
from kdtune.tuning.cluster.placement import Allocation, Node, ResourceRequest, Slots
from kdtune.tuning.display.progress import Goal, Progress
from kdtune.tuning.display.screen import LineKind
from kdtune.tuning.display.status_display import StatusDisplay

IMAGES = CacheProgress(
    content="images", label="9 images", state="cached", num_bytes=10**9, seconds=0.1
)
TARGETS = CacheProgress(
    content="targets", label="targets", state="built", num_bytes=10**9, seconds=2.5
)
AT, KD = ("at", "A"), ("kd", "B")


class Told:
    """Progress that folds events, which happen at `now`."""

    def __init__(self, *prepared, kind=SweepStarted):
        self.now, self.session_start, self.events = 0.0, 0.0, []
        self.progress = Progress(lambda: self.now)
        self.open(*prepared, kind=kind)

    def open(self, *prepared, kind=SweepStarted):
        self.session_start = self.now
        cache = CachePlan(methods=(), augment_views=0, num_bytes=0, prepared=prepared)
        special = {"spaces": {}}
        if kind is ConfirmStarted:
            special = {"candidates": (), "seeds": 1, "top": 1}
        self.tell(kind, **{**OPENING_FIELDS, "cache": cache}, config={}, **special)

    def tell(self, kind, trial_id=None, cell=AT, **fields):
        if kind not in (SweepStarted, SweepResumed, ConfirmStarted, CacheUpdated, Completed):
            fields |= {"method": cell[0], "model": cell[1]}
        if trial_id is not None:
            fields |= {"trial_id": trial_id}
        self.events.append(kind(session_seconds=self.now - self.session_start, **fields))
        self.progress.fold(self.events[-1])

    def propose(self, trial_id, cell=AT, candidate=None, params=None, origin="sampler", **config):
        config = make_trial_config(*cell, **{"teacher_model": "t.pth", "cache_gb": 20, **config})
        self.tell(
            TrialProposed, trial_id, cell, number=0, origin=origin, params=params or {},
            distributions={}, config=config, candidate=candidate,
        )  # fmt: skip

    def epoch(self, trial_id, accuracy=0.5, cell=AT, seconds=1e9):
        metrics = make_metrics(1, accuracy, seconds=seconds)
        self.tell(EpochFinished, trial_id, cell, **dict(metrics))

    def end(self, trial_id, state="finished", accuracy=0.5, cell=AT, reason="why"):
        self.tell(
            TrialEnded, trial_id, cell, state=state, reason=reason, epochs=1,
            best_validation_accuracy=accuracy,
        )  # fmt: skip

    def trial(
        self, trial_id, seconds=1.0, cell=AT, state="finished", accuracy=0.5, reason="why",
        **config,
    ):  # fmt: skip
        """Add a whole trial of one epoch."""
        self.propose(trial_id, cell, **config)
        self.now += seconds
        self.epoch(trial_id, accuracy, cell)
        self.end(trial_id, state, accuracy, cell, reason)


def two_slots():
    """Return slots with two running trials."""
    slots = Slots({"A": ResourceRequest(1)}, lambda: [Node("n", 2)])
    for trial_id in (1, 2):
        slots.allocations[trial_id] = Allocation("n", 1, 1, 0.0)
    return slots


class Shown(Told):
    """Progress with a display; `said` has the lines as (kind, text)."""

    def __init__(self, trials, noun="trials", kind=SweepStarted, started=True):
        self.said = []
        self.policy = SimpleNamespace(
            active_trials=SimpleNamespace(running={1, 2}),
            interrupts=SimpleNamespace(stop_requested=False),
            sweep=SimpleNamespace(balance_by="trials"),
        )
        self.display = None
        super().__init__(kind=kind)
        screen = SimpleNamespace(
            say=lambda text, kind=LineKind.INFO: self.said.append((kind, text)),
            warn=lambda text: self.said.append((LineKind.WARNING, text)),
        )
        self.display = StatusDisplay(self.progress, self.policy, screen, noun)
        self.display.fold(self.events[0])
        self.goal = Goal(trials)
        if started:
            self.display.start(self.goal, two_slots())

    def tell(self, kind, trial_id=None, cell=AT, **fields):
        super().tell(kind, trial_id, cell, **fields)
        if self.display is not None:
            self.display.fold(self.events[-1])

    def frame(self, width=80, height=24):
        console = Console(width=width, height=height, file=io.StringIO())
        with console.capture() as capture:
            console.print(self.display.render(height))
        return [line.rstrip() for line in capture.get().splitlines()]
