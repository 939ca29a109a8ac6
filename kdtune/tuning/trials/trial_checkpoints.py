"""Checkpoints of running trials, from which a trial resumes after its process died.

Writing does not wait for the disk, which would take several times as long, so a crash of the
machine may damage a checkpoint: its checksums show that, and the one before is loaded.
"""

import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kdtune.config.same_settings import LOCATION_FIELDS, changed_settings
from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.log.events import EpochMetrics
from kdtune.models.checkpoints import read_checkpoint, save_model
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.loop import EpochResult

CHECKPOINT_TIME_SHARE = 0.02  # of the training time, at most
CHECKPOINTS_PER_TRIAL = 2  # the last one may be damaged
STORAGE_PAUSE_FACTOR = 10  # pause after a failure, in multiples of the time that it took
LOAD_RETRY_DELAYS_SECONDS = (0.0, 1.0, 5.0)  # before each try to load from a storage


@dataclass
class WriteCost:
    """Measured cost of writing a checkpoint, which the trials of a process share."""

    seconds_per_byte: float = 1e-9  # a guess before the first checkpoint


@dataclass
class TrialCheckpoints:
    """The checkpoints of one trial; the settings say which of them are of this trial."""

    folder: Path  # of this trial alone
    config: TrainConfig
    classes: tuple[str, ...]
    write_cost: WriteCost = field(default_factory=WriteCost)

    def __post_init__(self) -> None:
        self._saved_epoch, self._seconds_since_save = 0, 0.0

    def load_latest(self) -> tuple[dict[str, Any], list[EpochMetrics]] | None:
        """Return state for `fit` and all metrics of the newest intact checkpoint, if any."""
        for path in reversed(list_checkpoints(self.folder)):
            if (content := read_if_intact(path)) is None:
                continue
            if changed_settings(content["config"], self.config).keys() <= LOCATION_FIELDS:
                self._saved_epoch = content["epoch"]
                history = [EpochMetrics(**metrics) for metrics in content["history"]]
                return resumable_state(content), history
        return None

    def save_if_due(self, result: EpochResult, history: list[EpochMetrics]) -> None:
        """Save a checkpoint if it costs little of the training time since the last one.

        Args:
            result: the latest epoch.
            history: metrics of all epochs, up to that one.
        """
        self._seconds_since_save += result.seconds
        best_bytes = count_bytes(result.state["best_weights"]) if result.is_best else 0
        num_bytes = count_bytes(result.state) - best_bytes  # those are the student's
        write_seconds = num_bytes * self.write_cost.seconds_per_byte
        if write_seconds <= CHECKPOINT_TIME_SHARE * self._seconds_since_save:
            self.save(result, history)

    def save(self, result: EpochResult, history: list[EpochMetrics]) -> None:
        """Save a checkpoint of the latest epoch unless there is one.

        Args:
            result: the latest epoch.
            history: metrics of all epochs, up to that one.
        """
        if self._saved_epoch == result.epoch:
            return
        started = time.perf_counter()
        path = self.folder / f"epoch-{result.epoch:05d}.pth"
        metrics = [metrics.model_dump() for metrics in history]
        save_epoch(path, self.config, self.classes, result, history=metrics)
        for old in list_checkpoints(self.folder)[:-CHECKPOINTS_PER_TRIAL]:
            old.unlink(missing_ok=True)
        self._saved_epoch, self._seconds_since_save = result.epoch, 0.0
        self.write_cost.seconds_per_byte = (time.perf_counter() - started) / path.stat().st_size


@dataclass
class RemoteTrialCheckpoints(TrialCheckpoints):
    """The checkpoints of one trial in a storage, which may fail; the folder is a temporary one."""

    storage: Storage = field(kw_only=True)  # a folder of this trial alone
    _retry_after: float = field(default=0.0, init=False)

    def load_latest(self) -> tuple[dict[str, Any], list[EpochMetrics]] | None:
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
        if time.monotonic() >= self._retry_after:
            super().save_if_due(result, history)

    def save(self, result: EpochResult, history: list[EpochMetrics]) -> None:
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
        else:
            seconds = time.monotonic() - started
            self.write_cost.seconds_per_byte += seconds / path.stat().st_size


def save_epoch(
    path: Path, config: TrainConfig, classes: tuple[str, ...], result: EpochResult, **values: Any
) -> None:
    """Save a network and the state after an epoch, from which `resumable_state` resumes.

    Args:
        path: the file.
        config: the run's settings.
        classes: class names.
        result: the epoch.
        values: further plain values.
    """
    training = {key: value for key, value in result.state.items() if key != "student"}
    if result.is_best:
        del training["best_weights"]  # they are the student's
    save_model(
        path,
        result.student,
        config=config.model_dump(),
        classes=list(classes),
        epoch=result.epoch,
        validation_accuracy=result.validation_score(config),
        training=training,
        sync=False,
        **values,
    )


def resumable_state(content: dict[str, Any]) -> dict[str, Any]:
    """Return the state for `fit` from the content of a checkpoint."""
    weights = content["weights"]
    return {"best_weights": weights, **content["training"], "student": weights}


def count_bytes(state: object) -> int:
    """Return the bytes of all tensors in dicts, and dicts of these."""
    if isinstance(state, Mapping):
        return sum(map(count_bytes, state.values()))
    return state.nbytes if isinstance(state, Tensor) else 0


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the paths of a trial's checkpoints, the newest last."""
    return sorted(folder.glob("epoch-*.pth"))


def read_if_intact(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint, or None if it is damaged."""
    with suppress(UserError, OSError, zipfile.BadZipFile):
        if zipfile.ZipFile(path).testzip() is None:
            return read_checkpoint(path)
    return None
