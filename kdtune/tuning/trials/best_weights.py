"""Weights of the best trials and confirmed runs; removal of the checkpoints of the others."""

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

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
"""Maximum seconds to wait at the end until a storage has removed checkpoints."""


def write_best_weights(
    folder: SweepFolder, best: Mapping[Cell, SelectedRun], storage: Storage | None = None
) -> None:
    """Write `best/<method>-<model>.pth`: the weights of the selected run or trial of each cell.

    The weights of a trial come from its last checkpoint; if that is lost, no file is written.

    Args:
        folder: the sweep's folder.
        best: see `kdtune.export.selected_runs.select_best_runs`.
        storage: holds the checkpoints; None if they are in the folder.
    """
    for cell, selected in best.items():
        path = folder.best_path(*cell, ".pth")
        if path.exists() and (read_if_intact(path) or {}).get("trial_id") != selected.name:
            path.unlink()
        if path.exists():
            continue
        if selected.confirmed:
            content = read_if_intact(folder.network_path(selected.name))
        else:
            content = _load_best_weights(folder, selected.name, storage)
        if content and content["validation_accuracy"] == selected.validation_accuracy:
            write_checkpoint(path, content)


def _load_best_weights(
    folder: SweepFolder, trial_id: str, storage: Storage | None
) -> dict[str, Any] | None:
    """Return a checkpoint of the best epoch in a trial's newest intact checkpoint, if any."""
    checkpoint_folder = folder.checkpoints_folder / trial_id
    if storage is not None:
        with suppress(StorageError):  # a file that is not available now is missing for now
            for name in storage.subfolder(trial_id).list_files():
                if not (checkpoint_folder / name).exists():
                    storage.subfolder(trial_id).download(name, checkpoint_folder / name)
    contents = map(read_if_intact, reversed(list_checkpoints(checkpoint_folder)))
    content = next((content for content in contents if content is not None), None)
    if content is None:
        return None
    training = content["training"]
    return {
        "weights": training.get("best_weights", content["weights"]),
        "epoch": training["best_epoch"],
        "validation_accuracy": training["best_validation_accuracy"],
        "trial_id": trial_id,
        **{key: content[key] for key in ("config", "classes", "plugins") if key in content},
    }


class ConfirmedWeights:
    """Keeps the weights of confirmed runs until another candidate of their cell is chosen.

    It is a fold over the log that acts from `activate` on, on the events before that, too.
    The checkpoints of a run stay until its weights are written, since a storage that fails now
    may give them another time.

    Args:
        folder: the sweep's folder.
        storage: holds the checkpoints; None if they are in the folder.
    """

    def __init__(self, folder: SweepFolder, storage: Storage | None = None):
        self.folder, self.storage, self._active = folder, storage, False
        self._runs: dict[str, TrialProposed] = {}
        self._past_events: list[TrialEnded | CandidateChosen] = []

    def activate(self) -> None:
        """Act on the events so far, and from now on on every event."""
        self._active = True
        for event in self._past_events:
            self._apply(event)
        self._past_events.clear()

    def fold(self, event: Event) -> None:
        """Add an event of the log."""
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
            content = _load_best_weights(self.folder, run_id, self.storage)
            if not content or content["validation_accuracy"] != event.best_validation_accuracy:
                return
            write_checkpoint(path, content)
        shutil.rmtree(self.folder.checkpoints_folder / run_id, ignore_errors=True)
        if self.storage is not None:
            with suppress(StorageError):
                self.storage.subfolder(run_id).remove_folder()


class CheckpointCleanup:
    """Removes the checkpoints of trials that have ended, except those of the best of each cell.

    It is a fold over the log that acts from `activate` on, on the events before that, too.
    A trial's process writes its last checkpoint while its end is logged, so that is removed when
    another trial has ended.

    Args:
        folder: the sweep's folder.
        storage: holds the checkpoints; None if they are in the folder.
    """

    def __init__(self, folder: SweepFolder, storage: Storage | None = None):
        self.folder, self.storage, self._active = folder, storage, False
        self._executor = ThreadPoolExecutor(1)  # the driver does not wait for a slow storage
        self._removals: list[Future[None]] = []
        self._ended: set[str] = set()
        self._best: dict[Cell, tuple[float, int, str]] = {}
        self._trial_numbers: dict[str, int] = {}

    def activate(self) -> None:
        """Remove what an earlier driver left, and from now on what trials leave."""
        self._active = True
        self.remove_ended()

    def fold(self, event: Event) -> None:
        """Add an event of the log."""
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
        """Remove the checkpoints of all ended trials but the best ones and `just_ended`."""
        kept = {trial_id for *_, trial_id in self._best.values()} | {just_ended}
        self._remove_checkpoints(self._ended - kept)

    def remove_all(self) -> None:
        """Remove the checkpoints of the best trials, too, if their weights are written."""
        kept = {
            trial_id
            for cell, (*_, trial_id) in self._best.items()
            if not self.folder.best_path(*cell, ".pth").is_file()
        }
        wait(self._removals, CLEANUP_TIMEOUT_SECONDS)
        self._remove_checkpoints(self._ended - kept)
        wait(self._removals, CLEANUP_TIMEOUT_SECONDS)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _remove_checkpoints(self, trials: set[str]) -> None:
        for path in self.folder.checkpoints_folder.glob("*"):
            if path.name in trials:
                shutil.rmtree(path, ignore_errors=True)
        if self.storage is not None and all(removal.done() for removal in self._removals):
            self._removals = [self._executor.submit(_clear_storage, self.storage, trials)]


def _clear_storage(storage: Storage, trials: set[str]) -> None:
    with suppress(StorageError):  # what is not removed now is removed another time
        for trial_id in {name.split("/")[0] for name in storage.list_files()} & trials:
            storage.subfolder(trial_id).remove_folder()


FileKeeper = ConfirmedWeights | CheckpointCleanup
"""Keeps the files of trials in step with the log."""
