"""A sweep's folder with all that is made from it, read once, and what was run in a few words."""

import shlex
import time
from functools import cached_property
from pathlib import Path

import pandas as pd

from kdtune.log.events import Completed
from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables.all_tables import collect_tables, load_sweep_tables
from kdtune.reports.tables.comparison import select_main_pair
from kdtune.reports.tables.settings import collect_distributions


class LoadedSweep:
    """What page and notebooks take from a sweep's folder, as it was when it was read."""

    def __init__(self, path: Path):
        self.path = path
        self.folder = SweepSnapshot(path)
        self.events = self.folder.load_events()
        self.confirm_events = self.folder.load_confirm_events()
        self.opening_events = self.folder.load_opening_events()
        self.tables = load_sweep_tables(self.folder)
        self.named_tables = collect_tables(self.folder, self.tables)
        self.spaces = collect_distributions(self.events)

    @property
    def name(self) -> str:
        """For headings."""
        return str(self.path)

    @property
    def config(self) -> dict:
        """Settings of the sweep when it was opened last."""
        return self.opening_events[-1].config

    @property
    def tested_cells(self) -> pd.DataFrame:
        """The cells whose test images were read."""
        return self.tables.leaderboard.dropna(subset="test_accuracy_percent")

    @cached_property
    def main_pair(self) -> pd.DataFrame:
        """See `kdtune.reports.tables.comparison.select_main_pair`."""
        return select_main_pair(self.tables.comparison)

    def command(self, subcommand: str) -> str:
        """A command about this sweep."""
        return f"kdtune {subcommand} {shlex.quote(str(self.path))}"

    def header_facts(self) -> dict[str, str]:
        """What was run, for the head of the page."""
        data, teacher = self.opening_events[0].data, self.opening_events[0].teacher
        classes = data.classes
        trial_counts = self.tables.leaderboard["trials_started"]
        counts = sorted({*trial_counts.tolist()})
        openings = self.folder.load_confirm_openings()
        images = data.train_images, data.validation_images, data.test_images
        teacher_label = "none"
        if teacher:
            teacher_label = teacher.model
            if teacher.validation_accuracy is not None:
                teacher_label += f", validation {100 * teacher.validation_accuracy:.1f} %"
            if teacher.test_accuracy is not None:
                teacher_label += f", test {100 * teacher.test_accuracy:.1f} %"
        last_event_time = max(log[-1].time for log in (self.events, self.confirm_events) if log)
        planned_trials = self.config.get("trials")
        return {
            "last event": time.strftime("%Y-%m-%d %H:%M", time.localtime(last_event_time)),
            "state": self.describe_state(),
            "images (train / validation / test)": " / ".join(
                f"{count:,}" if count else "none" for count in images
            ),
            "classes": f"{len(classes)}: {', '.join(classes[:6])}{', …' * (len(classes) > 6)}",
            "teacher": teacher_label,
            "trials begun in each cell": " to ".join(map(str, [*counts[:1], *counts[1:][-1:]]))
            + (f" (of {planned_trials})" if planned_trials else "")
            if counts
            else "none yet",
            "confirmed": (
                f"best {openings[-1].top} of each cell, {openings[-1].seeds} seeds each"
                if openings
                else "no"
            ),
        }

    def summary(self) -> str:
        """What it is, in a line."""
        trials, cells = len(self.tables.trials), len(self.tables.cell_results)
        return f"{self.name}: {trials} trials in {cells} cells; {self.describe_state()}"

    def describe_state(self) -> str:
        """How far it is, in words."""
        if self.folder.is_locked():
            return "running"
        if not isinstance(self.events[-1], Completed):
            return f"partial: the search was interrupted; to go on: `{self.command('resume')}`"
        if not self.confirm_events and not self.opening_events[-1].data.test_images:
            return "searched; without test images it cannot be confirmed"
        if not self.confirm_events:
            return f"searched, not confirmed; next: `{self.command('confirm')}`"
        if not isinstance(self.confirm_events[-1], Completed):
            return f"partial: confirming was interrupted; to go on: `{self.command('confirm')}`"
        return "complete"
