"""Run a sweep, or go on with one: every cell's trials on Ray, then the tables.

The log is the sweep. To go on with one is to read its log, which fills all that decides, to hand
out the trials under way, and then to go on asking; a new sweep is one whose log says only that.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from kdtune.config import SweepConfig, duration
from kdtune.errors import DiskFullError, RunError
from kdtune.export import write_best
from kdtune.files import FULL, replacing, write_text, write_yaml
from kdtune.reports.rungs import rungs_table
from kdtune.reports.tables import (
    bad_images_table,
    epochs_table,
    leaderboard_table,
    to_csv,
    trials_table,
)
from kdtune.results import RESULTS, Log, SweepFolder
from kdtune.run_files import say
from kdtune.tuning.check import Checked, changed, check_sweep
from kdtune.tuning.decisions import Decisions
from kdtune.tuning.interrupts import Terminated
from kdtune.tuning.launch import Slots, find_slots, ray_session, run_trials
from kdtune.tuning.progress import Progress
from kdtune.tuning.samplers import describe_sampler
from kdtune.tuning.schedule import Schedule
from kdtune.tuning.search import Search
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.tensorboard import TensorBoard
from kdtune.tuning.trainable import TrialProcess
from kdtune.tuning.trial_files import Leftovers, write_networks
from kdtune.tuning.warm_start import warm_start


def run_sweep(config: Mapping[str, Any]) -> SweepFolder:
    """Run a sweep from beginning to end.

    Everything is checked before the folder is made: data, teacher, methods, models, spaces,
    settings; every training and validation image is decoded, and the teacher's targets of what
    the first epoch sees are computed, so that all trials find them.

    Args:
        config: settings of `SweepConfig`.

    Returns:
        The sweep's folder, with its log, its tables, and the best configurations and networks.

    Raises:
        UserError: something the user gave is no good; nothing was written.
        RunError: no trial finished an epoch, or the disk is full.
        KeyboardInterrupt: the sweep was interrupted; its tables are of what had ended.
    """
    given = SweepConfig.check(config)
    folder = SweepFolder(RESULTS / given.name)
    folder.refuse_existing()
    checked = check_sweep(given, given.spaces)
    sweep, opened = checked.sweep, checked.opened
    learned = [
        event
        for path in sweep.warm_start
        for event in warm_start(path, checked.spaces, sweep.cells(), opened, checked.configure)
    ]
    with ray_session():
        slots = find_slots(sweep)
        driver = _Driver(folder, checked)
        for line in _plan(sweep, slots, driver.decisions.stopping):
            say(line)
        for event in learned:
            say(f"{event['method']}-{event['model']}: {event['reason']}")
        opened["views"]["prepared"] = checked.shared.prepare()
        with folder.created() as part:
            write_yaml(part.sweep, opened["config"])
            write_text(part.environment, json.dumps(opened["environment"], indent=2) + "\n")
            with Log(part.log, []) as log:
                for event in (opened, *learned):
                    log.append(event)
        with folder.held(), driver.open_log() as log:
            driver.run(log, slots)
    return folder


def resume_sweep(path: str | Path, changes: Mapping[str, Any] | None = None) -> SweepFolder:
    """Go on with a sweep that was interrupted, or is to have more trials, cells or resources.

    The log is all that is needed of what was before, and the checkpoints of trials under way, if
    they are there; without them these begin anew. Their finished epochs stay as they were.

    Args:
        path: the sweep's folder.
        changes: settings of `SweepConfig` that are to be others from now on.

    Returns:
        The sweep's folder, as `run_sweep`.

    Raises:
        UserError: this is no sweep's folder, another process runs it, or what the sweep needs is
            not there any more or not what it was.
        RunError, KeyboardInterrupt: as `run_sweep`.
    """
    changes = changes or {}
    folder = SweepFolder(path)
    earlier = folder.opened()[-1]
    with folder.held():
        earlier = folder.opened()[-1]
        given = changed(earlier, changes)
        checked = check_sweep(given, tuple(changes.get("spaces", ())), earlier)
        driver = _Driver(folder, checked)
        with driver.open_log() as log:
            for line in driver.found(log):
                say(line)
            if driver.decisions.budget.finished:
                driver.finish(log)
                return folder
            with ray_session():
                slots = find_slots(checked.sweep)
                for line in _plan(checked.sweep, slots, driver.decisions.stopping):
                    say(line)
                checked.opened["views"]["prepared"] = checked.shared.prepare()
                log.append(checked.opened)
                driver.run(log, slots)
    return folder


class _Driver:
    """The process that runs a sweep.

    Args:
        folder: of the sweep.
        checked: the sweep.
    """

    def __init__(self, folder: SweepFolder, checked: Checked):
        self.folder, self.checked = folder, checked
        sweep = checked.sweep
        self.decisions = Decisions(sweep, checked.spaces)
        self.progress = Progress(sweep.trials and sweep.trials * len(sweep.cells()))
        self.tensorboard = TensorBoard(folder.tensorboard)
        self.leftovers = Leftovers(folder)

    def open_log(self) -> Log:
        """Open the log, which fills all that follows from it."""
        others = [self.leftovers.fold, self.tensorboard.fold, self.progress.fold]
        return Log(self.folder.log, [*self.decisions.folds, *others])

    def found(self, log: Log) -> Iterator[str]:
        """Say what there is of a sweep that is resumed."""
        trials = self.decisions.under_way.trials
        words = [f"{self.progress.ended} trials have ended"]
        if trials:
            listed = (f"{name} after epoch {trial.epoch}" for name, trial in trials.items())
            words.append(f"{len(trials)} were under way ({', '.join(listed)})")
        yield f"{self.folder.path}: {', '.join(words)}"
        if log.cut:
            yield f"{log.cut} bytes after the log's last event were no event, and are cut off"
        then = self.folder.opened()[-1]["environment"]
        for name, now in self.checked.opened["environment"].items():
            if then.get(name) != now:
                yield f"{name} was {then.get(name)}, and is {now} now: figures may differ a little"

    def run(self, log: Log, slots: Slots) -> None:
        """Run trials until all is done, or until it is interrupted; then make the tables."""
        interrupts = self.decisions.interrupts
        self.progress.begin()
        self.leftovers.begin()
        self.tensorboard.begin()
        schedule = Schedule(self.decisions, log.append, slots.alone is not None)
        checkpoints = self.folder.checkpoints.absolute()
        try:
            with interrupts:
                run_trials(
                    tune.with_parameters(
                        TrialProcess,
                        askers=self.checked.shared.askers,
                        checkpoints=checkpoints,
                    ),
                    Search(self.decisions, self.checked.configure, log.append),
                    schedule,
                    slots,
                    self.decisions.watch,
                )
        except KeyboardInterrupt as error:  # the second one: epochs under way are lost
            self._interrupted(isinstance(error, Terminated))
        except Exception as error:  # Tune wraps what we raise
            failure = log.failure or _disk_full(error)
            if failure is None:
                raise
            raise RunError(self._hint(failure)) from None
        finally:
            self.tensorboard.close()
        if schedule.failure is not None:
            raise RunError(self._hint(schedule.failure))
        if not self.decisions.budget.finished:  # SIGUSR1, too, has Tune end quietly
            self._interrupted(interrupts.terminated)
        self.finish(log)

    def finish(self, log: Log) -> None:
        """Make all that follows from the log.

        Raises:
            RunError: no trial finished an epoch.
        """
        self.leftovers.remove()
        write_tables(self.folder)
        events = self.folder.events()
        if events[-1]["event"] != "complete":
            log.append({"event": "complete"})
        if not any(event["event"] == "epoch" for event in events):
            reasons = (event["reason"] for event in events if event["event"] == "ended")
            raise RunError(
                f"No trial of {self.folder.path} finished an epoch; the first says: "
                f"{next(reasons, 'nothing')}"
            )
        if saved := self.progress.saved():
            say(saved)

    def _interrupted(self, terminated: bool) -> None:
        """Make the tables of what there is, and say how to go on."""
        write_tables(self.folder)
        text = (
            f"{self.progress.ended} trials have ended; to go on: kdtune resume {self.folder.path}"
        )
        raise (Terminated if terminated else KeyboardInterrupt)(text) from None

    def _hint(self, failure: Exception) -> str:
        way = "Make room, then" if isinstance(failure, DiskFullError) else "To go on"
        return f"{failure} {way}: kdtune resume {self.folder.path}"


def _disk_full(error: BaseException | None) -> DiskFullError | None:
    """What a full disk made somebody raise, in a sentence."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            return DiskFullError(f"There is no room to write {error.filename or 'a file'}.")
        error = error.__cause__ or error.__context__
    return None


