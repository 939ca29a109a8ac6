"""Weights of the best trials and confirmed runs; removal of the checkpoints of the others."""

import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kdtune.export.selected_runs import SelectedRun
from kdtune.log import events
from kdtune.log.events import Cell
from kdtune.log.folder import SweepFolder
from kdtune.log.settings_scores import SettingsScores
from kdtune.models.checkpoints import write_checkpoint
from kdtune.runtime.console import printable_path, say
from kdtune.storage.remote import Storage, StorageError
from kdtune.tuning.trials.trial_checkpoints import list_checkpoints, read_if_intact

KEPT_TRIALS_PER_CELL = 3  # by score and by model each, besides the running ones
_CLEANUP_TIMEOUT_SECONDS = 60  # at the end of a sweep, for a slow storage


def write_best_weights(
    folder: SweepFolder,
    best: Mapping[Cell, SelectedRun],
    storage: Storage | None = None,
    warn: Callable[[str], None] = say,
) -> None:
    """Write `best/<method>-<model>.pth`: the weights of the selected run or trial of each cell.

    The weights of a trial come from its last checkpoint; if that is lost, a line says so.

    Args:
        folder: the sweep's folder.
        best: see `kdtune.export.selected_runs.select_best_runs`.
        storage: holds the checkpoints; None if they are in the folder.
        warn: takes a line about each file that is not written.
    """
    for cell, selected in best.items():
        path = folder.best_path(*cell, ".pth")
        if path.exists():
            if (read_if_intact(path) or {}).get("trial_id") == selected.name:
                continue
            path.unlink()
        if selected.confirmed:
            content = read_if_intact(folder.network_path(selected.name))
        else:
            content = _load_best_weights(folder, selected.name, storage)
        if content and content["validation_accuracy"] == selected.validation_accuracy:
            write_checkpoint(path, content)
        else:
            missing = f"the weights of {selected.name} were not kept"
            remedy = "train them again by `kdtune train` with the .yaml beside it"
            warn(f"{printable_path(path)} is not written: {missing}; {remedy}")


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
    if (content := next(filter(None, contents), None)) is None:
        return None
    training = content["training"]
    return {
        "weights": training.get("best_weights", content["weights"]),
        "epoch": training["best_epoch"],
        "validation_accuracy": training["best_validation_accuracy"],
        "trial_id": trial_id,
        **{key: content[key] for key in ("config", "classes", "plugins") if key in content},
    }


@dataclass
class ConfirmedWeights:
    """Fold that keeps the weights of confirmed runs until another candidate is chosen.

    From `activate` on it acts on all events, earlier ones included. The checkpoints of a run stay
    until its weights are written, since a storage that fails now may give them another time.
    """

    folder: SweepFolder
    storage: Storage | None = None  # of the checkpoints; None if they are in the folder

    def __post_init__(self) -> None:
        self._active, self._runs = False, dict[str, events.TrialProposed]()
        self._new_events: list[events.TrialEnded | events.CandidateChosen] = []

    def activate(self) -> None:
        """Act on the events so far, and from now on on every event."""
        self._active = True
        while self._new_events:
            self._apply(self._new_events.pop(0))

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        if isinstance(event, events.TrialProposed):
            self._runs[event.trial_id] = event
        elif isinstance(event, events.TrialEnded | events.CandidateChosen):
            self._new_events.append(event)
            if self._active:
                self.activate()

    def _apply(self, event: events.TrialEnded | events.CandidateChosen) -> None:
        if isinstance(event, events.CandidateChosen):
            for run_id, run in self._runs.items():
                if run.cell == event.cell and run.candidate != event.candidate:
                    self.folder.network_path(run_id).unlink(missing_ok=True)
            return
        path = self.folder.network_path(event.trial_id)
        if event.state is events.TrialState.FINISHED and not path.is_file():
            content = _load_best_weights(self.folder, event.trial_id, self.storage)
            if not content or content["validation_accuracy"] != event.best_validation_accuracy:
                return
            write_checkpoint(path, content)
        shutil.rmtree(self.folder.checkpoints_folder / event.trial_id, ignore_errors=True)
        if self.storage is not None:
            with suppress(StorageError):
                self.storage.subfolder(event.trial_id).remove_folder()


@dataclass
class CheckpointCleanup:
    """Fold that removes the checkpoints of ended trials, except those of the best of each cell.

    Repeats and the model of a cell can change which settings are the best. So the first trials of
    the best `KEPT_TRIALS_PER_CELL` settings by score, and of those by the model, keep theirs until
    the search ends; repeats never do.

    From `activate` on it acts, on earlier trials, too. A trial's process writes its last
    checkpoint while its end is logged, so that is removed when another trial has ended.
    """

    folder: SweepFolder
    storage: Storage | None = None  # of the checkpoints; None if they are in the folder
    rank_by_model: Callable[[Cell], Sequence[str]] = lambda cell: ()  # first trials, best first

    def __post_init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)  # the driver does not wait for a slow storage
        self._removals: list[Future[None]] = []
        self._kept_by_model: dict[Cell, Sequence[str]] = {}
        self._active, self._ended, self._scores = False, set[str](), SettingsScores()
        self._kept: dict[Cell, list[str]] = {}  # first trials, the best first

    def activate(self) -> None:
        """Remove what an earlier driver left, and from now on what trials leave."""
        self._active = True
        for cell in self._kept:
            self._update_kept_by_model(cell)
        self.remove_ended()

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        self._scores.fold(event)
        if isinstance(event, events.TrialEnded):
            with_checkpoint = {*self._kept.get(event.cell, ()), event.trial_id}
            ranked = [t for t in self._scores.rank(event.cell) if t in with_checkpoint]
            self._kept[event.cell] = ranked[:KEPT_TRIALS_PER_CELL]
            self._ended.add(event.trial_id)
            if self._active:
                self._update_kept_by_model(event.cell)
                self.remove_ended(just_ended=event.trial_id)

    def _update_kept_by_model(self, cell: Cell) -> None:
        self._kept_by_model[cell] = self.rank_by_model(cell)[:KEPT_TRIALS_PER_CELL]

    def remove_ended(self, just_ended: str | None = None) -> None:
        """Remove the checkpoints of all ended trials but the best ones and `just_ended`."""
        kept = *self._kept.values(), *self._kept_by_model.values()
        self._remove_checkpoints({just_ended}.union(*kept))

    def remove_all(self) -> None:
        """Remove the checkpoints of the best trials, too, if their weights are written."""
        unwritten = [c for c in self._kept if not self.folder.best_path(*c, ".pth").is_file()]
        wait(self._removals, _CLEANUP_TIMEOUT_SECONDS)
        self._remove_checkpoints({t for cell in unwritten for t in self._scores.rank(cell)[:1]})
        wait(self._removals, _CLEANUP_TIMEOUT_SECONDS)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _remove_checkpoints(self, kept: Set[str | None]) -> None:
        trials = self._ended - kept
        for path in self.folder.checkpoints_folder.glob("*"):
            if path.name in trials:
                shutil.rmtree(path, ignore_errors=True)
        if self.storage is not None and all(removal.done() for removal in self._removals):
            self._removals = [self._executor.submit(_clear_storage, self.storage, trials)]


def _clear_storage(storage: Storage, trials: set[str]) -> None:
    with suppress(StorageError):  # what is not removed now is removed another time
        for trial_id in {name.split("/")[0] for name in storage.list_files()} & trials:
            storage.subfolder(trial_id).remove_folder()
