"""A sweep's folder: its two logs, the lock of its driver, and the paths of other files."""

import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock, Timeout

from kdtune.config.names import file_stem
from kdtune.config.sweep import CONFIRM_SETTINGS, SweepConfig
from kdtune.errors import UserError
from kdtune.log.event_log import parse_events
from kdtune.log.events import ConfirmStarted, Event, RunTested, SweepOpening, SweepStarted
from kdtune.log.image_scores import score_images
from kdtune.runtime.console import printable_path
from kdtune.storage.files import disk_full_as_error

RESULTS_FOLDER = Path("results")  # parent of the folders of all sweeps


class SweepFolder:
    """A sweep's folder; all knowledge of its layout is here."""

    def __init__(self, path: str | Path):
        path = Path(path)
        has_name = path.name not in ("", "..")  # "." has none, and others need one
        self.path = path if has_name else Path(os.path.abspath(path))
        self.config_path = self.path / "sweep.yaml"  # complete settings, to run them again
        self.environment_path = self.path / "environment.json"
        self.plan_path = self.path / "plan.json"
        self.log_path = self.path / "log.jsonl"  # all files can be made from the two logs
        self.confirm_log_path = self.path / "confirm.jsonl"
        self.confirm_folder = self.path / "confirm"  # weights and predictions of confirmed runs
        self.test_labels_path = self.confirm_folder / "test.npz"  # "labels"; "groups", if any
        self.checkpoints_folder = self.path / "checkpoints"  # of running trials and the best ones
        self.tensorboard_folder = self.path / "tensorboard"
        self.mlflow_folder = self.path / "mlflow"
        self.wandb_folder = self.path / "wandb"
        self.tracker_folders = (self.tensorboard_folder, self.mlflow_folder, self.wandb_folder)
        self.report_path = self.path / "report.html"
        self._lock_path = self.path / "driver.lock"

    def command(self, subcommand: str, *flags: str) -> str:
        """Return a command about the sweep, for a shell.

        Args:
            subcommand: of kdtune.
            flags: what follows the folder.
        """
        return shlex.join(["kdtune", subcommand, str(self.path), *flags])

    def raise_if_exists(self) -> None:
        if self.path.exists():
            is_sweep = self.log_path.exists()
            advice = f"resume it: {self.command('resume')}" if is_sweep else "remove it."
            raise UserError(f"{self.path} already exists; choose another name, or {advice}")

    @contextmanager
    def create_atomically(self) -> Iterator[Self]:
        """Yield a temporary folder, and rename it at the end; of several sweeps, one gets it."""
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
        """Hold the lock of the only driver; it is released when the process dies."""
        paths = (self.log_path, self.confirm_log_path, self.path / "best", self.confirm_folder)
        for path in (*paths, self.checkpoints_folder, *self.tracker_folders):
            if path.is_symlink():  # nothing outside the folder may be written or removed
                raise UserError(f"{path} is a link; a sweep's folder must contain its own files.")
        try:
            with disk_full_as_error(self.path):
                # `is_locked` of another process may hold it briefly.
                lock = FileLock(self._lock_path).acquire(timeout=1)
        except Timeout:
            raise UserError(f"{self.path} is being run by {self.lock_holder()}.") from None
        except PermissionError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None
        with lock:
            with disk_full_as_error(self.path):
                self._lock_path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield

    @contextmanager
    def locked_existing(self) -> Iterator[None]:
        """Hold the lock of a folder that is a sweep's; nothing is written to any other."""
        self.load_opening_events()
        with self.locked():
            yield

    def is_locked(self) -> bool | None:
        """Return True if a driver runs the sweep; None if the folder is not writable."""
        try:
            with FileLock(self._lock_path).acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return None

    def lock_holder(self) -> str:
        """Return the process that holds the lock, or held it last, in words."""
        with suppress(OSError):
            return printable_path(self._lock_path.read_text(errors="replace")[:200])
        return "another process"

    def network_path(self, run_id: str) -> Path:
        return self.confirm_folder / f"{run_id}.pth"

    def predictions_path(self, run_id: str) -> Path:
        return self.confirm_folder / f"{run_id}.npz"

    def best_path(self, method: str, model: str, suffix: str = ".yaml") -> Path:
        """Return the path of the best settings or weights of a cell.

        Args:
            method: method of the cell.
            model: student of the cell.
            suffix: ``.yaml`` for the settings, ``.pth`` for the weights.
        """
        return self.path / "best" / f"{file_stem(method, model)}{suffix}"

    def is_sweep(self) -> bool:
        """Return True if the folder is a sweep's, and not one that is being made or removed."""
        return not self.path.name.startswith(".") and self.log_path.is_file()

    def remove(self) -> None:
        """Remove the folder and all that is in it, unless a driver runs the sweep."""
        self.require_log()
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a link; remove the folder that it points to.")
        with self.locked():
            doomed = self.path.with_name(f".{self.path.name}.{os.getpid()}.removed")
            self.path.rename(doomed)
        shutil.rmtree(doomed)

    def require_log(self) -> None:
        if not self.path.is_dir():
            raise UserError(f"There is no folder {self.path}.")
        if not self.log_path.is_file():
            problem = f"it has no {self.log_path.name}"
            raise UserError(f"{self.path} is not the folder of a sweep: {problem}.")

    def load_events(self) -> list[Event]:
        return next(self.follow_events())

    def follow_events(self) -> Iterator[list[Event]]:
        """Yield all events so far, then each time the new ones, without end."""
        self.require_log()
        position, lines = 0, 0
        while True:
            with open(self.log_path, "rb") as file:
                file.seek(position)
                events, size = parse_events(file.read(), self.log_path, lines)
            position, lines = position + size, lines + len(events)
            yield events

    def load_confirm_events(self) -> list[Event]:
        """Return all events of the confirmation so far; none before it starts."""
        path = self.confirm_log_path
        return parse_events(path.read_bytes(), path)[0] if path.is_file() else []

    def load_opening_events(self) -> list[SweepOpening]:
        """Return the events that opened the search's log, in order; there is at least one."""
        openings = [event for event in self.load_events() if isinstance(event, SweepOpening)]
        if not openings or not isinstance(openings[0], SweepStarted):
            problem = "it does not begin with the sweep's settings"
            raise UserError(f"{self.log_path} is damaged: {problem}.")
        return openings

    def load_confirm_openings(self) -> list[ConfirmStarted]:
        return [e for e in self.load_confirm_events() if isinstance(e, ConfirmStarted)]

    def load_config(self) -> SweepConfig:
        """Return the latest settings; those of a confirmation are from its own log."""
        confirm_openings = self.load_confirm_openings()
        openings = [*self.load_opening_events(), *confirm_openings]
        config = max(openings, key=lambda event: event.time).config
        confirmed = confirm_openings[-1].config if confirm_openings else {}
        kept = {key: confirmed[key] for key in CONFIRM_SETTINGS if key in confirmed}
        return SweepConfig.parse(config | kept)

    def load_image_scores(self) -> tuple[dict[str, np.ndarray], list[str] | None]:
        """Return the scores of each run's test images [N], and the groups of these images."""
        run_ids = [e.trial_id for e in self.load_confirm_events() if isinstance(e, RunTested)]
        if not run_ids:
            return {}, None
        test_arrays, scores = _load_arrays(self.test_labels_path, "labels"), {}
        labels, groups = test_arrays["labels"], test_arrays.get("groups")
        metric = self.load_opening_events()[0].metric
        for run_id in run_ids:
            path = self.predictions_path(run_id)
            predicted = _load_arrays(path, "predicted")["predicted"]
            if predicted.shape != labels.shape:
                raise UserError(f"{path} is damaged.")
            scores[run_id] = score_images(predicted, labels, metric)
        return scores, groups.tolist() if groups is not None else None


class SweepSnapshot(SweepFolder):
    """A sweep's folder whose logs are read only once, so everything is from one moment."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._events, self._confirm_events = super().load_events(), super().load_confirm_events()

    def load_events(self) -> list[Event]:
        return self._events

    def load_confirm_events(self) -> list[Event]:
        return self._confirm_events


def _load_arrays(path: Path, required: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {required: np.atleast_1d(arrays[required]), **arrays}
    except Exception:  # damage shows in many ways: zlib.error, tokenize.TokenError, EOFError, ...
        raise UserError(f"{path} is missing or damaged.") from None
