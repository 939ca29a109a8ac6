"""Logs of sweeps: append-only, one event a line, on the disk before anything acts on it.

Nothing else knows their form. An event is one JSON object a line:

* ``sweep``: opened, with its complete settings, spaces, data, teacher and versions;
* ``resumed``: the same, when a driver went on with it;
* ``warm_start``: what was learned from an earlier sweep: see `kdtune.tuning.search.warm_start`;
* ``view``: a trial builds, has built or waits for what all need: see
  `kdtune.storage.array_cache.Tell`;
* ``asked``: a trial was proposed, with its settings;
* ``epoch``: a trial finished an epoch, with every figure;
* ``restarted``: a trial goes on in another process, from its last checkpoint, and why;
* ``ended``: a trial ended, with its `TRIAL_STATES` entry and the reason;
* ``exhausted``: a cell has no further point;
* ``complete``: nothing is left to do, and the tables say so.

In the log of a confirmation ``asked``, ``epoch``, ``restarted``, ``ended`` and ``view`` are about
a run, which trains with the settings of a trial that it ``confirms``, and beside ``complete`` are

* ``confirm``: opened, or extended: complete settings, candidates of each cell, number of seeds;
* ``measured``: what a student costs: see `kdtune.models.costs`;
* ``chosen``: a cell's choice among its candidates, by validation images;
* ``tested``: a run of what was chosen was judged by the test images, once;
* ``lost``: a run's network is not there, so it is to be trained again.

Every event has a ``time``, in seconds since 1970, and ``session_seconds``, since its driver opened
the log, by a clock that nobody sets.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from kdtune.config.train import FILE_NAME_PATTERN, file_stem
from kdtune.errors import RunError, UserError
from kdtune.storage.files import disk_full_as_error

Event = dict[str, Any]

Cell = tuple[str, str]
"""(method, model): what is searched with a study, rungs and a share of the budget of its own."""


def cell_of(event: Event) -> Cell:
    """The cell that an event is about."""
    return event["method"], event["model"]


TRIAL_STATES = ("finished", "stopped", "diverged", "crashed")
"""How a trial ends: all epochs; stopped early; a non-finite loss; an error."""

_CELL_KEYS: dict[str, type] = {"method": str, "model": str}
_TRIAL_KEYS: dict[str, type] = {"trial_id": str, **_CELL_KEYS}
_OPENING_KEYS: dict[str, type] = dict.fromkeys(("config", "spaces", "data", "views"), dict)
REQUIRED_KEYS: dict[str, Mapping[str, type]] = {
    "sweep": _OPENING_KEYS,
    "resumed": _OPENING_KEYS,
    "warm_start": {**_CELL_KEYS, "observations": list, "start": list},
    "view": {"trial_id": str, "kind": str, "what": str, "state": str},
    "asked": {
        **_TRIAL_KEYS,
        "number": int,
        "origin": str,
        "parameters": dict,
        "distributions": dict,
        "config": dict,
    },
    "epoch": {
        **_TRIAL_KEYS,
        "epoch": int,
        "best_validation_accuracy": float,
        "validation_accuracy": float,
        "seconds": float,
    },
    "restarted": {**_TRIAL_KEYS, "cause": str, "reason": str},
    "ended": {**_TRIAL_KEYS, "state": str, "reason": str},
    "exhausted": {**_CELL_KEYS, "reason": str},
    "complete": {},
    "confirm": {"config": dict, "data": dict, "candidates": list, "seeds": int, "top": int},
    "lost": _TRIAL_KEYS,
    "measured": {"model": str, "parameters": int, "macs": int, "latency_ms": float},
    "chosen": {**_CELL_KEYS, "confirms": str},
    "tested": {**_TRIAL_KEYS, "test_accuracy": float, "test_images": int},
}
"""What an event must have to be taken for one, by its kind."""


def parse_events(content: bytes, path: Path, lines_before: int = 0) -> tuple[list[Event], int]:
    """The events, and how many bytes they take; what a crash left after the last is passed over.

    Args:
        content: of the file, after so many lines as `lines_before` says.
        path: the file.
        lines_before: lines.

    Raises:
        UserError: something that is no event stands between events.
    """
    events: list[Event] = []
    parsed_bytes, position, damaged_line = 0, 0, 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=lines_before + 1):
        position += len(line) + 1
        if (event := _parse_event(line)) is None:
            damaged_line = damaged_line or number
            continue
        if damaged_line:
            raise UserError(
                f"{path} is damaged: line {damaged_line} is no event, but others follow it."
            )
        events.append(event)
        parsed_bytes = position
    return events, parsed_bytes


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_JSON_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def _parse_event(line: bytes) -> Event | None:
    """An event, or None if the line is none."""
    try:
        event = _JSON_DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    required = REQUIRED_KEYS.get(event["event"])
    timestamps = (event.get("time"), event.get("session_seconds"))
    if required is None or not all(isinstance(value, int | float) for value in timestamps):
        return None
    has_required_keys = all(
        isinstance(event.get(key), int | float if value_type is float else value_type)
        for key, value_type in required.items()
    )
    if not has_required_keys:
        return None
    # Names of files are made from these; of a model's by `file_stem`.
    records, name_keys = [event], [key for key in _TRIAL_KEYS if key in required]
    if event["event"] == "confirm":
        records, name_keys = event["candidates"], list(_TRIAL_KEYS)
    has_valid_names = all(
        isinstance(record, dict) and _is_file_name(record.get(key), key)
        for record in records
        for key in name_keys
    )
    return event if has_valid_names else None


def _is_file_name(value: Any, key: str) -> bool:
    stem = file_stem(value) if key == "model" and isinstance(value, str) else value
    return isinstance(stem, str) and re.match(FILE_NAME_PATTERN, stem) is not None


class EventLog:
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
            events, self._valid_bytes = parse_events(content, path)
            self.truncated_bytes = len(content) - self._valid_bytes
            """Bytes that were cut off."""
            if self.truncated_bytes:
                self._file.truncate(self._valid_bytes)
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
        self._opened_at = time.monotonic()

    def append(self, event: Event) -> None:
        """Write an event, then hand it to the folds.

        Raises:
            ValueError: the event holds a value that JSON has no form for, NaN included.
            RunError: it cannot be written; the log is as it was, and takes no further event.
        """
        session_seconds = round(time.monotonic() - self._opened_at, 3)
        event = {**event, "time": round(time.time(), 3), "session_seconds": session_seconds}
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        if self.failure is not None:
            raise self.failure
        try:
            with disk_full_as_error(self.path):
                self._write_line(line)
        except (RunError, OSError) as error:
            with suppress(OSError):  # a part of the line may be written
                self._file.truncate(self._valid_bytes)
            reason = str(error) if isinstance(error, RunError) else f"{self.path}: {error}"
            self.failure = error if isinstance(error, RunError) else RunError(reason)
            raise self.failure from error
        self._fold(event)

    def _write_line(self, line: bytes) -> None:
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        if size < self._valid_bytes:
            raise RunError(f"{self.path} was cut by something else while the sweep ran.")
        if size > self._valid_bytes:  # nobody else may write here
            self._file.truncate(self._valid_bytes)
        remaining = memoryview(line)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
        self._valid_bytes += len(line)

    def _fold(self, event: Event) -> None:
        for fold in self._folds:
            fold(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


SUCCESSFUL_STATES = ("finished", "stopped")
"""States of trials whose figures can be had again."""
