"""What stays of trials that have ended: networks. Their checkpoints go."""

import shutil
from collections.abc import Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Protocol

from kdtune.export.selected_runs import SelectedRun
from kdtune.log.events import (
    SUCCESSFUL_STATES,
    CandidateChosen,
    Cell,
    Event,
    TrialEnded,
    TrialProposed,
    TrialState,
)
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import write_checkpoint
from kdtune.storage.remote import Storage, StorageError
from kdtune.tuning.trials.trial_checkpoints import list_checkpoints, read_if_intact

CLEANUP_TIMEOUT_SECONDS = 60
"""Seconds that are waited at the end for the removal of checkpoints from a storage."""


def _load_best_weights(folder: SweepFolder, trial_id: str) -> dict[str, Any] | None:
    """The network of a trial at its best epoch, as a checkpoint, from the trial's last one.

    None if there is no whole one. A process that was killed at the end may have left one of an
    earlier epoch only; ``epoch`` and ``validation_accuracy`` say what it is.
    """
    paths = reversed(list_checkpoints(folder.checkpoints_folder / trial_id))
    content = next((c for c in map(read_if_intact, paths) if c is not None), None)
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


def write_best_weights(
    folder: SweepFolder, best: Mapping[Cell, SelectedRun], storage: Storage | None = None
) -> None:
    """Write `best/<method>-<model>.pth`: the network of what stands for each cell.

    That of a trial comes from its last checkpoint; where that is lost, there is none.

    Args:
        folder: of the sweep.
        best: see `kdtune.export.selected_runs.select_best_runs`.
        storage: of checkpoints; None if they are in the folder.

    Raises:
        DiskFullError: there is no room.
    """
    for cell, selected in best.items():
        path = folder.best_path(*cell, ".pth")
        if path.exists() and (read_if_intact(path) or {}).get("trial_id") != selected.name:
            path.unlink()
        if not path.exists():
            _download(None if selected.confirmed else storage, folder, selected.name)
            confirmed_path = folder.network_path(selected.name)
            content = (
                read_if_intact(confirmed_path)
                if selected.confirmed
                else _load_best_weights(folder, selected.name)
            )
            if content and content["validation_accuracy"] == selected.validation_accuracy:
                write_checkpoint(path, content)


def _download(storage: Storage | None, folder: SweepFolder, trial_id: str) -> None:
    """Bring the checkpoints of a trial from the storage to the sweep's folder, if there is one.

    What the storage does not give now is missing for now: see `Networks` and `Leftovers`.
    """
    if storage is None:
        return
    checkpoint_folder = folder.checkpoints_folder / trial_id
    with suppress(StorageError):
        for name in storage.subfolder(trial_id).list_files():
            if not (checkpoint_folder / name).exists():
                storage.subfolder(trial_id).download(name, checkpoint_folder / name)


def _delete(storage: Storage | None, folder: SweepFolder, trial_id: str) -> None:
    """Remove the checkpoints of a trial, wherever they are."""
    shutil.rmtree(folder.checkpoints_folder / trial_id, ignore_errors=True)
    if storage is not None:
        with suppress(StorageError):
            storage.subfolder(trial_id).remove_folder()


class FileKeeper(Protocol):
    """Files that follow from a log: a fold over it that acts only on what comes after `begin`."""

    def fold(self, event: Event) -> None:
        """Take an event of the log."""

    def activate(self) -> None:
        """Act on what is known, and from now on on what comes."""


class ConfirmedWeights:
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
        self._runs: dict[str, TrialProposed] = {}
        self._past_events: list[TrialEnded | CandidateChosen] = []
        self._active = False

    def activate(self) -> None:
        """Keep what an earlier driver left, and from now on what comes."""
        self._active = True
        for event in self._past_events:
            self._apply(event)

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if isinstance(event, TrialProposed):
            self._runs[event.trial_id] = event
        elif isinstance(event, TrialEnded | CandidateChosen):
            if self._active:
                self._apply(event)
            else:
                self._past_events.append(event)

    def _apply(self, event: TrialEnded | CandidateChosen) -> None:
        if isinstance(event, CandidateChosen):
            for run_id, run in self._runs.items():
                if run.cell == event.cell and run.candidate != event.candidate:
                    self.folder.network_path(run_id).unlink(missing_ok=True)
            return
        run_id = event.trial_id
        path = self.folder.network_path(run_id)
        if event.state is TrialState.FINISHED and not path.is_file():
            _download(self.storage, self.folder, run_id)
            content = _load_best_weights(self.folder, run_id)
            if not content or content["validation_accuracy"] != event.best_validation_accuracy:
                return
            write_checkpoint(path, content)
        _delete(self.storage, self.folder, run_id)


class CheckpointCleanup:
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
        self._executor = ThreadPoolExecutor(1)  # nobody waits for a storage that is slow
        self._removal: Future[None] | None = None
        self._best: dict[Cell, tuple[float, int, str]] = {}
        self._trial_numbers: dict[str, int] = {}
        self._active = False

    def activate(self) -> None:
        """Remove what an earlier driver left, and from now on what is left."""
        self._active = True
        self.remove_ended()

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        if isinstance(event, TrialProposed):
            self._trial_numbers[event.trial_id] = event.number
        elif isinstance(event, TrialEnded):
            self._ended.add(event.trial_id)
            accuracy = event.best_validation_accuracy
            if event.state in SUCCESSFUL_STATES and accuracy is not None:
                rank = accuracy, -self._trial_numbers[event.trial_id], event.trial_id
                self._best[event.cell] = max(self._best.get(event.cell, rank), rank)
            if self._active:
                self.remove_ended(just_ended=event.trial_id)

    def remove_ended(self, just_ended: str | None = None) -> None:
        """Remove them; `keep` is a trial that has just ended."""
        self._remove_checkpoints(
            self._ended - {trial_id for *_, trial_id in self._best.values()} - {just_ended}
        )

    def remove_all(self) -> None:
        """Remove those of the best, too, whose networks are written."""
        best = {cell: trial_id for cell, (*_, trial_id) in self._best.items()}
        written = [cell for cell in best if self.folder.best_path(*cell, ".pth").is_file()]
        self._wait_for_removal()
        self._remove_checkpoints(self._ended - {best[cell] for cell in best.keys() - written})
        self._wait_for_removal()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _wait_for_removal(self) -> None:
        if self._removal is not None:
            wait([self._removal], CLEANUP_TIMEOUT_SECONDS)

    def _remove_checkpoints(self, trials: Set[str | None]) -> None:
        for path in self.folder.checkpoints_folder.glob("*"):
            if path.name in trials:
                shutil.rmtree(path, ignore_errors=True)
        if self.storage is not None and (self._removal is None or self._removal.done()):
            self._removal = self._executor.submit(_clear_storage, self.storage, trials)


def _clear_storage(storage: Storage, trials: Set[str | None]) -> None:
    """Remove checkpoints of trials; what is not removed now is removed another time."""
    with suppress(StorageError):
        for trial_id in {name.split("/")[0] for name in storage.list_files()} & trials:
            storage.subfolder(str(trial_id)).remove_folder()
