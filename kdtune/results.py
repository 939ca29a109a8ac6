"""A sweep's folder: its append-only log, which is the truth, and the files made from it.

Nothing else knows the folder's layout or the log's form. An event is one JSON object a line:

Every event has a ``time``, in seconds since 1970.

* ``sweep``: opened, with its complete settings, data, teacher and versions;
* ``view``: a trial builds, has built or waits for what all need: see `kdtune.cache.Tell`;
* ``asked``: a trial was proposed, with its settings;
* ``epoch``: a trial finished an epoch, with every figure;
* ``ended``: a trial ended, with its `STATES` entry and the reason.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from kdtune.errors import UserError

Event = dict[str, Any]

Cell = tuple[str, str]
"""(method, model): what is searched with a study, rungs and a share of the budget of its own."""


def cell_of(event: Event) -> Cell:
    """The cell that an event is about."""
    return event["method"], event["model"]


RESULTS = Path("results")
"""Every sweep has its folder here, under the working directory."""

STATES = ("finished", "stopped", "diverged", "crashed")
"""How a trial ends: all epochs; stopped early; a non-finite loss; an error."""


class SweepFolder:
    """Paths of a sweep's files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def create(self) -> None:
        """Make the folder; of several sweeps that want the name at once, one succeeds.

        Raises:
            UserError: it exists.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            self.refuse_existing()

    def refuse_existing(self) -> None:
        """Raise a `UserError` if the folder exists."""
        if self.path.exists():
            raise UserError(f"{self.path} exists already; give another name, or remove it.")

    @property
    def sweep(self) -> Path:
        """The sweep's settings, complete: ``kdtune sweep`` runs it again."""
        return self.path / "sweep.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """All that happened; everything else can be made from it again."""
        return self.path / "log.jsonl"

    @property
    def leaderboard(self) -> Path:
        """One row a cell."""
        return self.path / "leaderboard.csv"

    @property
    def ray(self) -> Path:
        """Ray Tune's own folder, with TensorBoard events; never read back."""
        return self.path / "ray"

    def table(self, name: str, suffix: str) -> Path:
        """The table `name` (``trials``, ``epochs``) as ``.parquet`` or ``.csv``."""
        return self.path / f"{name}{suffix}"

    def best(self, method: str, model: str) -> Path:
        """The best configuration of a cell."""
        return self.path / "best" / f"{method}-{model}.yaml"

    def events(self) -> list[Event]:
        """All events so far, also of a sweep that is running.

        Raises:
            UserError: this is no sweep's folder.
        """
        if not self.path.is_dir():
            raise UserError(f"There is no folder {self.path}.")
        if not self.log.is_file():
            raise UserError(
                f"{self.path} is not the folder of a sweep: it has no {self.log.name}."
            )
        with open(self.log, "rb") as file:
            return list(_whole_lines(file.read(), self.log))


def _whole_lines(content: bytes, path: Path) -> Iterator[Event]:
    """Parse all lines that end; a torn last line, left by a crash, is passed over."""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
        except ValueError:
            raise UserError(f"{path} is damaged: line {number} is not JSON.") from None
        yield event


class Log:
    """The log, open for appending: an event is on the disk before anything acts on it.

    To be used in a ``with``.

    Args:
        path: the file; a torn last line is cut off.
        folds: functions that take every event after it was written, in this order: studies,
            rungs, progress. On open each is given the events that are there already, so that what
            they hold is the same as if they had been there all the time.
    """

    def __init__(self, path: Path, folds: Sequence[Callable[[Event], None]]):
        self._folds = folds
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
        for event in _whole_lines(content, path):
            self._fold(event)

    def append(self, event: Event) -> None:
        """Write an event, then hand it to the folds.

        Raises:
            ValueError: the event holds a value that JSON has no form for, NaN included.
        """
        event = {**event, "time": round(time.time(), 3)}
        self._file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._fold(event)

    def _fold(self, event: Event) -> None:
        for fold in self._folds:
            fold(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
