"""A sweep's folder with all that is made from it, read once, and what was run in a few words."""

import shlex
import time
from functools import cached_property
from pathlib import Path

import pandas as pd

from kdtune.log.folder import Snapshot
from kdtune.reports.tables.all_tables import every_table, tables_of
from kdtune.reports.tables.comparison import first_pair
from kdtune.reports.tables.settings import distributions


class Sweep:
    """What page and notebooks take from a sweep's folder, as it was when it was read."""

    def __init__(self, path: Path):
        self.path = path
        self.folder = Snapshot(path)
        self.events = self.folder.events()
        self.confirmed = self.folder.confirm_events()
        self.opened = self.folder.opened()
        self.tables = tables_of(self.folder)
        self.known = every_table(self.folder, self.tables)
        self.spaces = distributions(self.events)

    @property
    def name(self) -> str:
        """For headings."""
        return str(self.path)

    @property
    def config(self) -> dict:
        """Settings of the sweep when it was opened last."""
        return self.opened[-1]["config"]

    @property
    def tested(self) -> pd.DataFrame:
        """The cells whose test images were read."""
        return self.tables.leaderboard.dropna(subset="test_accuracy_percent")

    @cached_property
    def pair(self) -> pd.DataFrame:
        """See `kdtune.reports.tables.comparison.first_pair`."""
        return first_pair(self.tables.comparison)

    def command(self, verb: str) -> str:
        """A command about this sweep."""
        return f"kdtune {verb} {shlex.quote(str(self.path))}"

    def facts(self) -> dict[str, str]:
        """What was run, for the head of the page."""
        data, teacher = self.opened[0]["data"], self.opened[0].get("teacher")
        names = data["classes"]
        started = self.tables.leaderboard["trials_started"]
        counts = sorted({*started.tolist()})
        asked = [event for event in self.confirmed if event["event"] == "confirm"]
        images = [data.get(f"{split}_images") for split in ("train", "validation", "test")]
        taught = "none"
        if teacher:
            taught = str(teacher.get("model", ""))
            for split in ("validation", "test"):
                if teacher.get(f"{split}_accuracy") is not None:
                    taught += f", {split} {100 * teacher[f'{split}_accuracy']:.1f} %"
        last = max(log[-1]["time"] for log in (self.events, self.confirmed) if log)
        planned = self.config.get("trials")
        return {
            "last event": time.strftime("%Y-%m-%d %H:%M", time.localtime(last)),
            "state": self.state(),
            "images (train / validation / test)": " / ".join(
                f"{count:,}" if count else "none" for count in images
            ),
            "classes": f"{len(names)}: {', '.join(names[:6])}{', …' * (len(names) > 6)}",
            "teacher": taught,
            "trials begun in each cell": " to ".join(map(str, [*counts[:1], *counts[1:][-1:]]))
            + (f" (of {planned})" if planned else "")
            if counts
            else "none yet",
            "confirmed": (
                f"best {asked[-1]['top']} of each cell, {asked[-1]['seeds']} seeds each"
                if asked and "top" in asked[-1]
                else "no"
                if not asked
                else "yes"
            ),
        }

    def in_short(self) -> str:
        """What it is, in a line."""
        trials, cells = len(self.tables.trials), len(self.tables.cells)
        return f"{self.name}: {trials} trials in {cells} cells; {self.state()}"

    def state(self) -> str:
        """How far it is, in words."""
        if self.folder.is_held():
            return "running"
        if self.events[-1]["event"] != "complete":
            return f"partial: the search was interrupted; to go on: `{self.command('resume')}`"
        if not self.confirmed and not self.opened[-1]["data"].get("test_images"):
            return "searched; without test images it cannot be confirmed"
        if not self.confirmed:
            return f"searched, not confirmed; next: `{self.command('confirm')}`"
        if self.confirmed[-1]["event"] != "complete":
            return f"partial: confirming was interrupted; to go on: `{self.command('confirm')}`"
        return "complete"
