"""The process that runs a sweep's trials, or confirms its winners: Ray on one side, a log on the
other."""

from pathlib import Path
from typing import Any

from ray import tune

from kdtune.errors import DiskFullError, RunError
from kdtune.log.events import Event, Log
from kdtune.log.folder import SweepFolder
from kdtune.log.mirror import CHECKPOINTS, Mirror
from kdtune.plugins import loaded
from kdtune.runtime.signals import Terminated
from kdtune.storage.files import FULL
from kdtune.storage.remote import Storage
from kdtune.trackers.registry import trackers
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import run_trials
from kdtune.tuning.display.progress import Goal, Progress
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.display.status_display import Display
from kdtune.tuning.driver.outputs import write_outputs
from kdtune.tuning.scheduling.policy import Decisions
from kdtune.tuning.scheduling.scheduler import Schedule
from kdtune.tuning.scheduling.searcher import Queue
from kdtune.tuning.trials.best_networks import Keeper
from kdtune.tuning.trials.trainable import Askers, TrialProcess


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
        log: Path,
        decisions: Decisions,
        keeper: Keeper,
        what: str,
        command: str,
        screen: Screen,
        mirror: Mirror | None = None,
    ):
        self.folder, self.path, self.decisions = folder, log, decisions
        self.what, self.command, self.screen, self.mirror = what, command, screen, mirror
        self.progress = Progress()
        self.display = Display(self.progress, decisions, screen, what)
        self.tracked = trackers(folder, decisions.sweep, screen.trouble)
        self.keeper = keeper

    def open_log(self) -> Log:
        """Open the log, which fills all that follows from it."""
        followers = *(tracked.fold for tracked in self.tracked), self.progress.fold
        others = [self.keeper.fold, *followers, self.display.fold]
        return Log(self.path, [*self.decisions.folds, *others])

    def found(self, log: Log, then: Event, now: Event) -> None:
        """Say what there is of trials when they are gone on with.

        Args:
            log: as it was opened.
            then: the event with which it was opened before.
            now: the event that opens it now.
        """
        trials = self.decisions.under_way.trials
        words = [f"{self.progress.ended} {self.what} have ended"]
        if trials:
            listed = (f"{name} after epoch {trial.epoch}" for name, trial in trials.items())
            words.append(f"{len(trials)} were under way ({', '.join(listed)})")
        self.screen.say(f"{self.folder.path}: {', '.join(words)}")
        if log.cut:
            text = f"{log.cut} bytes after the log's last event were no event, and are cut off"
            self.screen.trouble(text)
        for name, value in now["environment"].items():
            if (before := then["environment"].get(name)) != value:
                text = f"{name} was {before}, and is {value} now: figures may differ a little"
                self.screen.trouble(text)

    def run(self, log: Log, slots: Slots, askers: Askers, goal: Goal) -> None:
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
        interrupts = self.decisions.interrupts
        self.display.begin(goal, slots)
        self.keeper.begin()
        schedule = Schedule(self.decisions, log.append, slots)
        checkpoints = stored(self.mirror) or self.folder.checkpoints.absolute()
        try:
            with interrupts, self.screen.drawing(self.display):
                for tracked in self.tracked:
                    tracked.begin()
                run_trials(
                    tune.with_parameters(
                        TrialProcess, askers=askers, checkpoints=checkpoints, plugins=loaded()
                    ),
                    Queue(self.decisions, log.append, slots, self.screen.trouble),
                    schedule,
                    self.decisions.watch,
                    _Turns(self.screen, self.mirror),
                    verbose=self.screen.show == "verbose",
                )
        except KeyboardInterrupt as error:  # the second one: epochs under way are lost
            self._interrupted(isinstance(error, Terminated))
        except Exception as error:  # Tune wraps what we raise
            of_mirror = self.mirror and self.mirror.failure
            failure = log.failure or of_mirror or _disk_full(error)
            if failure is None:
                raise
            raise RunError(self._hint(failure)) from None
        finally:
            for tracked in self.tracked:
                tracked.close()
        if schedule.failure is not None:
            raise RunError(self._hint(schedule.failure))
        if not self.decisions.finished:  # SIGUSR1, too, has Tune end quietly
            self._interrupted(interrupts.terminated)

    def check(self) -> None:
        """Raise, if another driver has the sweep by now."""
        if self.mirror is not None:
            self.mirror.check()

    def tell(self) -> None:
        """Have all that follow trials get what they miss, where nothing is left to be run."""
        for tracked in self.tracked:
            tracked.begin()
            tracked.close()

    def _interrupted(self, terminated: bool) -> None:
        """Make the tables of what there is, and say how to go on."""
        write_outputs(self.folder, self.command, stored(self.mirror))
        text = f"{self.progress.ended} {self.what} have ended; to go on: {self.command}"
        raise (Terminated if terminated else KeyboardInterrupt)(text) from None

    def _hint(self, failure: Exception) -> str:
        way = "Make room, then" if isinstance(failure, DiskFullError) else "To go on"
        return f"{failure} {way}: {self.command}"


def stored(mirror: Mirror | None) -> Storage | None:
    """Where the checkpoints of trials are, if there is a storage."""
    return mirror.storage.at(CHECKPOINTS) if mirror is not None else None


class _Turns(tune.Callback):
    """Has the screen drawn while Ray's loop turns, and hears whether another driver took over."""

    def __init__(self, screen: Screen, mirror: Mirror | None):
        self.screen, self.mirror = screen, mirror

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray ten times a second, or more often."""
        self.screen.turn()
        if self.mirror is not None:
            self.mirror.check()

    def __getstate__(self) -> dict[str, Any]:
        """Ray's snapshots of callbacks are never read back, so they are kept empty."""
        return {}


def _disk_full(error: BaseException | None) -> DiskFullError | None:
    """What a full disk made somebody raise, in a sentence."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            return DiskFullError(f"There is no room to write {error.filename or 'a file'}.")
        error = error.__cause__ or error.__context__
    return None
