"""Checkpoints of the trials under way, so that one whose process died goes on.

One is written when an epoch ends, if that costs at most `SHARE` of the time that was trained since
the last one; a trial that is left writes its last epoch in any case. It is whole when it has its
name; that it reached the disk is not waited for, which takes several times as long, so after a
crash of the machine it may be damaged: then its checksums show it, and the one before is taken.
"""

import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdtune.config.train import OF_PLACES, TrainConfig
from kdtune.errors import UserError
from kdtune.models.checkpoints import read_checkpoint, save_model
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.loop import EpochResult

SHARE = 0.02
"""Part of the time of training that checkpoints may take."""

KEPT = 2
"""Checkpoints of a trial that are kept: the last one may be damaged."""

PAUSE = 10
"""So many times the time that a storage took to fail it is left alone."""

PAUSES = (0.0, 1.0, 5.0)
"""Seconds before each time that a storage is asked for the checkpoint of a trial that goes on."""

Figures = dict[str, Any]


class TrialFiles:
    """The checkpoints of one trial.

    Args:
        folder: of this trial alone.
        config: its settings; what other settings made is passed over.
        classes: class names.
    """

    seconds_per_byte = 1e-9
    """What writing costs, as measured by this process; at first, a guess."""

    def __init__(self, folder: Path, config: TrainConfig, classes: tuple[str, ...]):
        self.folder, self.config, self.classes = folder, config, classes
        self._saved, self._trained = 0, 0.0

    def newest(self) -> tuple[dict[str, Any], list[Figures]] | None:
        """What `kdtune.training.loop.fit` needs to go on, and the figures of all epochs so far.

        Of the newest checkpoint that is whole; None if there is none.
        """
        for path in reversed(checkpoints_in(self.folder)):
            if (content := read_whole(path)) is None or not self._is_own(content):
                continue
            weights, training = content["weights"], content["training"]
            self._saved = content["epoch"]
            return {"best_weights": weights, **training, "student": weights}, content["history"]
        return None

    def _is_own(self, content: dict[str, Any]) -> bool:
        mine = self.config.model_dump()
        theirs = content["config"]
        return all(theirs.get(key) == mine[key] for key in mine.keys() - OF_PLACES)

    def keep(self, result: EpochResult, history: list[Figures]) -> None:
        """Write a checkpoint of an epoch, if it is time for one.

        Args:
            result: the latest epoch.
            history: figures of all epochs, its own included.
        """
        self._trained += result.seconds
        size = sum(tensor.nbytes for tensor in result.state["student"].values())
        size *= 2 if result.is_best else 3  # the optimizer has as much, and so have other weights
        if size * self.seconds_per_byte <= SHARE * self._trained:
            self.write(result, history)

    def write(self, result: EpochResult, history: list[Figures]) -> None:
        """Write a checkpoint of an epoch, unless there is one.

        Raises:
            DiskFullError: there is no room.
        """
        if self._saved == result.epoch:
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
            history=history,
            sync=False,
        )
        for old in checkpoints_in(self.folder)[:-KEPT]:
            old.unlink(missing_ok=True)
        self._saved, self._trained = result.epoch, 0.0
        TrialFiles.seconds_per_byte = (time.perf_counter() - started) / path.stat().st_size

    def close(self) -> None:
        """The process works on the trial no more."""


class StoredFiles(TrialFiles):
    """The checkpoints of one trial, in a storage.

    Args:
        storage: a folder of this trial alone.
        config: as for `TrialFiles`.
        classes: as for `TrialFiles`.
    """

    def __init__(self, storage: Storage, config: TrainConfig, classes: tuple[str, ...]):
        self._here = tempfile.TemporaryDirectory(prefix="kdtune-", ignore_cleanup_errors=True)
        super().__init__(Path(self._here.name), config, classes)
        self.storage, self._not_before = storage, 0.0

    def newest(self) -> tuple[dict[str, Any], list[Figures]] | None:
        """As `TrialFiles.newest`; None, too, if the storage goes on failing."""
        for pause in PAUSES:
            time.sleep(pause)
            failed = True
            with suppress(StorageError):
                names, failed = self._names(), False
                for name in reversed(names):
                    try:
                        self.storage.get(name, self.folder / name)
                    except StorageError:
                        failed = True
                    if (found := super().newest()) is not None:
                        return found
            if not failed:
                break
        return None

    def keep(self, result: EpochResult, history: list[Figures]) -> None:
        """As `TrialFiles.keep`; not soon after the storage has failed."""
        if time.monotonic() >= self._not_before:
            super().keep(result, history)

    def write(self, result: EpochResult, history: list[Figures]) -> None:
        """As `TrialFiles.write`; there is none, and no error, if the storage fails."""
        if self._saved == result.epoch:
            return
        super().write(result, history)
        [*_, path] = checkpoints_in(self.folder)
        started = time.monotonic()
        try:
            self.storage.put(path, path.name)
            for name in self._names()[:-KEPT]:
                self.storage.remove(name)
        except StorageError:
            now = time.monotonic()
            self._saved, self._not_before = 0, now + PAUSE * (now - started)
            return
        TrialFiles.seconds_per_byte += (time.monotonic() - started) / path.stat().st_size

    def _names(self) -> list[str]:
        return [name for name in self.storage.names() if name.startswith("epoch-")]

    def close(self) -> None:
        """Leave nothing on the node."""
        self._here.cleanup()


def checkpoints_in(folder: Path) -> list[Path]:
    """A trial's checkpoints, the newest last."""
    return sorted(folder.glob("epoch-*.pth"))


def read_whole(path: Path) -> dict[str, Any] | None:
    """A checkpoint, or None if it is damaged."""
    with suppress(UserError, OSError, zipfile.BadZipFile):
        if zipfile.ZipFile(path).testzip() is None:
            return read_checkpoint(path)
    return None
