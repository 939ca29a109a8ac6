"""What a person is told while trials run: a line an event, and how far all cells are."""

from collections import deque

from kdtune.log.events import (
    FAILED_STATES,
    CacheUpdated,
    Event,
    SpaceExhausted,
    TrialEnded,
    TrialRestarted,
    TrialState,
)
from kdtune.reports.tables.several_sweeps import format_settings
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.display.progress import Goal, Leader, Progress
from kdtune.tuning.display.screen import DETAIL, INFO, WARNING, Screen
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.units import format_duration

MAX_RECENT_ENDS = 2
"""Ends of trials that stand below the cells."""

RESERVED_LINES = 8 + MAX_RECENT_ENDS
"""Lines of the screen that are left to the lines of events, and to what is not a cell."""

MIN_CELL_ROWS = 3
"""Cells that are shown however small the screen is."""


class StatusDisplay:
    """Tells a person of every event that matters, and draws the cells; a fold over the log.

    What was in the log before `begin` is not told.

    Args:
        progress: has folded what is given here.
        decisions: which trials have a process, and whether all is to stop.
        screen: where words go.
        what: what trials are called, for people.
    """

    def __init__(self, progress: Progress, policy: SchedulingPolicy, screen: Screen, noun: str):
        self.progress, self.policy, self.screen = progress, policy, screen
        self.noun = noun
        self.goal: Goal | None = None
        self.slots: Slots | None = None
        self._recent_ends: deque[str] = deque(maxlen=MAX_RECENT_ENDS)

    def start(self, goal: Goal, slots: Slots) -> None:
        """Tell from now on.

        Args:
            goal: what is to be done.
            slots: where trials run.
        """
        self.goal, self.slots = goal, slots
        self.progress.reset_rate()

    def fold(self, event: Event) -> None:
        """Take an event of the log; tell it, if it matters to people."""
        if self.goal is None:
            return
        match event:
            case CacheUpdated():
                self.screen.say(f"{event.trial_id}: {event.progress.describe()}", INFO)
            case TrialEnded():
                failed = event.state in FAILED_STATES
                self._recent_ends.append(self._format_end(event, self.goal))
                self.screen.say(self._recent_ends[-1], WARNING if failed else DETAIL)
            case TrialRestarted():
                self.screen.say(f"{event.trial_id}: {event.reason}; restarted", WARNING)
            case SpaceExhausted():
                self.screen.say(f"{'-'.join(event.cell)}: {event.reason}", INFO)

    def _format_end(self, event: TrialEnded, goal: Goal) -> str:
        score, leader = "", self.progress.cell_progress(event.cell).leader
        if event.best_validation_accuracy is not None:
            score = f" {100 * event.best_validation_accuracy:.2f} %"
        if score and leader is not None:
            score_name = "best" if leader.num_runs is None else "best mean"
            score += f" (cell's {score_name} {100 * leader.accuracy:.2f} %)"
        return (
            f"[{self._format_ended_count(goal)}] {event.trial_id} {event.state}{score}: "
            f"{event.reason}"
        )

    def _format_ended_count(self, goal: Goal) -> str:
        totals = [
            self.progress.expected_trials(*cell_and_trials)
            for cell_and_trials in goal.trials_per_cell.items()
        ]
        known_totals = [total for total in totals if total is not None]
        return f"{self.progress.num_ended}{_format_total(sum(known_totals) if len(known_totals) == len(totals) else None)}"

    def summary(self) -> str | None:
        """How far all is, in a line; None if nothing is under way."""
        if self.goal is None or not self.progress.num_running:
            return None
        return (
            f"{self._format_ended_count(self.goal)} {self.noun} have ended, {self.progress.num_running} under way; "
            f"{self._format_pace()}; {self._format_time(self.goal)}"
        )

    def render_lines(self, width: int, height: int) -> list[str]:
        """The cells under a line of headings, two lines about all of them, and the latest ends.

        Of more cells than there is room for, those stay that are under way or were so last.

        Args:
            width: of the screen, in characters; what is longer is cut off, settings first.
            height: of the screen, in lines.
        """
        if self.goal is None:
            return []
        cells = {cell: self.progress.cell_progress(cell) for cell in self.goal.trials_per_cell}
        max_rows = max(MIN_CELL_ROWS, height - RESERVED_LINES)
        ranked_cells = sorted(
            cells,
            key=lambda c: (cells[c].state_counts[TrialState.RUNNING] == 0, -cells[c].updated_at),
        )
        shown_cells = set(ranked_cells[:max_rows])
        is_confirmation = self.noun == "runs"
        rows = [
            ["cell", "ended", "mean %" if is_confirmation else "best %", "running", "finished"]
            + [
                *([] if is_confirmation else ["stopped"]),
                "failed",
                "of" if is_confirmation else "settings",
            ]
        ]
        for cell, cell_progress in cells.items():
            total = self.progress.expected_trials(cell, self.goal.trials_per_cell[cell])
            leader_score, leader_text = _format_leader(cell_progress.leader)
            states = [TrialState.RUNNING, TrialState.FINISHED]
            states += [] if is_confirmation else [TrialState.STOPPED]
            counts = map(
                str,
                [
                    *(cell_progress.state_counts[state] for state in states),
                    cell_progress.num_failed,
                ],
            )
            rows.append(
                [
                    "-".join(cell),
                    f"{cell_progress.num_ended}{_format_total(total)}",
                    leader_score,
                    *counts,
                    leader_text,
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows = [
            rows[0],
            *(r for cell, r in zip(cells, rows[1:], strict=True) if cell in shown_cells),
        ]
        lines = [_format_row(row, widths) for row in rows]
        if num_hidden := len(cells) - len(shown_cells):
            lines.append(f"… and {num_hidden} more cell{'s' * (num_hidden > 1)}")
        lines += [self._format_pace(), self._format_time(self.goal)]
        if height > RESERVED_LINES + MIN_CELL_ROWS:
            lines += self._recent_ends
        return [line if len(line) < width else f"{line[: width - 2]}…" for line in lines]

    def _format_pace(self) -> str:
        epochs, seconds = self.progress.epoch_rate()
        pace = "no epoch yet" if not self.progress.epochs_trained else "no epoch since it goes on"
        if epochs and seconds > 0:
            pace = f"{_format_rate(epochs / seconds)} over the last {format_duration(seconds)}"
        if self.slots is None:
            return pace
        self.slots.release_finished(self.policy.active_trials.running)
        return f"{pace}; {self.slots.in_use}/{self.slots.count} slots in use"

    def _format_time(self, goal: Goal) -> str:
        elapsed = f"{format_duration(self.progress.stopwatch.elapsed_seconds)} spent"
        num_slots = max(1, self.slots.count) if self.slots is not None else 1
        if self.policy.interrupts.stop_requested:
            return f"{elapsed}; it stops after the epochs under way"
        seconds, basis = self.progress.estimate_time_left(
            goal, num_slots, self.noun.removesuffix("s")
        )
        if seconds == 0 and not self.progress.num_running:
            return elapsed
        if seconds is None:
            return f"{elapsed}; time left unknown until {basis}"
        return f"{elapsed}; about {format_duration(_round_estimate(seconds))} left, {basis}"


def _format_total(total: int | None) -> str:
    return "" if total is None else f"/{total}"


def _format_leader(leader: Leader | None) -> tuple[str, str]:
    if leader is None:
        return "", ""
    runs = (
        ""
        if leader.num_runs is None
        else f"{leader.trial_id}, {leader.num_runs} run{'s' * (leader.num_runs > 1)}"
    )
    return f"{100 * leader.accuracy:.2f}", runs or format_settings(leader.params)


def _format_row(row: list[str], widths: list[int]) -> str:
    """Numbers are aligned to the right; the first and the last column are words."""
    first, *numbers, last = row
    middle = (f"{text:>{size}}" for text, size in zip(numbers, widths[1:-1], strict=True))
    return " ".join([f"{first:<{widths[0]}}", *middle, last]).rstrip()


def _format_rate(per_second: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.3g} epochs/{unit}"
    return f"{per_second * 3600:.3g} epochs/h"


def _round_estimate(seconds: float) -> float:
    """As exact as a guess can be: to the minute, if it is more than two."""
    return seconds if seconds < 120 else 60 * round(seconds / 60)