def _plan(sweep: SweepConfig, slots: Slots, stopping: Stopping) -> Iterator[str]:
    """Say what is going to happen."""
    cells = sweep.cells()
    budget = [f"{sweep.trials} trials each"] if sweep.trials is not None else []
    if sweep.epochs_total is not None:
        budget.append(f"{sweep.epochs_total} epochs in all")
    if sweep.time_budget is not None:
        budget.append(f"{duration(sweep.time_budget)} of time")
    several = len(cells) > 1
    yield (
        f"{len(cells)} cell{'s' * several}, {', '.join(budget)}, of every trial at most "
        f"{sweep.epochs} epochs{f'; every cell gets the same {sweep.equal}' * several}"
    )
    proposer = describe_sampler(sweep.sampler)
    yield f"{proposer} proposes; {stopping.describe()}; {slots.count} trials at once"


def write_tables(folder: SweepFolder) -> None:
    """Make all that follows from the log: tables, and the best configuration of each cell.

    Raises:
        RunError: the disk is full.
    """
    events = folder.events()
    trials, epochs = trials_table(events), epochs_table(events)
    leaderboard = leaderboard_table(trials)
    tables = {"trials": trials, "epochs": epochs, "rungs": rungs_table(events)}
    if len(bad := bad_images_table(events)):
        tables["bad_images"] = bad
    try:
        for name in ("trials", "epochs"):
            with replacing(folder.table(name, ".parquet")) as temporary:
                tables[name].to_parquet(temporary)
        for name, table in tables.items():
            write_text(folder.table(name, ".csv"), to_csv(table))
        write_text(folder.leaderboard, to_csv(leaderboard))
        write_best(folder, leaderboard, trials)
        write_networks(folder, leaderboard)
    except DiskFullError as error:
        raise RunError(
            f"{error} Nothing is lost: make room, then: kdtune resume {folder.path}"
        ) from None
