"""Checkpoints of running trials, from which a trial resumes after its process died.

A checkpoint is written at the end of an epoch if that costs at most `CHECKPOINT_TIME_SHARE` of the
training time since the last one, and always when a trial is left. It is renamed to its final name
once it is complete. Writing does not wait for the disk, which would take several times as long, so
a crash of the machine may damage it: its checksums show that, and the one before is loaded.
"""

import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtune.config.train import LOCATION_FIELDS, TrainConfig
from kdtune.errors import UserError
from kdtune.log.events import EpochMetrics
from kdtune.models.checkpoints import read_checkpoint, save_model
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.loop import EpochResult

CHECKPOINT_TIME_SHARE = 0.02
"""Maximum share of the training time that checkpoints take."""

CHECKPOINTS_PER_TRIAL = 2
"""Checkpoints of a trial that are kept: the last one may be damaged."""

STORAGE_PAUSE_FACTOR = 10
"""Pause after a storage failed, in multiples of the time that the failing took."""

LOAD_RETRY_DELAYS_SECONDS = (0.0, 1.0, 5.0)
"""Seconds before each try to load a checkpoint from a storage."""


@dataclass
class WriteCost:
    """Measured cost of writing a checkpoint, which the trials of a process share.

    Attributes:
        seconds_per_byte: measured at the last checkpoint; a guess before the first one.
    """

    seconds_per_byte: float = 1e-9


class TrialCheckpoints:
    """The checkpoints of one trial.

    Args:
        folder: for this trial alone.
        config: its settings; checkpoints of other settings are skipped.
        classes: class names.
        write_cost: shared by the trials of a process.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        classes: tuple[str, ...],
        write_cost: WriteCost | None = None,
    ):
        self.folder, self.config, self.classes = folder, config, classes
        self.write_cost = write_cost or WriteCost()
        self._saved_epoch, self._seconds_since_save = 0, 0.0

    def load_latest(self) -> tuple[dict[str, Any], list[EpochMetrics]] | None:
        """Load the newest intact checkpoint, if there is one.

        Returns:
            The state for `kdtune.training.loop.fit`, and the metrics of all epochs so far.
        """
        for path in reversed(list_checkpoints(self.folder)):
            if (content := read_if_intact(path)) is None or not self._has_same_config(content):
                continue
            weights, training = content["weights"], content["training"]
            self._saved_epoch = content["epoch"]
            return {"best_weights": weights, **training, "student": weights}, [
                EpochMetrics(**metrics) for metrics in content["history"]
            ]
        return None

    def _has_same_config(self, content: dict[str, Any]) -> bool:
        expected, stored = self.config.model_dump(), content["config"]
        return all(stored.get(key) == expected[key] for key in expected.keys() - LOCATION_FIELDS)

    def save_if_due(self, result: EpochResult, history: list[EpochMetrics]) -> None:
        """Save a checkpoint if it costs little of the training time since the last one.

        Args:
            result: the latest epoch.
            history: metrics of all epochs, up to that one.
        """
        self._seconds_since_save += result.seconds
        size = sum(tensor.nbytes for tensor in result.state["student"].values())
        size *= 2 if result.is_best else 3  # the optimizer has as much, and so have other weights
        write_seconds = size * self.write_cost.seconds_per_byte
        if write_seconds <= CHECKPOINT_TIME_SHARE * self._seconds_since_save:
            self.save(result, history)

    def save(self, result: EpochResult, history: list[EpochMetrics]) -> None:
        """Save a checkpoint of the latest epoch unless there is one.

        Args:
            result: the latest epoch.
            history: metrics of all epochs, up to that one.

        Raises:
            DiskFullError: there is no room.
        """
        if self._saved_epoch == result.epoch:
            return
        started = time.perf_counter()
        training = {key: value for key, value in result.state.items() if key != "student"}
        if result.is_best:
            del training["best_weights"]  # they are the student's
        path = self.folder / f"epoch-{result.epoch:05d}.pth"
        save_model(
            path,
            result.student,
            config=self.config.model_dump(),
            classes=list(self.classes),
            epoch=result.epoch,
            validation_accuracy=result.validation_accuracy,
            training=training,
            history=[metrics.model_dump() for metrics in history],
            sync=False,
        )
        for old in list_checkpoints(self.folder)[:-CHECKPOINTS_PER_TRIAL]:
            old.unlink(missing_ok=True)
        self._saved_epoch, self._seconds_since_save = result.epoch, 0.0
        self.write_cost.seconds_per_byte = (time.perf_counter() - started) / path.stat().st_size

    def close(self) -> None:
        """Release what the checkpoints hold besides their folder."""


class RemoteTrialCheckpoints(TrialCheckpoints):
    """The checkpoints of one trial in a storage.

    Args:
        storage: a folder of this trial alone.
        config: complete settings of the trial.
        classes: class names.
        write_cost: shared by the trials of a process.
    """

    def __init__(
        self,
        storage: Storage,
        config: TrainConfig,
        classes: tuple[str, ...],
        write_cost: WriteCost | None = None,
    ):
        self._temporary_folder = tempfile.TemporaryDirectory(
            prefix="kdtune-", ignore_cleanup_errors=True
        )
        super().__init__(Path(self._temporary_folder.name), config, classes, write_cost)
        self.storage, self._retry_after = storage, 0.0

    def load_latest(self) -> tuple[dict[str, Any], list[EpochMetrics]] | None:
        """Load the newest intact checkpoint; None if there is none or the storage fails."""
        for delay in LOAD_RETRY_DELAYS_SECONDS:
            time.sleep(delay)
            with suppress(StorageError):
                for name in reversed(self.storage.list_files()):
                    self.storage.download(name, self.folder / name)
                    if (latest := super().load_latest()) is not None:
                        return latest
                return None
        return None

    def save_if_due(self, result: EpochResult, history: list[EpochMetrics]) -> None:
        """Write a checkpoint if it is time for one, and the storage did not fail just before."""
        if time.monotonic() >= self._retry_after:
            super().save_if_due(result, history)

    def save(self, result: EpochResult, history: list[EpochMetrics]) -> None:
        """Write the checkpoint of an epoch, unless there is one or the storage fails."""
        if self._saved_epoch == result.epoch:
            return
        super().save(result, history)
        [*_, path] = list_checkpoints(self.folder)
        started = time.monotonic()
        try:
            self.storage.upload(path, path.name)
            for name in self.storage.list_files()[:-CHECKPOINTS_PER_TRIAL]:
                self.storage.remove_file(name)
        except StorageError:
            now = time.monotonic()
            self._saved_epoch, self._retry_after = 0, now + STORAGE_PAUSE_FACTOR * (now - started)
            return
        self.write_cost.seconds_per_byte += (time.monotonic() - started) / path.stat().st_size

    def close(self) -> None:
        """Remove the temporary files."""
        self._temporary_folder.cleanup()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the paths of a trial's checkpoints, the newest last."""
    return sorted(folder.glob("epoch-*.pth"))


def read_if_intact(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint, or None if it is damaged."""
    with suppress(UserError, OSError, zipfile.BadZipFile):
        if zipfile.ZipFile(path).testzip() is None:
            return read_checkpoint(path)
    return None
