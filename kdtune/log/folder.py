"""A sweep's folder: its logs, which are the truth, and the files made from them.

There are two logs: of the search, and, once there is one, of its confirmation, so nothing that is
learned in this can have a part in that. Nothing else knows the folder's layout.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock, Timeout

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import file_stem
from kdtune.errors import UserError
from kdtune.log.events import Event, read_events
from kdtune.runtime.console import shown
from kdtune.storage.files import room_for

OF_VERDICT = ("top", "seeds", "min_difference")
"""Settings that a confirmation is made of."""

RESULTS = Path("results")
"""Every sweep has its folder here, under the working directory."""


class SweepFolder:
    """Paths of a sweep's files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.sweep = self.path / "sweep.yaml"
        """The sweep's settings, complete: ``kdtune sweep`` runs it again."""
        self.environment = self.path / "environment.json"
        """Versions and machine."""
        self.plan = self.path / "plan.json"
        """What was planned before it began, if it was."""
        self.log = self.path / "log.jsonl"
        """All that happened; everything else can be made from it again."""
        self.confirm_log = self.path / "confirm.jsonl"
        """All that happened when the sweep was confirmed."""
        self.confirmed = self.path / "confirm"
        """Networks of confirmed runs, ``.pth``, and what they say to the test images, ``.npz``."""
        self.test_labels = self.confirmed / "test.npz"
        """The ``labels`` of the test images, and their ``groups`` if the data have them."""
        self.checkpoints = self.path / "checkpoints"
        """A folder for each trial that is under way, and the best of each cell meanwhile."""
        self.tensorboard = self.path / "tensorboard"
        """TensorBoard events, a folder a trial."""
        self.mlflow = self.path / "mlflow"
        """MLflow's runs, where no server was named."""
        self.wandb = self.path / "wandb"
        """W&B's runs, in folders that W&B names."""
        self.report = self.path / "report.html"
        """The page of ``kdtune report``."""

    def refuse_existing(self) -> None:
        """Raise a `UserError` if the folder exists."""
        if self.log.exists():
            raise UserError(
                f"{self.path} exists already; give another name, or go on with it: "
                f"kdtune resume {self.path}"
            )
        if self.path.exists():
            raise UserError(f"{self.path} exists already; give another name, or remove it.")

    @contextmanager
    def created(self) -> Iterator[Self]:
        """Make the folder, with what is written to the one that is given; whole or not at all.

        Raises:
            UserError: it exists; of several sweeps that want the name at once, one succeeds.
        """
        with room_for(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                part.mkdir()
                yield type(self)(part)
                self.refuse_existing()
                part.rename(self.path)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the sweep as its only driver; the lock dies with the process.

        Raises:
            UserError: another driver holds it; the text says which. Or a part of it is a link.
        """
        own = self.log, self.confirm_log, self.checkpoints, self.confirmed, self.path / "best"
        for path in (*own, self.tensorboard, self.mlflow, self.wandb):
            if path.is_symlink():  # what is written and removed shall be in this folder
                raise UserError(f"{path} is a link; a sweep's folder must hold its files itself.")
        lock = FileLock(self.path / "driver.lock")
        try:
            with room_for(self.path):
                lock.acquire(timeout=1)  # who asks for the sweep's status holds it for a moment
        except Timeout:
            raise UserError(f"{self.path} is being run by {self.holder()}.") from None
        except PermissionError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None
        try:
            with room_for(self.path):
                Path(lock.lock_file).write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            lock.release()

    @contextmanager
    def held_again(self) -> Iterator[None]:
        """The same, once the folder is known to be a sweep's: nothing is locked in any other.

        Raises:
            UserError: as `opened` and `held`.
        """
        self.opened()
        with self.held():
            yield

    def is_held(self) -> bool | None:
        """Whether a driver runs the sweep; None if that cannot be found out."""
        lock = FileLock(self.path / "driver.lock")
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # in a folder that may only be read
            return None

    def holder(self) -> str:
        """Who holds the sweep, or held it last, for people."""
        with suppress(OSError):
            return shown((self.path / "driver.lock").read_text(errors="replace")[:200])
        return "another process"

    def network(self, run: str) -> Path:
        """The network of a confirmed run."""
        return self.confirmed / f"{run}.pth"

    def predictions(self, run: str) -> Path:
        """What it says to each test image: the classes, as ``predicted``."""
        return self.confirmed / f"{run}.npz"

    def table(self, name: str, suffix: str) -> Path:
        """The table `name` (``trials``, ``epochs``) as ``.parquet`` or ``.csv``."""
        return self.path / f"{name}{suffix}"

    def best(self, method: str, model: str, suffix: str = ".yaml") -> Path:
        """The best configuration of a cell, or with the suffix ``.pth`` its network."""
        return self.path / "best" / f"{file_stem(method, model)}{suffix}"

    def events(self) -> list[Event]:
        """All events so far, also of a sweep that is running.

        Raises:
            UserError: this is no sweep's folder, or its log is damaged.
        """
        return next(self.follow())

    def follow(self) -> Iterator[list[Event]]:
        """All events so far, and then at each turn those that came since; it has no end.

        Raises:
            UserError: as `events`.
        """
        if not self.path.is_dir():
            raise UserError(f"There is no folder {self.path}.")
        if not self.log.is_file():
            raise UserError(
                f"{self.path} is not the folder of a sweep: it has no {self.log.name}."
            )
        position, lines = 0, 0
        while True:
            with open(self.log, "rb") as log:
                log.seek(position)
                events, size = read_events(log.read(), self.log, lines)
            position, lines = position + size, lines + len(events)
            yield events

    def confirm_events(self) -> list[Event]:
        """All events of the confirmation so far; none if it has not begun.

        Raises:
            UserError: its log is damaged.
        """
        if not self.confirm_log.is_file():
            return []
        return read_events(self.confirm_log.read_bytes(), self.confirm_log)[0]

    def right(self) -> tuple[dict[str, np.ndarray], list[str] | None]:
        """Whether each test image was classified rightly, bool [N] by run; and the image's groups.

        Raises:
            UserError: a file is damaged.
        """
        runs = [event["trial_id"] for event in self.confirm_events() if event["event"] == "tested"]
        if not runs:
            return {}, None
        test = _load(self.test_labels, "labels")
        labels, groups = test["labels"], test.get("groups")
        right = {run: _load(self.predictions(run), "predicted")["predicted"] for run in runs}
        if damaged := [run for run, found in right.items() if found.shape != labels.shape]:
            raise UserError(f"{self.predictions(damaged[0])} is damaged.")
        return (
            {run: predicted == labels for run, predicted in right.items()},
            groups.tolist() if groups is not None else None,
        )

    def settings(self) -> SweepConfig:
        """The settings with which a driver went on last.

        What a confirmation is made of stays as its own log says.

        Raises:
            UserError: as `opened`, or the settings are not such.
        """
        confirmed = [e for e in self.confirm_events() if e["event"] == "confirm"]
        latest = max([*self.opened(), *confirmed], key=lambda event: event["time"])["config"]
        judged = confirmed[-1]["config"] if confirmed else {}
        kept = {key: judged[key] for key in OF_VERDICT if key in judged}
        return SweepConfig.check({**latest, **kept})

    def opened(self) -> list[Event]:
        """The events with which drivers opened the sweep, the first one first.

        Raises:
            UserError: as `events`, or there is none.
        """
        opened = [event for event in self.events() if event["event"] in ("sweep", "resumed")]
        if not opened or opened[0]["event"] != "sweep":
            raise UserError(f"{self.log} is damaged: it does not begin with the sweep's settings.")
        return opened


class Snapshot(SweepFolder):
    """A sweep's folder whose logs are read once: all that is said of it is of one moment.

    Raises:
        UserError: as `SweepFolder.events` and `SweepFolder.confirm_events`.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._events, self._confirm_events = super().events(), super().confirm_events()

    def events(self) -> list[Event]:
        """All events of that moment."""
        return self._events

    def confirm_events(self) -> list[Event]:
        """All events of the confirmation of that moment."""
        return self._confirm_events


def _load(path: Path, wanted: str) -> dict[str, np.ndarray]:
    """The arrays of a file, the wanted one among them."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {wanted: np.atleast_1d(arrays[wanted]), **arrays}
    except Exception:  # damage shows in many ways: zlib.error, tokenize.TokenError, EOFError, ...
        raise UserError(f"{path} is missing or damaged.") from None
