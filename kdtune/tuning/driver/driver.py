"""The process that runs a sweep's trials, or confirms its winners: Ray on one side, a log on the
other."""

from pathlib import Path
from typing import Any

from ray import tune

from kdtune.errors import DiskFullError, RunError
from kdtune.log.event_log import EventLog
from kdtune.log.events import LogOpening
from kdtune.log.folder import SweepFolder
from kdtune.log.remote_sync import CHECKPOINTS_FOLDER, RemoteSync
from kdtune.runtime.signals import Terminated
from kdtune.storage.files import NO_SPACE_ERRNOS
from kdtune.storage.remote import Storage
from kdtune.trackers.registry import create_trackers
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import run_trials
from kdtune.tuning.display.progress import Goal, Progress
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.display.status_display import StatusDisplay
from kdtune.tuning.driver.write_results import write_results
from kdtune.tuning.scheduling.policy import SchedulingPolicy
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.trials.best_weights import FileKeeper
from kdtune.tuning.trials.trainable import TargetRequests, TrialProcess


class Driver:
    """Runs trials with the log open.

    Args:
        folder: of the sweep.
        log: the log's path.
        decisions: what is run, and when it ends.
        keeper: of the files of trials.
        what: what trials are called, for people.
        command: how to go on, for people.
        screen: where what people are told goes.
        mirror: of the folder in a storage; None without one.
    """

    def __init__(
        self,
        folder: SweepFolder,
        log_path: Path,
        policy: SchedulingPolicy,
        file_keeper: FileKeeper,
        noun: str,
        resume_command: str,
        screen: Screen,
        remote_sync: RemoteSync | None = None,
    ):
        self.folder, self.log_path, self.policy = folder, log_path, policy
        self.noun, self.resume_command, self.screen, self.remote_sync = (
            noun,
            resume_command,
            screen,
            remote_sync,
        )
        self.progress = Progress()
        self.display = StatusDisplay(self.progress, policy, screen, noun)
        self.tracker_folds = create_trackers(folder, policy.sweep, screen.warn)
        self.file_keeper = file_keeper

    def open_log(self) -> EventLog:
        """Open the log, which fills all that follows from it."""
        observer_folds = (
            *(tracker_fold.fold for tracker_fold in self.tracker_folds),
            self.progress.fold,
        )
        later_folds = [self.file_keeper.fold, *observer_folds, self.display.fold]
        return EventLog(self.log_path, [*self.policy.folds, *later_folds])

    def report_resumed(
        self, log: EventLog, earlier_opening: LogOpening, opening_event: LogOpening
    ) -> None:
        """Say what there is of trials when they are gone on with.

        Args:
            log: as it was opened.
            then: the event with which it was opened before.
            now: the event that opens it now.
        """
        trials = self.policy.active_trials.by_id
        clauses = [f"{self.progress.num_ended} {self.noun} have ended"]
        if trials:
            last_epochs = (f"{name} after epoch {trial.epoch}" for name, trial in trials.items())
            clauses.append(f"{len(trials)} were under way ({', '.join(last_epochs)})")
        self.screen.say(f"{self.folder.path}: {', '.join(clauses)}")
        if log.truncated_bytes:
            self.screen.warn(
                f"{log.truncated_bytes} bytes after the log's last event are not an event and "
                "were cut off"
            )
        for name, value in opening_event.environment.items():
            if (previous_value := earlier_opening.environment.get(name)) != value:
                text = (
                    f"{name} was {previous_value}, and is {value} now: figures may differ a little"
                )
                self.screen.warn(text)

    def run(
        self, log: EventLog, slots: Slots, target_requests: TargetRequests, goal: Goal
    ) -> None:
        """Run trials until all is done.

        Args:
            log: open.
            slots: where they run.
            askers: the runs whose targets are kept.
            goal: what there will be, the known trials included.

        Raises:
            RunError: the disk is full.
            KeyboardInterrupt: it was interrupted; the tables are of what had ended.
        """
        interrupts = self.policy.interrupts
        self.display.start(goal, slots)
        self.file_keeper.activate()
        checkpoints = (
            get_checkpoint_storage(self.remote_sync) or self.folder.checkpoints_folder.absolute()
        )
        try:
            with interrupts, self.screen.drawing(self.display):
                for tracker_fold in self.tracker_folds:
                    tracker_fold.start_logging()
                run_trials(
                    tune.with_parameters(
                        TrialProcess,
                        target_requests=target_requests,
                        checkpoints=checkpoints,
                        plugins=pack_plugins(),
                    ),
                    LogSearcher(self.policy, log.append, slots, self.screen.warn),
                    LogScheduler(self.policy, log.append, slots),
                    self.policy.watchdog,
                    _StepCallback(self.screen, self.remote_sync),
                    verbose=self.screen.show == "verbose",
                )
        except KeyboardInterrupt as error:  # the second one: epochs under way are lost
            self._raise_interrupted(isinstance(error, Terminated))
        except Exception as error:  # Tune wraps what we raise
            sync_failure = self.remote_sync and self.remote_sync.failure
            failure = log.failure or sync_failure or _find_disk_full_error(error)
            if failure is None:
                raise
            raise RunError(self._add_resume_hint(failure)) from None
        finally:
            for tracker_fold in self.tracker_folds:
                tracker_fold.close()
        if self.policy.failure is not None:
            raise RunError(self._add_resume_hint(self.policy.failure))
        if not self.policy.finished:  # SIGUSR1, too, has Tune end quietly
            self._raise_interrupted(interrupts.terminated)

    def sync_remote(self) -> None:
        """Copy what changed to the storage.

        Raises:
            RunError: another driver runs the sweep now.
        """
        if self.remote_sync is not None:
            self.remote_sync.sync()

    def flush_trackers(self) -> None:
        """Have all that follow trials get what they miss, where nothing is left to be run."""
        for tracker_fold in self.tracker_folds:
            tracker_fold.start_logging()
            tracker_fold.close()

    def _raise_interrupted(self, terminated: bool) -> None:
        """Make the tables of what there is, and say how to go on."""
        write_results(self.folder, self.resume_command, get_checkpoint_storage(self.remote_sync))
        text = f"{self.progress.num_ended} {self.noun} have ended; to go on: {self.resume_command}"
        raise (Terminated if terminated else KeyboardInterrupt)(text) from None

    def _add_resume_hint(self, failure: Exception) -> str:
        advice = "Make room, then" if isinstance(failure, DiskFullError) else "To go on"
        return f"{failure} {advice}: {self.resume_command}"


def get_checkpoint_storage(remote_sync: RemoteSync | None) -> Storage | None:
    """Where the checkpoints of trials are, if there is a storage."""
    return remote_sync.storage.subfolder(CHECKPOINTS_FOLDER) if remote_sync is not None else None


class _StepCallback(tune.Callback):
    """Draws the screen and copies the folder to the storage while Ray's loop turns."""

    def __init__(self, screen: Screen, remote_sync: RemoteSync | None):
        self.screen, self.remote_sync = screen, remote_sync

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray ten times a second, or more often."""
        self.screen.refresh()
        if self.remote_sync is not None:
            self.remote_sync.sync_if_due()

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of callbacks are never read back, so they are kept empty."""
        return {}


def _find_disk_full_error(error: BaseException | None) -> DiskFullError | None:
    """What a full disk made somebody raise, in a sentence."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
            return DiskFullError(f"There is no room to write {error.filename or 'a file'}.")
        error = error.__cause__ or error.__context__
    return None
