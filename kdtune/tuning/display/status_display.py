"""What a person is told while trials run: a line an event, and how far all cells are."""

from collections import deque

from kdtune.log.events import Event, cell_of
from kdtune.reports.tables.several_sweeps import settings_in_short
from kdtune.storage.array_cache import describe
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.display.progress import Best, Goal, Progress
from kdtune.tuning.display.screen import DETAIL, NEWS, TROUBLE, Screen
from kdtune.tuning.scheduling.policy import Decisions
from kdtune.units import duration

LATEST = 2
"""Ends of trials that stand below the cells."""

ABOVE = 8 + LATEST
"""Lines of the screen that are left to the lines of events, and to what is not a cell."""

LEAST = 3
"""Cells that are shown however small the screen is."""


class Display:
    """Tells a person of every event that matters, and draws the cells; a fold over the log.

    What was in the log before `begin` is not told.

    Args:
        progress: has folded what is given here.
        decisions: which trials have a process, and whether all is to stop.
        screen: where words go.
        what: what trials are called, for people.
    """

    def __init__(self, progress: Progress, decisions: Decisions, screen: Screen, what: str):
        self.progress, self.decisions, self.screen = progress, decisions, screen
        self.what = what
        self.goal: Goal | None = None
        self.slots: Slots | None = None
        self._latest: deque[str] = deque(maxlen=LATEST)

    def begin(self, goal: Goal, slots: Slots) -> None:
        """Tell from now on.

        Args:
            goal: what is to be done.
            slots: where trials run.
        """
        self.goal, self.slots = goal, slots
        self.progress.begin()

    def fold(self, event: Event) -> None:
        """Take an event of the log; tell it, if it matters to people."""
        if self.goal is None:
            return
        kind = event["event"]
        if kind == "view":
            self.screen.say(f"{event['trial_id']}: {describe(event)}", NEWS)
        elif kind == "ended":
            failed = event["state"] in ("diverged", "crashed")
            self._latest.append(self._end(event, self.goal))
            self.screen.say(self._latest[-1], TROUBLE if failed else DETAIL)
        elif kind == "restarted":
            text = f"{event['trial_id']}: {event['reason']}; it is begun again"
            self.screen.say(text, TROUBLE)
        elif kind == "exhausted":
            self.screen.say(f"{event['method']}-{event['model']}: {event['reason']}", NEWS)

    def _end(self, event: Event, goal: Goal) -> str:
        figures, best = "", self.progress.cell(cell_of(event)).best
        if event["best_validation_accuracy"] is not None:
            figures = f" {100 * event['best_validation_accuracy']:.2f} %"
        if figures and best is not None:
            mean = "best" if best.runs is None else "best mean"
            figures += f" (cell's {mean} {100 * best.accuracy:.2f} %)"
        return (
            f"[{self._ended(goal)}] {event['trial_id']} {event['state']}{figures}: "
            f"{event['reason']}"
        )

    def _ended(self, goal: Goal) -> str:
        totals = [self.progress.total(*wanted) for wanted in goal.trials.items()]
        known = [total for total in totals if total is not None]
        return f"{self.progress.ended}{_of(sum(known) if len(known) == len(totals) else None)}"

    def summary(self) -> str | None:
        """How far all is, in a line; None if nothing is under way."""
        if self.goal is None or not self.progress.running:
            return None
        return (
            f"{self._ended(self.goal)} {self.what} have ended, {self.progress.running} under way; "
            f"{self._pace()}; {self._time(self.goal)}"
        )

    def frame(self, width: int, height: int) -> list[str]:
        """The cells under a line of headings, two lines about all of them, and the latest ends.

        Of more cells than there is room for, those stay that are under way or were so last.

        Args:
            width: of the screen, in characters; what is longer is cut off, settings first.
            height: of the screen, in lines.
        """
        if self.goal is None:
            return []
        cells = {cell: self.progress.cell(cell) for cell in self.goal.trials}
        room = max(LEAST, height - ABOVE)
        ranked = sorted(cells, key=lambda c: (cells[c].states["running"] == 0, -cells[c].latest))
        shown = set(ranked[:room])
        confirms = self.what == "runs"
        rows = [
            ["cell", "ended", "mean %" if confirms else "best %", "running", "finished"]
            + [*([] if confirms else ["stopped"]), "failed", "of" if confirms else "settings"]
        ]
        for cell, own in cells.items():
            total = self.progress.total(cell, self.goal.trials[cell])
            best, of_best = _of_best(own.best)
            states = ["running", "finished", *([] if confirms else ["stopped"])]
            counts = map(str, [*(own.states[state] for state in states), own.failed])
            rows.append(["-".join(cell), f"{own.ended}{_of(total)}", best, *counts, of_best])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows = [rows[0], *(r for cell, r in zip(cells, rows[1:], strict=True) if cell in shown)]
        lines = [_line(row, widths) for row in rows]
        if more := len(cells) - len(shown):
            lines.append(f"… and {more} more cell{'s' * (more > 1)}")
        lines += [self._pace(), self._time(self.goal)]
        if height > ABOVE + LEAST:
            lines += self._latest
        return [line if len(line) < width else f"{line[: width - 2]}…" for line in lines]

    def _pace(self) -> str:
        epochs, seconds = self.progress.rate()
        pace = "no epoch yet" if not self.progress.epochs else "no epoch since it goes on"
        if epochs and seconds > 0:
            pace = f"{_rate(epochs / seconds)} over the last {duration(seconds)}"
        if self.slots is None:
            return pace
        self.slots.settle(self.decisions.under_way.at_work)
        return f"{pace}; {self.slots.used}/{self.slots.count} slots in use"

    def _time(self, goal: Goal) -> str:
        spent = f"{duration(self.progress.stopwatch.seconds)} spent"
        slots = max(1, self.slots.count) if self.slots is not None else 1
        if self.decisions.interrupts.requested:
            return f"{spent}; it stops after the epochs under way"
        seconds, basis = self.progress.left(goal, slots, self.what.removesuffix("s"))
        if seconds == 0 and not self.progress.running:
            return spent
        if seconds is None:
            return f"{spent}; time left unknown until {basis}"
        return f"{spent}; about {duration(_roughly(seconds))} left, {basis}"


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"


def _of_best(best: Best | None) -> tuple[str, str]:
    if best is None:
        return "", ""
    runs = "" if best.runs is None else f"{best.trial_id}, {best.runs} run{'s' * (best.runs > 1)}"
    return f"{100 * best.accuracy:.2f}", runs or settings_in_short(best.parameters)


def _line(row: list[str], widths: list[int]) -> str:
    """Numbers are aligned to the right; the first and the last column are words."""
    name, *numbers, last = row
    middle = (f"{text:>{size}}" for text, size in zip(numbers, widths[1:-1], strict=True))
    return " ".join([f"{name:<{widths[0]}}", *middle, last]).rstrip()


def _rate(per_second: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.3g} epochs/{unit}"
    return f"{per_second * 3600:.3g} epochs/h"


def _roughly(seconds: float) -> float:
    """As exact as a guess can be: to the minute, if it is more than two."""
    return seconds if seconds < 120 else 60 * round(seconds / 60)
