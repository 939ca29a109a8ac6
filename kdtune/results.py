"""A sweep's folder: its append-only logs, which are the truth, and the files made from them.

There are two: of the search, and, once there is one, of its confirmation, so nothing that is
learned in this can have a part in that. Nothing else knows the folder's layout or the logs' form.
An event is one JSON object a line:

* ``sweep``: opened, with its complete settings, spaces, data, teacher and versions;
* ``resumed``: the same, when a driver went on with it;
* ``warm_start``: what was learned from an earlier sweep: see `kdtune.tuning.warm_start`;
* ``view``: a trial builds, has built or waits for what all need: see `kdtune.cache.Tell`;
* ``asked``: a trial was proposed, with its settings;
* ``epoch``: a trial finished an epoch, with every figure;
* ``restarted``: a trial goes on in another process, from its last checkpoint, and why;
* ``ended``: a trial ended, with its `STATES` entry and the reason;
* ``exhausted``: a cell has no further point;
* ``complete``: nothing is left to do, and the tables say so.

In the log of a confirmation ``asked``, ``epoch``, ``restarted``, ``ended`` and ``view`` are about
a run, which trains with the settings of a trial that it ``confirms``, and beside ``complete`` are

* ``confirm``: opened, or extended: complete settings, candidates of each cell, number of seeds;
* ``measured``: what a student costs: see `kdtune.costs`;
* ``chosen``: a cell's choice among its candidates, by validation images;
* ``tested``: a run of what was chosen was judged by the test images, once;
* ``lost``: a run's network is not there, so it is to be trained again.

Every event has a ``time``, in seconds since 1970, and ``session_seconds``, since its driver opened
the log, by a clock that nobody sets.
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from kdtune.config import FILE_NAME, file_stem
from kdtune.errors import RunError, UserError
from kdtune.files import room_for, shown
from kdtune.sweep_config import SweepConfig

Event = dict[str, Any]

Cell = tuple[str, str]
"""(method, model): what is searched with a study, rungs and a share of the budget of its own."""


def cell_of(event: Event) -> Cell:
    """The cell that an event is about."""
    return event["method"], event["model"]


OF_VERDICT = ("top", "seeds", "min_difference")
"""Settings that a confirmation is made of."""

RESULTS = Path("results")
"""Every sweep has its folder here, under the working directory."""

STATES = ("finished", "stopped", "diverged", "crashed")
"""How a trial ends: all epochs; stopped early; a non-finite loss; an error."""

_CELL: dict[str, type] = {"method": str, "model": str}
_TRIAL: dict[str, type] = {"trial_id": str, **_CELL}
_OPENED: dict[str, type] = dict.fromkeys(("config", "spaces", "data", "views"), dict)
KEYS: dict[str, Mapping[str, type]] = {
    "sweep": _OPENED,
    "resumed": _OPENED,
    "warm_start": {**_CELL, "observations": list, "start": list},
    "view": {"trial_id": str, "kind": str, "what": str, "state": str},
    "asked": {
        **_TRIAL,
        "number": int,
        "origin": str,
        "parameters": dict,
        "distributions": dict,
        "config": dict,
    },
    "epoch": {
        **_TRIAL,
        "epoch": int,
        "best_validation_accuracy": float,
        "validation_accuracy": float,
        "seconds": float,
    },
    "restarted": {**_TRIAL, "cause": str, "reason": str},
    "ended": {**_TRIAL, "state": str, "reason": str},
    "exhausted": {**_CELL, "reason": str},
    "complete": {},
    "confirm": {"config": dict, "data": dict, "candidates": list, "seeds": int, "top": int},
    "lost": _TRIAL,
    "measured": {"model": str, "parameters": int, "macs": int, "latency_ms": float},
    "chosen": {**_CELL, "confirms": str},
    "tested": {**_TRIAL, "test_accuracy": float, "test_images": int},
}
"""What an event must have to be taken for one, by its kind."""


class SweepFolder:
    """Paths of a sweep's files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def refuse_existing(self) -> None:
        """Raise a `UserError` if the folder exists."""
        if (self.path / self.log.name).exists():
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

    @property
    def sweep(self) -> Path:
        """The sweep's settings, complete: ``kdtune sweep`` runs it again."""
        return self.path / "sweep.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def plan(self) -> Path:
        """What was planned before it began, if it was."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """All that happened; everything else can be made from it again."""
        return self.path / "log.jsonl"

    @property
    def confirm_log(self) -> Path:
        """All that happened when the sweep was confirmed."""
        return self.path / "confirm.jsonl"

    @property
    def confirmed(self) -> Path:
        """Networks of confirmed runs, ``.pth``, and what they say to the test images, ``.npz``."""
        return self.path / "confirm"

    def network(self, run: str) -> Path:
        """The network of a confirmed run."""
        return self.confirmed / f"{run}.pth"

    def predictions(self, run: str) -> Path:
        """What it says to each test image: the classes, as ``predicted``."""
        return self.confirmed / f"{run}.npz"

    @property
    def test_labels(self) -> Path:
        """The ``labels`` of the test images, and their ``groups`` if the data have them."""
        return self.confirmed / "test.npz"

    @property
    def checkpoints(self) -> Path:
        """A folder for each trial that is under way, and the best of each cell meanwhile."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events, a folder a trial."""
        return self.path / "tensorboard"

    @property
    def mlflow(self) -> Path:
        """MLflow's runs, where no server was named."""
        return self.path / "mlflow"

    @property
    def wandb(self) -> Path:
        """W&B's runs, in folders that W&B names."""
        return self.path / "wandb"

    def table(self, name: str, suffix: str) -> Path:
        """The table `name` (``trials``, ``epochs``) as ``.parquet`` or ``.csv``."""
        return self.path / f"{name}{suffix}"

    @property
    def report(self) -> Path:
        """The page of ``kdtune report``."""
        return self.path / "report.html"

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
                events, size = _read(log.read(), self.log, lines)
            position, lines = position + size, lines + len(events)
            yield events

    def confirm_events(self) -> list[Event]:
        """All events of the confirmation so far; none if it has not begun.

        Raises:
            UserError: its log is damaged.
        """
        if not self.confirm_log.is_file():
            return []
        return _read(self.confirm_log.read_bytes(), self.confirm_log)[0]

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


