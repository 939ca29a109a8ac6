"""Checkpoints of the trials under way, so that one whose process died goes on.

One is written when an epoch ends, if that costs at most `SHARE` of the time that was trained since
the last one; a trial that is left writes its last epoch in any case. It is whole when it has its
name; that it reached the disk is not waited for, which takes several times as long, so after a
crash of the machine it may be damaged: then its checksums show it, and the one before is taken.
"""

import shutil
import tempfile
import time
import zipfile
from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdtune.checkpoints import read_checkpoint, save_model, write_checkpoint
from kdtune.config import OF_PLACES, TrainConfig
from kdtune.errors import UserError
from kdtune.export import Best
from kdtune.reports.tables import SOUND
from kdtune.results import Cell, Event, SweepFolder, cell_of
from kdtune.storage import Storage, StorageError
from kdtune.training import EpochResult

SHARE = 0.02
"""Part of the time of training that checkpoints may take."""

KEPT = 2
"""Checkpoints of a trial that are kept: the last one may be damaged."""

PAUSE = 10
"""So many times the time that a storage took to fail it is left alone."""

PAUSES = (0.0, 1.0, 5.0)
"""Seconds before each time that a storage is asked for the checkpoint of a trial that goes on."""

CLEARING = 60
"""Seconds that are waited at the end for the removal of checkpoints from a storage."""

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
        """What `kdtune.training.fit` needs to go on, and the figures of all epochs so far.

        Of the newest checkpoint that is whole; None if there is none.
        """
        for path in reversed(checkpoints_in(self.folder)):
            if (content := _read(path)) is None or not self._is_own(content):
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


def bring(storage: Storage | None, folder: SweepFolder, trial_id: str) -> None:
    """Bring the checkpoints of a trial from the storage to the sweep's folder, if there is one.

    What the storage does not give now is missing for now: see `Networks` and `Leftovers`.
    """
    if storage is None:
        return
    place = folder.checkpoints / trial_id
    with suppress(StorageError):
        for name in storage.at(trial_id).names():
            if not (place / name).exists():
                storage.at(trial_id).get(name, place / name)


def forget(storage: Storage | None, folder: SweepFolder, trial_id: str) -> None:
    """Remove the checkpoints of a trial, wherever they are."""
    shutil.rmtree(folder.checkpoints / trial_id, ignore_errors=True)
    if storage is not None:
        with suppress(StorageError):
            storage.at(trial_id).clear()


def _read(path: Path) -> dict[str, Any] | None:
    """A checkpoint, or None if it is damaged."""
    with suppress(UserError, OSError, zipfile.BadZipFile):
        if zipfile.ZipFile(path).testzip() is None:
            return read_checkpoint(path)
    return None


def best_network(folder: SweepFolder, trial_id: str) -> dict[str, Any] | None:
    """The network of a trial at its best epoch, as a checkpoint, from the trial's last one.

    None if there is no whole one. A process that was killed at the end may have left one of an
    earlier epoch only; ``epoch`` and ``validation_accuracy`` say what it is.
    """
    paths = reversed(checkpoints_in(folder.checkpoints / trial_id))
    content = next((c for c in map(_read, paths) if c is not None), None)
    if content is None:
        return None
    training = content["training"]
    return {
        "weights": training.get("best_weights", content["weights"]),
        "config": content["config"],
        "classes": content["classes"],
        "epoch": training["best_epoch"],
        "validation_accuracy": training["best_validation_accuracy"],
        "trial_id": trial_id,
        **({"plugins": content["plugins"]} if "plugins" in content else {}),
    }


def write_networks(
    folder: SweepFolder, best: Mapping[Cell, Best], storage: Storage | None = None
) -> None:
    """Write `best/<method>-<model>.pth`: the network of what stands for each cell.

    That of a trial comes from its last checkpoint; where that is lost, there is none.

    Args:
        folder: of the sweep.
        best: see `kdtune.export.best_of_cells`.
        storage: of checkpoints; None if they are in the folder.

    Raises:
        DiskFullError: there is no room.
    """
    for cell, found in best.items():
        path = folder.best(*cell, ".pth")
        if path.exists() and (_read(path) or {}).get("trial_id") != found.name:
            path.unlink()
        if not path.exists():
            bring(None if found.confirmed else storage, folder, found.name)
            kept = folder.network(found.name)
            content = _read(kept) if found.confirmed else best_network(folder, found.name)
            if content and content["validation_accuracy"] == found.validation_accuracy:
                write_checkpoint(path, content)


