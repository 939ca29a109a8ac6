"""Start and resume of a sweep: trials on Ray, then tables, then the confirmation.

The log is the sweep. Resuming reads it, which sets the state of all that decides, and hands out
the trials that had not ended; a new sweep is one whose log has an opening event only.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kdtune.config.sweep import CONFIRM_FIELDS, NOT_FROM_LOG, SweepConfig
from kdtune.errors import RunError
from kdtune.log import events
from kdtune.log.event_log import EventLog
from kdtune.log.folder import RESULTS_FOLDER, SweepFolder
from kdtune.log.remote_sync import RemoteSync, synced_to
from kdtune.reports.tables.all_tables import load_sweep_tables
from kdtune.reports.tables.learning import describe_chance, learning_sentences
from kdtune.reports.tables.sentences import describe_detectable_difference
from kdtune.reports.text.plan import plan_text
from kdtune.runtime.console import waiting
from kdtune.storage.files import write_text, write_yaml
from kdtune.tuning.cluster.placement import Node, Slots
from kdtune.tuning.cluster.session import LOCAL_ADDRESS, find_slots, ray_session, resolve_address
from kdtune.tuning.confirm import confirm_sweep
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, Workplace
from kdtune.tuning.driver.preflight import PreparedSweep, prepare_sweep
from kdtune.tuning.driver.resume_rules import build_resume_config, confirm_flags, resume_flags
from kdtune.tuning.planning.gpu_sharing import choose_gpu_sharing
from kdtune.tuning.planning.plan import Plan, Planner, require_local_address
from kdtune.tuning.planning.synthetic_curves import SyntheticCurves
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.until_decided import add_trials
from kdtune.tuning.search.samplers import describe_sampler
from kdtune.tuning.search.warm_start import Earlier
from kdtune.tuning.trials.best_weights import CheckpointCleanup
from kdtune.units import format_duration

_CHECKING = "checking data, teacher, networks and spaces"


def run_sweep(config: Mapping[str, Any], show: str = "live", plan: bool = False) -> SweepFolder:
    """Run a sweep, and return its folder with log, tables, best configurations and weights.

    Before the folder is created, all settings and files are checked, training and validation
    images are decoded, and the teacher's targets for the first epoch are computed.

    Args:
        config: settings of `SweepConfig`.
        show: a key of `kdtune.tuning.display.screen.LEAST_KIND_BY_MODE`.
        plan: plan the sweep first, for the slots of this machine, and save the plan in its folder.

    Raises:
        UserError: an argument is unusable; a new sweep has written nothing.
        RunError: no trial finished an epoch, or the disk is full.
        KeyboardInterrupt: the sweep was interrupted; its tables are of what had ended.
    """
    screen, requested = Screen(show), SweepConfig.parse(config)
    if plan:
        require_local_address(requested)
    folder = SweepFolder(RESULTS_FOLDER / requested.name)
    folder.raise_if_exists()
    with waiting(_CHECKING, screen.say):
        prepared = prepare_sweep(requested, requested.spaces)
    sweep, warm_start_events = prepared.sweep, prepared.warm_start_events
    with ray_session(sweep.address, screen.show == "verbose", screen.warn, screen.say):
        with synced_to(folder, sweep.storage, True, screen.warn) as remote_sync:
            session = _SearchSession(folder, screen, prepared, remote_sync)
            slots, opening_event = session.prepare_slots()
            sweep_plan = session.make_plan(slots) if plan else None
            _create_folder(folder, sweep_plan, opening_event, *warm_start_events)
            with folder.locked(), session.driver.open_log(folder.log_path) as log:
                session.run(log, slots)
        session.confirm({key: getattr(sweep, key) for key in NOT_FROM_LOG if getattr(sweep, key)})
    return folder


def check_sweep(config: Mapping[str, Any], show: str = "live") -> None:
    """Check a sweep as `run_sweep` does, and show what it would do; nothing is trained or kept.

    Ray is not started, so only a sweep on this machine has its slots checked.

    Args:
        config: settings of `SweepConfig`.
        show: as for `run_sweep`.
    """
    screen, requested = Screen(show), SweepConfig.parse(config)
    folder = SweepFolder(RESULTS_FOLDER / requested.name)
    folder.raise_if_exists()
    with waiting(_CHECKING, screen.say):
        prepared = prepare_sweep(requested, requested.spaces)
    session = _SearchSession(folder, screen, prepared)
    slots = None
    if resolve_address(requested.address) == LOCAL_ADDRESS:
        machine = [Node("here", os.cpu_count() or 1, torch.cuda.device_count())]
        slots = find_slots(prepared.sweep, screen.warn, lambda: machine)
    for line in session.describe(slots):
        screen.say(line)


def resume_sweep(
    path: str | Path, changes: Mapping[str, Any] | None = None, show: str = "live"
) -> SweepFolder:
    """Resume a sweep that was interrupted, or that gets more trials, cells or resources.

    Trials that had not ended resume from their checkpoints, or start anew without them.

    Args:
        path: the sweep's folder.
        changes: settings of `SweepConfig` that change.
        show: as for `run_sweep`, which also says what may be raised.
    """
    screen, folder, changes = Screen(show), SweepFolder(path), changes or {}
    storage = changes.get("storage")
    with synced_to(folder, storage, False, screen.warn) as remote_sync, folder.locked_existing():
        earlier_opening = folder.load_opening_events()[-1]
        requested = build_resume_config(earlier_opening, changes)
        space_files = tuple(changes.get("spaces", ()))
        with waiting(_CHECKING, screen.say):
            prepared = prepare_sweep(requested, space_files, earlier_opening)
        session = _SearchSession(folder, screen, prepared, remote_sync)
        opening_event = prepared.opening_event
        with session.driver.open_log(folder.log_path) as log:
            session.driver.report_resumed(log, earlier_opening, opening_event)
            if session.policy.finished and session.added_trials(log) is None:
                screen.say(f"nothing left to train: the search of {folder.path} is complete")
                if opening_event.config != earlier_opening.config:
                    log.append(opening_event)
                session.driver.flush_trackers()
                session.finish(log)
            else:
                address, verbose = prepared.sweep.address, screen.show == "verbose"
                with ray_session(address, verbose, screen.warn, screen.say):
                    slots, opening_event = session.prepare_slots()
                    log.append(opening_event)
                    session.run(log, slots)
    session.confirm({key: changes[key] for key in changes if key in CONFIRM_FIELDS})
    return folder


def _create_folder(
    folder: SweepFolder, plan: Plan | None, opening: events.SweepOpening, *others: Earlier
) -> None:
    with folder.create_atomically() as new_folder:
        if plan is not None:
            write_text(new_folder.plan_path, json.dumps(plan, indent=2) + "\n")
        write_yaml(new_folder.config_path, opening.config)
        write_text(new_folder.environment_path, json.dumps(opening.environment, indent=2) + "\n")
        with EventLog(new_folder.log_path, []) as log:
            for event in (opening, *others):
                log.append(event)


class _SearchSession:
    """A search with its driver."""

    def __init__(
        self,
        folder: SweepFolder,
        screen: Screen,
        prepared: PreparedSweep,
        remote_sync: RemoteSync | None = None,
    ):
        self.prepared, self.screen, self.sweep = prepared, screen, prepared.sweep
        command = folder.command("resume", *resume_flags(self.sweep, prepared.spaces))
        self.workplace = workplace = Workplace(folder, screen, command, remote_sync)
        inputs = self.sweep, prepared.spaces, prepared.configure_trial
        self.policy = SearchPolicy(
            *inputs, say=screen.warn, measure_scales=prepared.measure_scales
        )
        files = folder, workplace.checkpoint_storage
        self.checkpoint_cleanup = CheckpointCleanup(*files, self.policy.studies.rank)
        self.driver = Driver(workplace, self.policy, self.checkpoint_cleanup, "trials")

    def prepare_slots(self) -> tuple[Slots, events.SweepOpening]:
        """Find the slots, build what the first epoch needs, and choose how trials share GPUs."""
        slots = find_slots(self.sweep, self.screen.warn)
        for line in self.describe(slots):
            self.screen.say(line)
        shared_inputs, before = self.prepared.shared_inputs, self.prepared.opening_event
        is_new = isinstance(before, events.SweepStarted)
        with waiting("preparing what all trials share", self.screen.say):
            built = shared_inputs.warm_cache(slots, self.screen.say, check_teacher=is_new)
            for line in self.prepared.describe_unscaled_strengths():
                self.screen.say(line)
        opening_event = self.prepared.opening_after(built)
        if (check := shared_inputs.teacher_check) is not None and before.teacher is not None:
            self.screen.say(f"teacher {before.teacher.model}: {check.describe()}")
            for line in learning_sentences([opening_event]):
                if line not in learning_sentences([before]):
                    self.screen.say(line)
        make_configs, targets = self.prepared.example_configs, shared_inputs.target_requests
        slots = choose_gpu_sharing(self.sweep, slots, make_configs, targets, self.screen.say)
        return slots, opening_event

    def make_plan(self, slots: Slots) -> Plan:
        """Return the plan of the sweep, and show it."""
        curves = SyntheticCurves(self.sweep.epochs, self.sweep.seed)
        plan = Planner(self.prepared, curves).make_plan(slots, (), self.screen.say)
        self.screen.say(plan_text(plan, "table"))
        return plan

    def describe(self, slots: Slots | None) -> Iterator[str]:
        """Yield lines about the sweep; without slots, none about these."""
        yield from self.prepared.shared_inputs.decoded.data.describe()
        sweep, num_cells = self.sweep, len(self.sweep.cells())
        budget = [f"{sweep.trials} trials each"] if sweep.trials is not None else []
        if sweep.total_epochs is not None:
            budget.append(f"{sweep.total_epochs} epochs in all")
        if sweep.time_budget is not None:
            budget.append(f"{format_duration(sweep.time_budget)} of time")
        equal_shares = f"; every cell gets the same {sweep.balance_by}" * (num_cells > 1)
        cells = f"{num_cells} cell{'s' * (num_cells > 1)}, {', '.join(budget)}"
        yield f"{cells}, at most {sweep.epochs} epochs per trial{equal_shares}"
        at_once = f"; {slots.count} trials at once" if slots is not None else ""
        rule = f"{self.policy.stopping.describe_rule()}{at_once}"
        yield f"{describe_sampler(sweep.sampler)} proposes; {rule}"
        if slots is not None and not slots.is_uniform_cpu_only:
            yield slots.describe_resources()
        yield from (*self.prepared.left_out, *self.prepared.shared_inputs.pooling_lines)
        opening_event = self.prepared.opening_event
        yield describe_chance(opening_event)
        yield from learning_sentences([opening_event])
        if num_test_images := opening_event.data.test_images:
            num_models = len(sweep.students)
            yield describe_detectable_difference(num_test_images, sweep.seeds, num_models)
        else:
            yield "without test images the sweep cannot be confirmed"
        yield from (f"{e.cell_name}: {e.reason}" for e in self.prepared.warm_start_events)

    def run(self, log: EventLog, slots: Slots) -> None:
        """Run all trials, then write all that is made from the log."""
        while True:
            limits = {cell: self.policy.budget.trial_limit(cell) for cell in self.sweep.cells()}
            goal = Goal(limits, self.sweep.total_epochs, self.sweep.time_budget)
            self.driver.run(log, slots, self.prepared.shared_inputs.target_requests, goal)
            if (added := self.added_trials(log, slots)) is None:
                break
            log.append(added)
            cells = ", ".join(map("-".join, added.cells))
            self.screen.say(f"{added.reason}; {added.trials} trials for {cells}")
        self.finish(log)

    def added_trials(self, log: EventLog, slots: Slots | None = None) -> events.TrialsAdded | None:
        """Return the trials that `until_decided` adds to the search; None if it is off or done.

        Args:
            log: open; it gets the models of the cells.
            slots: of the trials, for their time; without them, the budget is not looked at.
        """
        self._model_cells(log)
        folder = self.workplace.folder
        if not self.sweep.until_decided or folder.load_confirm_openings():
            return None
        leaderboard = load_sweep_tables(folder).leaderboard.set_index(["method", "model"])
        started = leaderboard["trials_started"]
        added = add_trials(
            self.sweep,
            started.to_dict(),
            leaderboard["search_luck_points"].to_dict(),
            self.prepared.opening_event.data.test_images,
            (leaderboard["search_best_percent"] / 100).to_dict(),
            {cell: self.policy.budget.trial_limit(cell) for cell in self.sweep.cells()},
        )
        if added is None or slots is None:
            return added
        num_trials = sum(added.trials - started[cell] for cell in added.cells)
        seconds = leaderboard["search_device_seconds"].sum() / started.sum() / slots.count
        seconds *= num_trials
        return added if self.driver.fits_budget(added.reason, num_trials, seconds) else None

    def _model_cells(self, log: EventLog) -> None:
        for event in self.policy.model_cells():
            log.append(event)

    def finish(self, log: EventLog) -> None:
        """Write all that is made from the log; raise if no trial finished an epoch."""
        self.workplace.sync_remote()  # another driver may need the checkpoints by now
        self._model_cells(log)
        self.workplace.write_results()
        self.checkpoint_cleanup.remove_all()
        logged = self.workplace.folder.load_events()
        if not isinstance(logged[-1], events.Completed):
            log.append(events.Completed())
        if not any(isinstance(event, events.EpochFinished) for event in logged):
            reasons = (event.reason for event in logged if isinstance(event, events.TrialEnded))
            path, reason = self.workplace.folder.path, next(reasons, "nothing")
            raise RunError(f"No trial of {path} finished an epoch; the first says: {reason}")
        if savings := self.driver.progress.describe_cache_savings():
            self.screen.say(savings)

    def confirm(self, changes: Mapping[str, Any]) -> None:
        """Confirm the search if the settings say so; `changes` are those of `confirm_sweep`."""
        if not (self.sweep.confirm or self.sweep.until_decided):
            return
        folder, interrupts = self.workplace.folder, self.policy.interrupts
        if interrupts.stop_requested:
            command = folder.command("confirm", *confirm_flags(self.sweep))
            interrupts.raise_interrupt(f"the search is complete; to continue: {command}")
        confirm_sweep(folder.path, changes, self.screen.show)