def _read(content: bytes, path: Path, before: int = 0) -> tuple[list[Event], int]:
    """The events, and how many bytes they take; what a crash left after the last is passed over.

    Args:
        content: of the file, after so many lines as `before` says.
        path: the file.
        before: lines.

    Raises:
        UserError: something that is no event stands between events.
    """
    events: list[Event] = []
    size, start, broken = 0, 0, 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=before + 1):
        start += len(line) + 1
        if (event := _parse(line)) is None:
            broken = broken or number
            continue
        if broken:
            raise UserError(f"{path} is damaged: line {broken} is no event, but others follow it.")
        events.append(event)
        size = start
    return events, size


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)


def _parse(line: bytes) -> Event | None:
    """An event, or None if the line is none."""
    try:
        event = _JSON.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    wanted = KEYS.get(event["event"])
    times = (event.get("time"), event.get("session_seconds"))
    if wanted is None or not all(isinstance(value, int | float) for value in times):
        return None
    whole = all(
        isinstance(event.get(key), int | float if kind is float else kind)
        for key, kind in wanted.items()
    )
    if not whole:
        return None
    # Names of files are made from these; of a model's by `file_stem`.
    named, keys = [event], [key for key in _TRIAL if key in wanted]
    if event["event"] == "confirm":
        named, keys = event["candidates"], list(_TRIAL)
    fit = all(
        isinstance(part, dict) and _is_name(part.get(key), key) for part in named for key in keys
    )
    return event if fit else None


def _is_name(value: Any, key: str) -> bool:
    stem = file_stem(value) if key == "model" and isinstance(value, str) else value
    return isinstance(stem, str) and re.match(FILE_NAME, stem) is not None


class Log:
    """The log, open for appending: an event is on the disk before anything acts on it.

    To be used in a ``with``, by one process at a time.

    Args:
        path: the file; what a crash left after the last event is cut off.
        folds: functions that take every event after it was written, in this order: studies,
            rungs, progress. On open each is given the events that are there already, so that what
            they hold is the same as if they had been there all the time.

    Raises:
        UserError: the log is damaged.
    """

    def __init__(self, path: Path, folds: Sequence[Callable[[Event], None]]):
        self.path, self._folds = path, folds
        self.failure: RunError | None = None
        """Why nothing can be appended any more; what calls may wrap the error that says so."""
        self._file = open(path, "a+b", buffering=0)
        try:
            self._file.seek(0)
            content = self._file.read()
            events, self._size = _read(content, path)
            self.cut = len(content) - self._size
            """Bytes that were cut off."""
            if self.cut:
                self._file.truncate(self._size)
            for number, event in enumerate(events, start=1):
                try:
                    self._fold(event)
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise UserError(
                        f"{path} is damaged: line {number} does not fit what stands before it "
                        f"({type(error).__name__}: {error})."
                    ) from error
        except BaseException:
            self._file.close()
            raise
        self._opened = time.monotonic()

    def append(self, event: Event) -> None:
        """Write an event, then hand it to the folds.

        Raises:
            ValueError: the event holds a value that JSON has no form for, NaN included.
            RunError: it cannot be written; the log is as it was, and takes no further event.
        """
        seconds = round(time.monotonic() - self._opened, 3)
        event = {**event, "time": round(time.time(), 3), "session_seconds": seconds}
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        if self.failure is not None:
            raise self.failure
        try:
            with room_for(self.path):
                self._write(line)
        except (RunError, OSError) as error:
            with suppress(OSError):  # a part of the line may be written
                self._file.truncate(self._size)
            reason = str(error) if isinstance(error, RunError) else f"{self.path}: {error}"
            self.failure = error if isinstance(error, RunError) else RunError(reason)
            raise self.failure from error
        self._fold(event)

    def _write(self, line: bytes) -> None:
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        if size < self._size:
            raise RunError(f"{self.path} was cut by something else while the sweep ran.")
        if size > self._size:  # nobody else may write here
            self._file.truncate(self._size)
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        self._size += len(line)

    def _fold(self, event: Event) -> None:
        for fold in self._folds:
            fold(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
