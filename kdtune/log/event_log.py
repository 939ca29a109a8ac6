"""The log of a sweep: an append-only file with one event per line."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from kdtune.errors import RunError, UserError
from kdtune.log.events import EVENTS, Event
from kdtune.storage.files import disk_full_as_error


def parse_events(content: bytes, path: Path, lines_before: int = 0) -> tuple[list[Event], int]:
    """Parse lines of a log; what a crash left after the last event is skipped.

    Args:
        content: content of the file after the first `lines_before` lines.
        path: path of the file.
        lines_before: number of lines that were parsed before.

    Returns:
        The events, and the number of bytes that they take.
    """
    events: list[Event] = []
    parsed_bytes, position, damaged_line = 0, 0, 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=lines_before + 1):
        position += len(line) + 1
        try:
            event = EVENTS.validate_json(line)
        except ValidationError:
            event = None
        if event is None or not {"time", "session_seconds"} <= event.model_fields_set:
            if number == 1 and b'"event": "sweep"' in line:
                raise UserError(
                    f"{path.parent} was written by kdtune 0.1, which this version cannot read; "
                    "use that version, or run the sweep again."
                )
            damaged_line = damaged_line or number
        elif damaged_line:
            raise UserError(
                f"{path} is damaged: line {damaged_line} is no event, but others follow it."
            )
        else:
            events.append(event)
            parsed_bytes = position
    return events, parsed_bytes


class EventLog:
    """The log, open for appending by one process; used in a ``with`` statement.

    Args:
        path: the file; what a crash left after the last event is cut off.
        folds: are called in this order with every event, with a new one after it is on the disk.
    """

    def __init__(self, path: Path, folds: Sequence[Callable[[Event], None]]):
        self.path, self._folds = path, folds
        self.failure: RunError | None = None
        """Error after which nothing can be appended; Ray may wrap it when it is raised."""
        self._file = open(path, "a+b", buffering=0)
        try:
            self._file.seek(0)
            content = self._file.read()
            events, self._valid_bytes = parse_events(content, path)
            self.truncated_bytes = len(content) - self._valid_bytes
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
        """Write an event to the disk, then call the folds.

        Raises:
            ValueError: the event holds NaN or another value that JSON cannot represent.
            RunError: it cannot be written; the log is as before, and takes no further event.
        """
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
        self._fold(event)

    def _write_line(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < self._valid_bytes:
            raise RunError(f"{self.path} was cut by something else while the sweep ran.")
        if size > self._valid_bytes:  # another process has written to the file
            self._file.truncate(self._valid_bytes)
        remaining = memoryview(line)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]
        os.fsync(self._file.fileno())
        self._valid_bytes += len(line)

    def _fold(self, event: Event) -> None:
        for fold in self._folds:
            fold(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
