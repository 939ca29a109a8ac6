"""The driver of a search or a confirmation, which connects Ray, policy, log and screen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from kdtune.errors import DiskFullError, RunError
from kdtune.export.selected_runs import select_best_runs, write_best_configs
from kdtune.log.event_log import EventLog
from kdtune.log.events import LogOpening
from kdtune.log.folder import SweepFolder, SweepSnapshot
from kdtune.log.remote_sync import CHECKPOINTS_FOLDER, RemoteSync
from kdtune.reports.tables.all_tables import collect_tables, load_sweep_tables
from kdtune.reports.text.render import to_csv
from kdtune.runtime.signals import Terminated
from kdtune.storage.files import NO_SPACE_ERRNOS, atomic_write, write_text
from kdtune.storage.remote import Storage
from kdtune.trackers.registry import create_trackers
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.ray_private import NotSaved
from kdtune.tuning.cluster.session import run_trials
from kdtune.tuning.display.progress import Goal, Progress
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.display.status_display import StatusDisplay
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.trials.best_weights import (
    CheckpointCleanup,
    ConfirmedWeights,
    write_best_weights,
)
from kdtune.tuning.trials.trial_process import TargetRequests, TrialProcess
from kdtune.units import format_duration


@dataclass(frozen=True)
class Workplace:
    """Folder, screen and storage of a driver."""

    folder: SweepFolder
    screen: Screen
    resume_command: str = ""
    remote_sync: RemoteSync | None = None

    @property
    def checkpoint_storage(self) -> Storage | None:
        """The storage of checkpoints; None if they are in the folder."""
        remote = self.remote_sync
        return remote.storage.subfolder(CHECKPOINTS_FOLDER) if remote is not None else None

    def write_results(self) -> None:
        """Write all that is made from the logs: tables, best settings and weights.

        No file is damaged if the disk is full, and a line says which weights are lost.
        """
        snapshot = SweepSnapshot(self.folder.path)
        tables = load_sweep_tables(snapshot)
        selected = select_best_runs(tables)
        try:
            for name, table in collect_tables(snapshot, tables).items():
                if name in ("trials", "epochs"):
                    with atomic_write(self.folder.path / f"{name}.parquet") as temporary:
                        table.to_parquet(temporary)
                write_text(self.folder.path / f"{name}.csv", to_csv(table))
            write_best_configs(self.folder, selected)
            write_best_weights(self.folder, selected, self.checkpoint_storage, self.screen.warn)
        except DiskFullError as error:
            raise RunError(f"{error} Nothing is lost; continue: {self.resume_command}") from None

    def add_resume_hint(self, failure: Exception) -> str:
        """Return the message of a failure with the command that continues after it."""
        return f"{failure} To continue: {self.resume_command}"

    def sync_remote(self) -> None:
        """Copy changes to the storage; raise a `RunError` if another driver has the sweep."""
        if self.remote_sync is not None:
            self.remote_sync.sync()


@dataclass
class Driver:
    """Runs trials and logs what they report."""

    workplace: Workplace
    policy: SchedulingPolicy
    file_keeper: CheckpointCleanup | ConfirmedWeights
    noun: str  # ``trials`` or ``runs``

    def __post_init__(self) -> None:
        self.folder, self.screen = self.workplace.folder, self.workplace.screen
        self.progress = Progress()
        self.display = StatusDisplay(self.progress, self.policy, self.screen, self.noun)
        self.tracker_folds = create_trackers(self.folder, self.policy.sweep, self.screen.warn)

    def open_log(self, path: Path) -> EventLog:
        """Open a log; its events set the state of the policy, the display and the trackers."""
        folds = [*self.policy.folds, self.file_keeper.fold]
        folds += [tracker_fold.fold for tracker_fold in self.tracker_folds]
        return EventLog(path, [*folds, self.progress.fold, self.display.fold])

    def report_resumed(
        self, log: EventLog, earlier_opening: LogOpening, opening_event: LogOpening
    ) -> None:
        """Tell the user how far the trials are when a sweep is resumed, and what has changed.

        Args:
            log: open.
            earlier_opening: its latest opening event.
            opening_event: the event that opens it now.
        """
        trials, warn = self.policy.active_trials.by_id, self.screen.warn
        clauses = [f"{self.progress.num_ended} {self.noun} have ended"]
        if trials:
            last_epochs = (f"{name} after epoch {trial.epoch}" for name, trial in trials.items())
            clauses.append(f"{len(trials)} were running ({', '.join(last_epochs)})")
        self.screen.say(f"{self.folder.path}: {', '.join(clauses)}")
        if size := log.truncated_bytes:
            warn(f"{size} bytes after the log's last event are not an event and were cut off")
        for name, now in opening_event.environment.items():
            if (then := earlier_opening.environment.get(name)) not in (None, now):
                warn(f"{name} was {then} and is {now} now: results may differ a little")

    def run(
        self, log: EventLog, slots: Slots, target_requests: TargetRequests, goal: Goal
    ) -> None:
        """Run trials until the policy has no more.

        Args:
            log: open.
            slots: resources of trials.
            target_requests: runs whose teacher targets are cached.
            goal: numbers of trials, for the display.
        """
        self.display.start(goal, slots)
        self.policy.interrupts.describe_interrupt = self._describe_interrupt
        self.file_keeper.activate()
        storage, local = self.workplace.checkpoint_storage, self.folder.checkpoints_folder
        checkpoints, plugins = storage or local.absolute(), pack_plugins()
        trainable = tune.with_parameters(
            TrialProcess, target_requests=target_requests, checkpoints=checkpoints, plugins=plugins
        )
        try:
            with self.policy.interrupts, self.screen.drawing(self.display):
                for tracker_fold in self.tracker_folds:
                    tracker_fold.start_logging()
                searcher = LogSearcher(self.policy, log.append, slots, self.screen.warn)
                scheduler = LogScheduler(self.policy, log.append, slots)
                parts = searcher, scheduler, self.policy.watchdog, _StepCallback(self.workplace)
                run_trials(trainable, *parts, verbose=self.screen.show == "verbose")
        except KeyboardInterrupt as error:  # the second one: running epochs are lost
            self._raise_interrupted(isinstance(error, Terminated))
        except Exception as error:  # Tune wraps what we raise
            if self.policy.interrupts.terminated:  # Ray may have got the signal, too
                self._raise_interrupted(True)
            remote_sync = self.workplace.remote_sync
            failure = log.failure or (remote_sync and remote_sync.failure)
            if (failure := failure or _find_disk_full_error(error)) is None:
                raise
            raise RunError(self.workplace.add_resume_hint(failure)) from None
        finally:
            for tracker_fold in self.tracker_folds:
                tracker_fold.close()
        if self.policy.failure is not None:
            raise RunError(self.workplace.add_resume_hint(self.policy.failure))
        if not self.policy.finished:  # SIGUSR1, too, has Tune end quietly
            self._raise_interrupted(self.policy.interrupts.terminated)

    def fits_budget(self, reason: str, count: int, seconds: float) -> bool:
        """Return True if further trials fit into the budget of `until_decided`; else say so.

        Args:
            reason: of the trials or runs.
            count: number of them.
            seconds: that they will take.
        """
        budget = self.policy.sweep.budget
        if budget is None or self.progress.stopwatch.elapsed_seconds + seconds <= budget:
            return True
        text = f"{count} further {self.noun} would take about {format_duration(seconds)}"
        self.screen.say(f"{reason}; {text}, and the budget is {format_duration(budget)}")
        return False

    def flush_trackers(self) -> None:
        """Log what the trackers lack where no trial is left to run."""
        for tracker_fold in self.tracker_folds:
            tracker_fold.start_logging()
            tracker_fold.close()

    def _raise_interrupted(self, terminated: bool) -> None:
        self.workplace.write_results()
        error_class = Terminated if terminated else KeyboardInterrupt
        raise error_class(self._describe_interrupt()) from None

    def _describe_interrupt(self) -> str:
        text = f"{self.progress.num_ended} {self.noun} have ended; to continue"
        return f"{text}: {self.workplace.resume_command}"


class _StepCallback(NotSaved, tune.Callback):
    """Draws the screen and copies the folder to the storage while Ray's loop turns."""

    def __init__(self, workplace: Workplace):
        self.workplace = workplace

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.workplace.screen.refresh()  # at least ten times a second
        if self.workplace.remote_sync is not None:
            self.workplace.remote_sync.sync_if_due()


def _find_disk_full_error(error: BaseException | None) -> DiskFullError | None:
    """Return the full disk that made Tune raise, if that is the cause."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
            target = error.filename or "a file"
            return DiskFullError(f"There is no room to write {target}; make room.")
        error = error.__cause__ or error.__context__
    return None
