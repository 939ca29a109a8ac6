"""The log of a sweep: an append-only file with one event per line."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from kdtune.errors import RunError, UserError
from kdtune.log.events import EVENTS, Event
from kdtune.storage.files import disk_full_as_error


def parse_events(content: bytes, path: Path, lines_before: int = 0) -> tuple[list[Event], int]:
    """Return the events of a log, and their bytes; what a crash left after them is skipped.

    Args:
        content: content of the file after the first `lines_before` lines.
        path: path of the file.
        lines_before: number of lines that were parsed before.
    """
    lines = content.split(b"\n")[:-1]
    parsed = [_parse_event(line) for line in lines]
    if lines_before == 0 and parsed[:1] == [None] and b'"event": "sweep"' in lines[0]:
        raise UserError(
            f"{path.parent} was written by kdtune 0.1, which this version cannot read; "
            "use that version, or run the sweep again."
        )
    while parsed and parsed[-1] is None:  # left by a crash
        parsed.pop()
    events = [event for event in parsed if event is not None]
    if len(events) < len(parsed):
        number = lines_before + parsed.index(None) + 1
        raise UserError(f"{path} is damaged: line {number} is not an event, but others follow.")
    return events, sum(len(line) + 1 for line in lines[: len(events)])


def _parse_event(line: bytes) -> Event | None:
    with suppress(ValidationError):
        event = EVENTS.validate_json(line)
        if {"time", "session_seconds"} <= event.model_fields_set:
            return event
    return None


@dataclass(eq=False)
class EventLog(AbstractContextManager["EventLog"]):
    """The log, open for appending by one process; what a crash left at its end is cut off."""

    path: Path
    folds: Sequence[Callable[[Event], None]]  # are called with every event, the old ones at once
    failure: RunError | None = field(default=None, init=False)  # Ray may wrap it if it is raised

    def __post_init__(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        events, self._valid_bytes = parse_events(content, self.path)
        for number, event in enumerate(events, start=1):
            try:
                for fold in self.folds:
                    fold(event)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                problem = f"line {number} does not fit what stands before it"
                reason = f"{type(error).__name__}: {error}"
                raise UserError(f"{self.path} is damaged: {problem} ({reason}).") from error
        self._file = open(self.path, "ab", buffering=0)
        self.truncated_bytes = len(content) - self._valid_bytes
        if self.truncated_bytes:
            self._file.truncate(self._valid_bytes)
        self._opened_at = time.monotonic()

    def append(self, event: Event) -> None:
        """Write an event to the disk, then call the folds; after a failure, raise it again."""
        now, session_seconds = time.time(), time.monotonic() - self._opened_at
        stamps = {"time": round(now, 3), "session_seconds": round(session_seconds, 3)}
        event = event.model_copy(update=stamps)
        fields = {"kind": event.kind, **event.model_dump(mode="json")}
        line = json.dumps(fields, allow_nan=False).encode() + b"\n"
        if self.failure is not None:
            raise self.failure
        try:
            with disk_full_as_error(self.path):
                self._write_line(line)
        except (RunError, OSError) as error:
            with suppress(OSError):  # a part of the line may be written
                self._file.truncate(self._valid_bytes)
            if not isinstance(error, RunError):
                error = RunError(f"{self.path}: {error}")
            self.failure = error
            raise error
        for fold in self.folds:
            fold(event)

    def _write_line(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < self._valid_bytes:
            raise RunError(f"{self.path} was shortened by another program while the sweep ran.")
        if size > self._valid_bytes:  # another process has written to the file
            self._file.truncate(self._valid_bytes)
        remaining = memoryview(line)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]
        os.fsync(self._file.fileno())
        self._valid_bytes += len(line)

    def __exit__(self, *error: object) -> None:
        self._file.close()
