"""Run a sweep, or go on with one: every cell's trials on Ray, then the tables.

The log is the sweep. To go on with one is to read its log, which fills all that decides, to hand
out the trials under way, and then to go on asking; a new sweep is one whose log says only that.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdtune.config.sweep import SweepConfig
from kdtune.errors import RunError
from kdtune.log.events import Log
from kdtune.log.folder import RESULTS, SweepFolder
from kdtune.log.mirror import Mirror, mirrored
from kdtune.reports.tables.sentences import visible
from kdtune.reports.text.plan import plan_text
from kdtune.storage.files import write_text, write_yaml
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import find_slots, ray_session
from kdtune.tuning.confirm import confirm_sweep
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, stored
from kdtune.tuning.driver.outputs import write_outputs
from kdtune.tuning.driver.preflight import Checked, check_sweep
from kdtune.tuning.driver.resume_rules import NAMED_AGAIN, OF_CONFIRM, named_again, resume_settings
from kdtune.tuning.planning.gpu_sharing import shared_slots
from kdtune.tuning.planning.plan import curves_of, make_plan, refuse_elsewhere
from kdtune.tuning.scheduling.search_policy import Search
from kdtune.tuning.search.samplers import describe_sampler
from kdtune.tuning.trials.best_networks import Leftovers
from kdtune.tuning.trials.prepare import prepare
from kdtune.units import duration


def run_sweep(config: Mapping[str, Any], show: str = "live", plan: bool = False) -> SweepFolder:
    """Run a sweep from beginning to end.

    Everything is checked before the folder is made: data, teacher, methods, models, spaces,
    settings; every training and validation image is decoded, and the teacher's targets of what
    the first epoch sees are computed, so that all trials find them.

    Args:
        config: settings of `SweepConfig`.
        show: what is seen meanwhile: a key of `kdtune.tuning.display.screen.SHOW`.
        plan: plan it first, for this machine's slots, and keep the plan with it.

    Returns:
        The sweep's folder, with its log, its tables, and the best configurations and networks.

    Raises:
        UserError: something the user gave is no good; nothing was written.
        RunError: no trial finished an epoch, or the disk is full.
        KeyboardInterrupt: the sweep was interrupted; its tables are of what had ended.
    """
    screen = Screen(show)
    given = SweepConfig.check(config)
    if plan:
        refuse_elsewhere(given)
    folder = SweepFolder(RESULTS / given.name)
    folder.refuse_existing()
    checked = check_sweep(given, given.spaces)
    sweep, opened = checked.sweep, checked.opened
    learned = checked.learned()
    with ray_session(sweep.address, screen.show == "verbose", screen.trouble):
        with mirrored(folder, sweep.storage, True, screen.trouble) as mirror:
            slots = find_slots(sweep, screen.trouble)
            search = _Sweep(folder, checked, screen, mirror)
            for line in search.describe(slots):
                screen.say(line)
            for event in learned:
                screen.say(f"{event['method']}-{event['model']}: {event['reason']}")
            opened["views"]["prepared"] = prepare(checked.shared, slots, screen.say)
            slots, made = search.share(slots), None
            if plan:
                made = make_plan(checked, learned, slots, (), curves_of(checked, None), screen.say)
                screen.say(plan_text(made, "table"))
            with folder.created() as part:
                if made is not None:
                    write_text(part.plan, json.dumps(made, indent=2) + "\n")
                write_yaml(part.sweep, opened["config"])
                write_text(part.environment, json.dumps(opened["environment"], indent=2) + "\n")
                with Log(part.log, []) as log:
                    for event in (opened, *learned):
                        log.append(event)
            with folder.held(), search.driver.open_log() as log:
                search.run(log, slots)
        search.confirm({key: getattr(sweep, key) for key in NAMED_AGAIN if getattr(sweep, key)})
    return folder


def resume_sweep(
    path: str | Path, changes: Mapping[str, Any] | None = None, show: str = "live"
) -> SweepFolder:
    """Go on with a sweep that was interrupted, or is to have more trials, cells or resources.

    The log is all that is needed of what was before, and the checkpoints of trials under way, if
    they are there; without them these begin anew. Their finished epochs stay as they were.

    Args:
        path: the sweep's folder.
        changes: settings of `SweepConfig` that are to be others from now on.
        show: as for `run_sweep`.

    Returns:
        The sweep's folder, as `run_sweep`.

    Raises:
        UserError: this is no sweep's folder, another process runs it, or what the sweep needs is
            not there any more or not what it was.
        RunError, KeyboardInterrupt: as `run_sweep`.
    """
    changes, screen = changes or {}, Screen(show)
    folder = SweepFolder(path)
    with (
        mirrored(folder, changes.get("storage"), False, screen.trouble) as mirror,
        folder.held_again(),
    ):
        earlier = folder.opened()[-1]
        given = resume_settings(earlier, changes)
        checked = check_sweep(given, tuple(changes.get("spaces", ())), earlier)
        search = _Sweep(folder, checked, screen, mirror)
        with search.driver.open_log() as log:
            search.driver.found(log, earlier, checked.opened)
            if search.decisions.finished:
                if checked.opened["config"] != earlier["config"]:
                    log.append(checked.opened)
                search.driver.tell()
                search.finish(log)
            else:
                sweep = checked.sweep
                with ray_session(sweep.address, screen.show == "verbose", screen.trouble):
                    slots = find_slots(sweep, screen.trouble)
                    for line in search.describe(slots):
                        screen.say(line)
                    views = prepare(checked.shared, slots, screen.say)
                    checked.opened["views"]["prepared"] = views
                    slots = search.share(slots)
                    log.append(checked.opened)
                    search.run(log, slots)
    search.confirm({key: value for key, value in changes.items() if key in OF_CONFIRM})
    return folder


class _Sweep:
    """A search with its driver.

    Args:
        folder: of the sweep.
        checked: the sweep.
        screen: where what people are told goes.
        mirror: of the folder in a storage; None without one.
    """

    def __init__(
        self, folder: SweepFolder, checked: Checked, screen: Screen, mirror: Mirror | None
    ):
        self.folder, self.checked, self.screen = folder, checked, screen
        self.decisions = Search(
            checked.sweep, checked.spaces, checked.configure, say=screen.trouble
        )
        self.stored = stored(mirror)
        self.leftovers = Leftovers(folder, self.stored)
        command = f"kdtune resume {folder.path}{named_again(checked.sweep)}"
        self.driver = Driver(
            folder, folder.log, self.decisions, self.leftovers, "trials", command, screen, mirror
        )

    def describe(self, slots: Slots) -> Iterator[str]:
        """Say what is going to happen."""
        sweep, images = self.checked.sweep, self.checked.opened["data"]["test_images"]
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
        proposer, rule = describe_sampler(sweep.sampler), self.decisions.stopping.describe()
        yield f"{proposer} proposes; {rule}; {slots.count} trials at once"
        if not slots.are_plain:
            yield slots.describe()
        if images:
            yield visible(images, sweep.seeds, len(set(sweep.models)))
        else:
            yield "without test images the sweep cannot be confirmed"

    def share(self, slots: Slots) -> Slots:
        """Measure how many trials share a GPU best, if that is wanted; all views are there."""
        sweep, askers = self.checked.sweep, self.checked.shared.askers
        return shared_slots(sweep, slots, self.checked.examples, askers, self.screen.say)

    def run(self, log: Log, slots: Slots) -> None:
        """Run all trials, then make all that follows from the log."""
        sweep = self.checked.sweep
        trials = dict.fromkeys(sweep.cells(), sweep.trials)
        goal = Goal(trials, sweep.epochs_total, sweep.time_budget)
        self.driver.run(log, slots, self.checked.shared.askers, goal)
        self.finish(log)

    def finish(self, log: Log) -> None:
        """Make all that follows from the log.

        Raises:
            RunError: no trial finished an epoch.
        """
        self.driver.check()  # checkpoints are removed, and may be another driver's by now
        write_outputs(self.folder, self.driver.command, self.stored)
        self.leftovers.remove_all()
        events = self.folder.events()
        if events[-1]["event"] != "complete":
            log.append({"event": "complete"})
        if not any(event["event"] == "epoch" for event in events):
            reasons = (event["reason"] for event in events if event["event"] == "ended")
            raise RunError(
                f"No trial of {self.folder.path} finished an epoch; the first says: "
                f"{next(reasons, 'nothing')}"
            )
        if saved := self.driver.progress.saved():
            self.screen.say(saved)

    def confirm(self, given: Mapping[str, Any]) -> None:
        """Confirm the search, if that is wanted; `given` as `confirm_sweep` takes it.

        Raises:
            KeyboardInterrupt: the sweep was to stop when its last trials ended.
        """
        path, interrupts = self.folder.path, self.decisions.interrupts
        if not self.checked.sweep.confirm:
            return
        if interrupts.requested:
            interrupts.end(f"the search is complete; to go on: kdtune confirm {path}")
        confirm_sweep(path, given, self.screen.show)
