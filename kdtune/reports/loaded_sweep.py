"""A sweep with its logs and tables, read once from its folder."""

import time
from pathlib import Path

from kdtune.log.events import Completed
from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables.all_tables import collect_tables, load_sweep_tables
from kdtune.reports.tables.comparison import select_main_pair
from kdtune.reports.tables.learning import describe_chance, learning_sentences
from kdtune.reports.tables.settings import collect_distributions
from kdtune.reports.tables.ship import NO_LIMITS, ShipLimits


class LoadedSweep:
    """Logs and tables of a sweep at the moment of reading.

    Args:
        path: the sweep's folder.
        limits: what the student to ship may cost.
    """

    def __init__(self, path: Path, limits: ShipLimits = NO_LIMITS):
        self.name, self.folder = str(path), SweepSnapshot(path)
        self.path = self.folder.path
        self.ship_limits = limits
        self.events = self.folder.load_events()
        self.confirm_events = self.folder.load_confirm_events()
        self.opening_events = self.folder.load_opening_events()
        self.config = self.opening_events[-1].config
        self.tables = load_sweep_tables(self.folder, limits)
        self.tested_cells = self.tables.leaderboard.dropna(subset="test_accuracy_percent")
        self.main_pair = select_main_pair(self.tables.comparison)
        self.named_tables = collect_tables(self.folder, self.tables)
        self.spaces = collect_distributions(self.events)

    def command(self, subcommand: str) -> str:
        """Return a command about this sweep, for a shell."""
        return self.folder.command(subcommand)

    def header_facts(self) -> dict[str, str]:
        """Return facts about the sweep by label, for the head of the page."""
        data, teacher = self.opening_events[0].data, self.opening_events[0].teacher
        images = data.train_images, data.validation_images, data.test_images
        last_event_time = max(log[-1].time for log in (self.events, self.confirm_events) if log)
        classes = ", ".join(data.classes[:6]) + ", …" * (len(data.classes) > 6)
        counts = [f"{count:,}" if count else "none" for count in images]
        openings = self.folder.load_confirm_openings()
        confirmed = [f"best {o.top} of each cell, {o.seeds} seeds each" for o in openings]
        return {
            "last event": time.strftime("%Y-%m-%d %H:%M", time.localtime(last_event_time)),
            "state": self.describe_state(),
            "images (train / validation / test)": " / ".join(counts),
            "classes": f"{len(data.classes)}: {classes}",
            "metric": self.opening_events[0].metric.replace("_", " "),
            "teacher": teacher.describe() if teacher else "none",
            "trials started in each cell": self._describe_trial_counts(),
            "confirmed": confirmed[-1] if confirmed else "no",
        }

    def learning_notes(self) -> list[str]:
        """Return what was not learned, and what guessing reaches, in sentences."""
        return [*learning_sentences(self.events), describe_chance(self.opening_events[0])]

    def _describe_trial_counts(self) -> str:
        counts = self.tables.leaderboard["trials_started"]
        if counts.empty:
            return "none yet"
        text = " to ".join(map(str, dict.fromkeys([counts.min(), counts.max()])))
        planned = self.config.get("trials")
        return f"{text} (of {planned})" if planned else text

    def summary(self) -> str:
        """Return name, size and state in a line."""
        trials, cells = len(self.tables.trials), len(self.tables.cell_results)
        return f"{self.name}: {trials} trials in {cells} cells; {self.describe_state()}"

    def describe_state(self) -> str:
        """Return how far the sweep is, and the command that continues it."""
        if self.folder.is_locked():
            return "running"
        if not isinstance(self.events[-1], Completed):
            return f"partial: the search was interrupted; to continue: `{self.command('resume')}`"
        if not self.confirm_events and not self.opening_events[-1].data.test_images:
            return "searched; without test images it cannot be confirmed"
        if not self.confirm_events:
            return f"searched, not confirmed; next: `{self.command('confirm')}`"
        if not isinstance(self.confirm_events[-1], Completed):
            command = self.command("confirm")
            return f"partial: the confirmation was interrupted; to continue: `{command}`"
        return "complete"
