"""The figures of every trial for TensorBoard, a folder a trial; a fold over the log."""

import shutil
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from kdtune.results import Event


class TensorBoard:
    """Writes what is new; what is known when a sweep is resumed is written once.

    Args:
        folder: for the folders of trials.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: dict[str, list[Event]] = {}
        self._ended: set[str] = set()
        self._writers: dict[str, SummaryWriter] | None = None

    def begin(self) -> None:
        """Write from now on; trials under way, of which a part was written, are written anew."""
        self._writers = {}
        for trial_id, epochs in self._known.items():
            if trial_id not in self._ended or not (self.folder / trial_id).exists():
                shutil.rmtree(self.folder / trial_id, ignore_errors=True)
                for event in epochs:
                    self._write(event)
            if trial_id in self._ended:
                self._close(trial_id)
        self._known.clear()

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if event["event"] == "epoch":
            if self._writers is None:
                self._known.setdefault(event["trial_id"], []).append(event)
            else:
                self._write(event)
        elif event["event"] == "ended":
            self._ended.add(event["trial_id"])
            self._close(event["trial_id"])

    def close(self) -> None:
        """Finish all files."""
        for trial_id in list(self._writers or ()):
            self._close(trial_id)

    def _write(self, event: Event) -> None:
        assert self._writers is not None
        trial_id = event["trial_id"]
        if trial_id not in self._writers:
            self._writers[trial_id] = SummaryWriter(self.folder / trial_id)
        for key, value in event.items():
            if isinstance(value, float) and key not in ("time", "session_seconds"):
                self._writers[trial_id].add_scalar(key, value, event["epoch"])
        self._writers[trial_id].flush()

    def _close(self, trial_id: str) -> None:
        if self._writers is not None and (writer := self._writers.pop(trial_id, None)):
            with suppress(OSError):  # a full disk is told by what cannot do without
                writer.close()
