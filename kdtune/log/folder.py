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

from kdtune.config.sweep import CONFIRM_SETTINGS, SweepConfig
from kdtune.config.train import file_stem
from kdtune.errors import UserError
from kdtune.log.event_log import parse_events
from kdtune.log.events import ConfirmStarted, Event, RunTested, SweepOpening, SweepStarted
from kdtune.runtime.console import printable_path
from kdtune.storage.files import disk_full_as_error

RESULTS_FOLDER = Path("results")
"""Every sweep has its folder here, under the working directory."""


class SweepFolder:
    """Paths of a sweep's files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_path = self.path / "sweep.yaml"
        """The sweep's settings, complete: ``kdtune sweep`` runs it again."""
        self.environment_path = self.path / "environment.json"
        """Versions and machine."""
        self.plan_path = self.path / "plan.json"
        """What was planned before it began, if it was."""
        self.log_path = self.path / "log.jsonl"
        """All that happened; everything else can be made from it again."""
        self.confirm_log_path = self.path / "confirm.jsonl"
        """All that happened when the sweep was confirmed."""
        self.confirm_folder = self.path / "confirm"
        """Networks of confirmed runs, ``.pth``, and what they say to the test images, ``.npz``."""
        self.test_labels_path = self.confirm_folder / "test.npz"
        """The ``labels`` of the test images, and their ``groups`` if the data have them."""
        self.checkpoints_folder = self.path / "checkpoints"
        """A folder for each trial that is under way, and the best of each cell meanwhile."""
        self.tensorboard_folder = self.path / "tensorboard"
        """TensorBoard events, a folder a trial."""
        self.mlflow_folder = self.path / "mlflow"
        """MLflow's runs, where no server was named."""
        self.wandb_folder = self.path / "wandb"
        """W&B's runs, in folders that W&B names."""
        self.report_path = self.path / "report.html"
        """The page of ``kdtune report``."""

    def raise_if_exists(self) -> None:
        """Raise a `UserError` if the folder exists."""
        if self.log_path.exists():
            raise UserError(
                f"{self.path} exists already; give another name, or go on with it: "
                f"kdtune resume {self.path}"
            )
        if self.path.exists():
            raise UserError(f"{self.path} exists already; give another name, or remove it.")

    @contextmanager
    def create_atomically(self) -> Iterator[Self]:
        """Make the folder, with what is written to the one that is given; whole or not at all.

        Raises:
            UserError: it exists; of several sweeps that want the name at once, one succeeds.
        """
        with disk_full_as_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                temporary.mkdir()
                yield type(self)(temporary)
                self.raise_if_exists()
                temporary.rename(self.path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep as its only driver; the lock dies with the process.

        Raises:
            UserError: another driver holds it; the text says which. Or a part of it is a link.
        """
        paths = (
            self.log_path,
            self.confirm_log_path,
            self.checkpoints_folder,
            self.confirm_folder,
            self.path / "best",
        )
        for path in (*paths, self.tensorboard_folder, self.mlflow_folder, self.wandb_folder):
            if path.is_symlink():  # what is written and removed shall be in this folder
                raise UserError(f"{path} is a link; a sweep's folder must hold its files itself.")
        lock = FileLock(self.path / "driver.lock")
        try:
            with disk_full_as_error(self.path):
                lock.acquire(timeout=1)  # who asks for the sweep's status holds it for a moment
        except Timeout:
            raise UserError(f"{self.path} is being run by {self.lock_holder()}.") from None
        except PermissionError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None
        try:
            with disk_full_as_error(self.path):
                Path(lock.lock_file).write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            lock.release()

    @contextmanager
    def locked_existing(self) -> Iterator[None]:
        """The same, once the folder is known to be a sweep's: nothing is locked in any other.

        Raises:
            UserError: as `load_opening_events` and `locked`.
        """
        self.load_opening_events()
        with self.locked():
            yield

    def is_locked(self) -> bool | None:
        """Whether a driver runs the sweep; None if that cannot be found out."""
        lock = FileLock(self.path / "driver.lock")
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # in a folder that may only be read
            return None

    def lock_holder(self) -> str:
        """Who holds the sweep, or held it last, for people."""
        with suppress(OSError):
            return printable_path((self.path / "driver.lock").read_text(errors="replace")[:200])
        return "another process"

    def network_path(self, run_id: str) -> Path:
        """The network of a confirmed run."""
        return self.confirm_folder / f"{run_id}.pth"

    def predictions_path(self, run_id: str) -> Path:
        """What it says to each test image: the classes, as ``predicted``."""
        return self.confirm_folder / f"{run_id}.npz"

    def table_path(self, name: str, suffix: str) -> Path:
        """The table `name` (``trials``, ``epochs``) as ``.parquet`` or ``.csv``."""
        return self.path / f"{name}{suffix}"

    def best_path(self, method: str, model: str, suffix: str = ".yaml") -> Path:
        """The best configuration of a cell, or with the suffix ``.pth`` its network."""
        return self.path / "best" / f"{file_stem(method, model)}{suffix}"

    def require_log(self) -> None:
        """Raise a `UserError` if this is not the folder of a sweep."""
        if not self.path.is_dir():
            raise UserError(f"There is no folder {self.path}.")
        if not self.log_path.is_file():
            raise UserError(
                f"{self.path} is not the folder of a sweep: it has no {self.log_path.name}."
            )

    def load_events(self) -> list[Event]:
        """All events so far, also of a sweep that is running.

        Raises:
            UserError: this is no sweep's folder, or its log is damaged.
        """
        return next(self.follow_events())

    def follow_events(self) -> Iterator[list[Event]]:
        """All events so far, and then at each turn those that came since; it has no end.

        Raises:
            UserError: as `load_events`.
        """
        self.require_log()
        position, lines = 0, 0
        while True:
            with open(self.log_path, "rb") as file:
                file.seek(position)
                events, size = parse_events(file.read(), self.log_path, lines)
            position, lines = position + size, lines + len(events)
            yield events

    def load_confirm_events(self) -> list[Event]:
        """All events of the confirmation so far; none if it has not begun.

        Raises:
            UserError: its log is damaged.
        """
        if not self.confirm_log_path.is_file():
            return []
        return parse_events(self.confirm_log_path.read_bytes(), self.confirm_log_path)[0]

    def load_correct_predictions(self) -> tuple[dict[str, np.ndarray], list[str] | None]:
        """Whether each test image was classified rightly, bool [N] by run; and the image's groups.

        Raises:
            UserError: a file is damaged.
        """
        events = self.load_confirm_events()
        run_ids = [event.trial_id for event in events if isinstance(event, RunTested)]
        if not run_ids:
            return {}, None
        test_arrays = _load_arrays(self.test_labels_path, "labels")
        labels, groups = test_arrays["labels"], test_arrays.get("groups")
        predictions = {
            run: _load_arrays(self.predictions_path(run), "predicted")["predicted"]
            for run in run_ids
        }
        if damaged_runs := [
            run for run, predicted in predictions.items() if predicted.shape != labels.shape
        ]:
            raise UserError(f"{self.predictions_path(damaged_runs[0])} is damaged.")
        return (
            {run: predicted == labels for run, predicted in predictions.items()},
            groups.tolist() if groups is not None else None,
        )

    def load_config(self) -> SweepConfig:
        """The settings with which a driver went on last.

        What a confirmation is made of stays as its own log says.

        Raises:
            UserError: as `load_opening_events`, or the settings are not such.
        """
        confirm_openings = self.load_confirm_openings()
        openings = [*self.load_opening_events(), *confirm_openings]
        config = max(openings, key=lambda event: event.time).config
        if confirm_openings:
            config = config | {key: confirm_openings[-1].config[key] for key in CONFIRM_SETTINGS}
        return SweepConfig.parse(config)

    def load_confirm_openings(self) -> list[ConfirmStarted]:
        """Return the events that opened the confirmation, the first one first."""
        return [e for e in self.load_confirm_events() if isinstance(e, ConfirmStarted)]

    def load_opening_events(self) -> list[SweepOpening]:
        """The events with which drivers opened the sweep, the first one first.

        Raises:
            UserError: as `load_events`, or there is none.
        """
        opening_events: list[SweepOpening] = [
            e for e in self.load_events() if isinstance(e, SweepOpening)
        ]
        if not opening_events or not isinstance(opening_events[0], SweepStarted):
            raise UserError(
                f"{self.log_path} is damaged: it does not begin with the sweep's settings."
            )
        return opening_events


class SweepSnapshot(SweepFolder):
    """A sweep's folder whose logs are read once: all that is said of it is of one moment.

    Raises:
        UserError: as `SweepFolder.load_events` and `SweepFolder.load_confirm_events`.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._events, self._confirm_events = super().load_events(), super().load_confirm_events()

    def load_events(self) -> list[Event]:
        """All events of that moment."""
        return self._events

    def load_confirm_events(self) -> list[Event]:
        """All events of the confirmation of that moment."""
        return self._confirm_events


def _load_arrays(path: Path, required: str) -> dict[str, np.ndarray]:
    """The arrays of a file, the wanted one among them."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {required: np.atleast_1d(arrays[required]), **arrays}
    except Exception:  # damage shows in many ways: zlib.error, tokenize.TokenError, EOFError, ...
        raise UserError(f"{path} is missing or damaged.") from None