class Networks:
    """Keeps the networks of confirmed runs, until another candidate of their cell is chosen.

    A fold over the log of a confirmation. What was in it before `begin` is acted on then. The
    checkpoints of a run stay until its network is written: a storage that fails now may give them
    another time.

    Args:
        folder: the sweep's.
        storage: of checkpoints; None if they are in the folder.
    """

    def __init__(self, folder: SweepFolder, storage: Storage | None = None):
        self.folder, self.storage = folder, storage
        self._runs: dict[str, tuple[Cell, str]] = {}
        self._known: list[Event] = []
        self._live = False

    def begin(self) -> None:
        """Keep what an earlier driver left, and from now on what comes."""
        self._live = True
        for event in self._known:
            self._act(event)

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if event["event"] == "asked":
            self._runs[event["trial_id"]] = cell_of(event), event["confirms"]
        elif event["event"] in ("ended", "chosen"):
            if self._live:
                self._act(event)
            else:
                self._known.append(event)

    def _act(self, event: Event) -> None:
        if event["event"] == "chosen":
            for run, (cell, trial) in self._runs.items():
                if cell == cell_of(event) and trial != event["confirms"]:
                    self.folder.network(run).unlink(missing_ok=True)
            return
        run = event["trial_id"]
        path = self.folder.network(run)
        if event["state"] == "finished" and not path.is_file():
            bring(self.storage, self.folder, run)
            content = best_network(self.folder, run)
            if not content or content["validation_accuracy"] != event["best_validation_accuracy"]:
                return
            write_checkpoint(path, content)
        forget(self.storage, self.folder, run)


class Leftovers:
    """Removes the checkpoints of trials that have ended, but for the best of each cell.

    A fold over the log. A trial's process writes its last checkpoint while its end is logged, so
    it is removed only when a further trial has ended. What was in the log before `begin` is not
    acted on.

    Args:
        folder: the sweep's.
        storage: of checkpoints; None if they are in the folder.
    """

    def __init__(self, folder: SweepFolder, storage: Storage | None = None):
        self.folder, self.storage = folder, storage
        self._ended: set[str] = set()
        self._thread = ThreadPoolExecutor(1)  # nobody waits for a storage that is slow
        self._clearing: Future[None] | None = None
        self._best: dict[Cell, tuple[float, int, str]] = {}
        self._numbers: dict[str, int] = {}
        self._live = False

    def begin(self) -> None:
        """Remove what an earlier driver left, and from now on what is left."""
        self._live = True
        self.remove()

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if event["event"] == "asked":
            self._numbers[event["trial_id"]] = event["number"]
        elif event["event"] == "ended":
            self._ended.add(event["trial_id"])
            accuracy = event["best_validation_accuracy"]
            if event["state"] in SOUND and accuracy is not None:
                rank = accuracy, -self._numbers[event["trial_id"]], event["trial_id"]
                cell = cell_of(event)
                self._best[cell] = max(self._best.get(cell, rank), rank)
            if self._live:
                self.remove(keep=event["trial_id"])

    def remove(self, keep: str | None = None) -> None:
        """Remove them; `keep` is a trial that has just ended."""
        self._remove(self._ended - {trial_id for *_, trial_id in self._best.values()} - {keep})

    def remove_all(self) -> None:
        """Remove those of the best, too, whose networks are written."""
        best = {cell: trial_id for cell, (*_, trial_id) in self._best.items()}
        written = [cell for cell in best if self.folder.best(*cell, ".pth").is_file()]
        self._wait()
        self._remove(self._ended - {best[cell] for cell in best.keys() - written})
        self._wait()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _wait(self) -> None:
        if self._clearing is not None:
            wait([self._clearing], CLEARING)

    def _remove(self, trials: Set[str | None]) -> None:
        for path in self.folder.checkpoints.glob("*"):
            if path.name in trials:
                shutil.rmtree(path, ignore_errors=True)
        if self.storage is not None and (self._clearing is None or self._clearing.done()):
            self._clearing = self._thread.submit(_clear, self.storage, trials)


def _clear(storage: Storage, trials: Set[str | None]) -> None:
    """Remove checkpoints of trials; what is not removed now is removed another time."""
    with suppress(StorageError):
        for trial_id in {name.split("/")[0] for name in storage.names()} & trials:
            storage.at(str(trial_id)).clear()
