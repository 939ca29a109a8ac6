"""Lines about events and a live table of all cells, shown while trials run."""

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kdtune.log import events
from kdtune.log.events import FAILED_STATES, Cell, TrialState
from kdtune.reports.tables.learning import Finding, LearningSigns
from kdtune.reports.tables.several_sweeps import format_settings
from kdtune.runtime.console import printable
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.display.progress import Goal, Progress
from kdtune.tuning.display.screen import DETAIL, WARNING, Display, Screen
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.units import format_duration

LOST_GPU = re.compile(r"lost the GPU (.+?): ")
"""Reason of a `GpuLostError`; the group is the GPU."""

MAX_RECENT_ENDS = 2
"""Maximum number of trial ends below the table."""

MIN_TRIALS_TO_JUDGE = 2
"""Number of ended trials of a cell before the display says that it learns nothing."""

RESERVED_ROWS, MIN_CELL_ROWS = 8 + MAX_RECENT_ENDS, 3
"""Rows of the screen that are kept for everything but cells; minimum number of cells shown."""


@dataclass
class StatusDisplay(Display):
    """Display of events and of the progress of all cells; a fold over the log."""

    progress: Progress  # must fold each event before this does
    policy: SchedulingPolicy
    screen: Screen
    noun: str  # plural of what trials are called

    def __post_init__(self) -> None:
        self._goal: Goal | None = None
        self._slots: Slots  # like the goal, from `start` on
        self._signs, self._signs_said = LearningSigns(), set[Finding]()
        self._devices: dict[str, None] = {}  # in the order of their first epochs
        self._trials_by_lost_gpu: defaultdict[str, set[str]] = defaultdict(set)
        self._recent_ends: deque[str] = deque(maxlen=MAX_RECENT_ENDS)

    def start(self, goal: Goal, slots: Slots) -> None:
        """Report events from now on.

        Args:
            goal: limits for the display.
            slots: where trials run.
        """
        self._goal, self._slots = goal, slots
        self.progress.reset_rate()
        self._signs_said.update(self._signs.findings(MIN_TRIALS_TO_JUDGE))

    def fold(self, event: events.Event) -> None:
        """Report an event of the log."""
        if self.noun == "trials":
            self._signs.fold(event)
        match event:
            case events.EpochFinished():
                self._compare_devices(event.device)
            case events.TrialRestarted() | events.TrialEnded():
                self._count_lost_gpu(event)
        if self._goal is None:
            return
        match event:
            case events.CacheUpdated():
                self.screen.say(f"{event.trial_id}: {event.progress.describe()}")
            case events.TrialEnded():
                kind = WARNING if event.state in FAILED_STATES else DETAIL
                self._recent_ends.append(self._format_end(event))
                self.screen.say(self._recent_ends[-1], kind)
                self._say_new_signs(MIN_TRIALS_TO_JUDGE)
            case events.TrialRestarted():
                self.screen.warn(f"{event.trial_id}: {event.reason}; restarted")
            case events.SpaceExhausted():
                self.screen.say(f"{event.cell_name}: {event.reason}")
            case events.Completed():
                self._say_new_signs(1)

    def _compare_devices(self, device: str) -> None:
        """Say once that trials now train on another device than the earlier ones."""
        earlier = ", ".join(self._devices)
        if self._goal is not None and earlier and device not in self._devices:
            text = f"trials trained on {earlier} before, and train on {device} now: their results "
            text += "may differ a little, and their seconds do"
            if self.policy.sweep.balance_by == "seconds":
                text += "; balance_by is seconds, so cells on slower devices get fewer epochs"
            self.screen.warn(text)
        self._devices[device] = None

    def _count_lost_gpu(self, event: events.TrialRestarted | events.TrialEnded) -> None:
        """Say once that two trials lost the same GPU."""
        if (lost := LOST_GPU.search(event.reason)) is None:
            return
        trials = self._trials_by_lost_gpu[lost[1]]
        if event.trial_id not in trials:
            trials.add(event.trial_id)
            if self._goal is not None and len(trials) == 2:
                names = " and ".join(sorted(trials))
                self.screen.warn(
                    f"{names} lost the GPU {lost[1]}: if trials on other GPUs do not fail, it may "
                    "be faulty, and can be left out with CUDA_VISIBLE_DEVICES"
                )

    def _say_new_signs(self, min_trials: int) -> None:
        """Say once what the trials of a cell have not learned."""
        for finding in self._signs.findings(min_trials):
            if finding not in self._signs_said:
                self._signs_said.add(finding)
                sign, cell = finding
                self.screen.warn(self._signs.describe(sign, [cell]))

    def summary(self) -> str | None:
        """Return a line about all cells; None if no trial runs."""
        if self._goal is None or not self.progress.num_running:
            return None
        counts = f"{self._format_ended_count()} {self.noun} have ended, "
        counts += f"{self.progress.num_running} running"
        return f"{counts}; {self._format_pace()}; {self._format_time(self._goal)}"

    def render(self, height: int) -> Group:
        """Return the table of cells, the pace, the time left and the latest ends.

        Of too many cells, those with running trials and then the latest ones are shown.
        """
        if self._goal is None:
            return Group()
        cells, progress = list(self._goal.trials_per_cell), self.progress
        running = {cell: progress.state_counts(cell)[TrialState.RUNNING] > 0 for cell in cells}
        latest = sorted(cells, key=lambda cell: (not running[cell], -progress.updated_at(cell)))
        shown = set(latest[: max(MIN_CELL_ROWS, height - RESERVED_ROWS)])
        score, states, last = "mean %", [TrialState.RUNNING, TrialState.FINISHED], "of"
        if self.noun == "trials":
            score, states, last = "best %", [*states, TrialState.STOPPED], "settings"
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("cell", no_wrap=True)
        for heading in ("ended", score, *states, "failed"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column(last)  # the only one that wraps, so rich shortens it first
        for cell in filter(shown.__contains__, cells):
            table.add_row(*self._format_cell(cell, states))
        lines = [self._format_pace(), self._format_time(self._goal)]
        if num_hidden := len(cells) - len(shown):
            lines.insert(0, f"… and {num_hidden} more cell{'s' * (num_hidden > 1)}")
        if height > RESERVED_ROWS + MIN_CELL_ROWS:
            lines += self._recent_ends
        return Group(table, *map(_one_line, lines))

    def _format_cell(self, cell: Cell, states: Sequence[TrialState]) -> Iterator[str | Text]:
        counts, leader = self.progress.state_counts(cell), self.progress.leader(cell)
        yield "-".join(cell)
        yield self._format_ended_count(cell)
        yield "" if leader is None else f"{100 * leader.accuracy:.2f}"
        yield from (str(counts[state]) for state in states)
        yield str(sum(counts[state] for state in FAILED_STATES))
        if leader is None:
            yield ""
        elif leader.num_runs is None:
            yield _one_line(format_settings(leader.params))
        else:
            runs = f"{leader.num_runs} run{'s' * (leader.num_runs > 1)}"
            yield _one_line(f"{leader.trial_id}, {runs}")

    def _format_end(self, event: events.TrialEnded) -> str:
        score, leader = "", self.progress.leader(event.cell)
        if event.best_validation_accuracy is not None:
            score = f" {100 * event.best_validation_accuracy:.2f} %"
            if leader is not None:
                best = "best" if leader.num_runs is None else "best mean"
                score += f" (cell's {best} {100 * leader.accuracy:.2f} %)"
        count = self._format_ended_count()
        trial = self.progress.describe_trial(event)
        return f"[{count}] {trial} {event.state}{score}: {event.reason}"

    def _format_ended_count(self, *cells: Cell) -> str:
        """Return how many of how many trials have ended, of some cells or of all."""
        limits = dict(self._goal.trials_per_cell) if self._goal is not None else {}
        exhausted = self.progress.exhausted_cells
        counts = {cell: self.progress.state_counts(cell) for cell in cells or limits}
        ended = sum(count.total() - count[TrialState.RUNNING] for count in counts.values())
        limits |= {cell: counts[cell].total() for cell in counts.keys() & exhausted}
        known = [total for cell in counts if (total := limits[cell]) is not None]
        return f"{ended}/{sum(known)}" if len(known) == len(counts) else str(ended)

    def _format_pace(self) -> str:
        epochs, seconds = self.progress.epoch_rate()
        if epochs and seconds > 0:
            pace = f"{_format_rate(epochs / seconds)} over the last {format_duration(seconds)}"
        else:
            pace = "no epoch since it resumed" if self.progress.epochs_trained else "no epoch yet"
        self._slots.release_finished(self.policy.active_trials.running)
        return f"{pace}; {self._slots.in_use}/{self._slots.count} slots in use"

    def _format_time(self, goal: Goal) -> str:
        elapsed = f"{format_duration(self.progress.stopwatch.elapsed_seconds)} spent"
        if self.policy.interrupts.stop_requested:
            return f"{elapsed}; it stops after the running epochs"
        slots, noun = max(1, self._slots.count), self.noun.removesuffix("s")
        seconds, basis = self.progress.estimate_time_left(goal, slots, noun)
        if seconds is None:
            return f"{elapsed}; time left unknown until {basis}"
        if seconds == 0 and not self.progress.num_running:
            return elapsed
        rounded = seconds if seconds < 120 else 60 * round(seconds / 60)
        return f"{elapsed}; about {format_duration(rounded)} left, {basis}"


def _one_line(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def _format_rate(per_second: float) -> str:
    by_unit = {"s": per_second, "min": 60 * per_second, "h": 3600 * per_second}
    unit = next((unit for unit, rate in by_unit.items() if rate >= 1), "h")
    return f"{by_unit[unit]:.3g} epochs/{unit}"
