"""Run a sweep, or go on with one: every cell's trials on Ray, then the tables.

The log is the sweep. To go on with one is to read its log, which fills all that decides, to hand
out the trials under way, and then to go on asking; a new sweep is one whose log says only that.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdtune.config.sweep import CONFIRM_FIELDS, NOT_FROM_LOG, SweepConfig
from kdtune.errors import RunError
from kdtune.log.event_log import EventLog
from kdtune.log.events import Completed, EpochFinished, TrialEnded
from kdtune.log.folder import RESULTS_FOLDER, SweepFolder
from kdtune.log.remote_sync import RemoteSync, synced_to
from kdtune.reports.tables.sentences import describe_detectable_difference
from kdtune.reports.text.plan import plan_text
from kdtune.storage.files import write_text, write_yaml
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import find_slots, ray_session
from kdtune.tuning.confirm import confirm_sweep
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, get_checkpoint_storage
from kdtune.tuning.driver.preflight import PreparedSweep, prepare_sweep
from kdtune.tuning.driver.resume_rules import build_resume_config, resume_flags
from kdtune.tuning.driver.write_results import write_results
from kdtune.tuning.planning.gpu_sharing import choose_gpu_sharing
from kdtune.tuning.planning.plan import load_learning_curves, make_plan, require_local_address
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.samplers import describe_sampler
from kdtune.tuning.trials.best_weights import CheckpointCleanup
from kdtune.tuning.trials.warm_cache import warm_cache
from kdtune.units import format_duration


def run_sweep(config: Mapping[str, Any], show: str = "live", plan: bool = False) -> SweepFolder:
    """Run a sweep from beginning to end.

    Everything is checked before the folder is made: data, teacher, methods, models, spaces,
    settings; every training and validation image is decoded, and the teacher's targets of what
    the first epoch sees are computed, so that all trials find them.

    Args:
        config: settings of `SweepConfig`.
        show: what is seen meanwhile: a key of `kdtune.tuning.display.screen.LEAST_KIND_BY_MODE`.
        plan: plan it first, for this machine's slots, and keep the plan with it.

    Returns:
        The sweep's folder, with its log, its tables, and the best configurations and networks.

    Raises:
        UserError: something the user gave is no good; nothing was written.
        RunError: no trial finished an epoch, or the disk is full.
        KeyboardInterrupt: the sweep was interrupted; its tables are of what had ended.
    """
    screen = Screen(show)
    requested = SweepConfig.parse(config)
    if plan:
        require_local_address(requested)
    folder = SweepFolder(RESULTS_FOLDER / requested.name)
    folder.raise_if_exists()
    prepared = prepare_sweep(requested, requested.spaces)
    sweep, opening_event = prepared.sweep, prepared.opening_event
    warm_start_events = prepared.load_warm_start_events()
    with ray_session(sweep.address, screen.show == "verbose", screen.warn):
        with synced_to(folder, sweep.storage, True, screen.warn) as remote_sync:
            slots = find_slots(sweep, screen.warn)
            session = _SearchSession(folder, prepared, screen, remote_sync)
            for line in session.describe(slots):
                screen.say(line)
            for event in warm_start_events:
                screen.say(f"{'-'.join(event.cell)}: {event.reason}")
            cached = warm_cache(prepared.shared_inputs, slots, screen.say)
            opening_event = opening_event.with_prepared(cached)
            slots, sweep_plan = session.share_gpus(slots), None
            if plan:
                sweep_plan = make_plan(
                    prepared,
                    warm_start_events,
                    slots,
                    (),
                    load_learning_curves(prepared, None),
                    screen.say,
                )
                screen.say(plan_text(sweep_plan, "table"))
            with folder.create_atomically() as new_folder:
                if sweep_plan is not None:
                    write_text(new_folder.plan_path, json.dumps(sweep_plan, indent=2) + "\n")
                write_yaml(new_folder.config_path, opening_event.config)
                write_text(
                    new_folder.environment_path,
                    json.dumps(opening_event.environment, indent=2) + "\n",
                )
                with EventLog(new_folder.log_path, []) as log:
                    log.append(opening_event)
                    for event in warm_start_events:
                        log.append(event)
            with folder.locked(), session.driver.open_log() as log:
                session.run(log, slots)
        session.confirm({key: getattr(sweep, key) for key in NOT_FROM_LOG if getattr(sweep, key)})
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
        synced_to(folder, changes.get("storage"), False, screen.warn) as remote_sync,
        folder.locked_existing(),
    ):
        earlier_opening = folder.load_opening_events()[-1]
        requested = build_resume_config(earlier_opening, changes)
        prepared = prepare_sweep(requested, tuple(changes.get("spaces", ())), earlier_opening)
        session = _SearchSession(folder, prepared, screen, remote_sync)
        with session.driver.open_log() as log:
            session.driver.report_resumed(log, earlier_opening, prepared.opening_event)
            if session.policy.finished:
                if prepared.opening_event.config != earlier_opening.config:
                    log.append(prepared.opening_event)
                session.driver.flush_trackers()
                session.finish(log)
            else:
                sweep = prepared.sweep
                with ray_session(sweep.address, screen.show == "verbose", screen.warn):
                    slots = find_slots(sweep, screen.warn)
                    for line in session.describe(slots):
                        screen.say(line)
                    cached = warm_cache(prepared.shared_inputs, slots, screen.say)
                    slots = session.share_gpus(slots)
                    log.append(prepared.opening_event.with_prepared(cached))
                    session.run(log, slots)
    session.confirm({key: value for key, value in changes.items() if key in CONFIRM_FIELDS})
    return folder


class _SearchSession:
    """A search with its driver.

    Args:
        folder: of the sweep.
        checked: the sweep.
        screen: where what people are told goes.
        mirror: of the folder in a storage; None without one.
    """

    def __init__(
        self,
        folder: SweepFolder,
        prepared: PreparedSweep,
        screen: Screen,
        remote_sync: RemoteSync | None,
    ):
        self.folder, self.prepared, self.screen = folder, prepared, screen
        self.policy = SearchPolicy(
            prepared.sweep, prepared.spaces, prepared.configure_trial, say=screen.warn
        )
        self.checkpoint_storage = get_checkpoint_storage(remote_sync)
        self.checkpoint_cleanup = CheckpointCleanup(folder, self.checkpoint_storage)
        resume_command = f"kdtune resume {folder.path}{resume_flags(prepared.sweep)}"
        self.driver = Driver(
            folder,
            folder.log_path,
            self.policy,
            self.checkpoint_cleanup,
            "trials",
            resume_command,
            screen,
            remote_sync,
        )

    def describe(self, slots: Slots) -> Iterator[str]:
        """Say what is going to happen."""
        sweep, num_test_images = (
            self.prepared.sweep,
            self.prepared.opening_event.data.test_images,
        )
        cells = sweep.cells()
        budget = [f"{sweep.trials} trials each"] if sweep.trials is not None else []
        if sweep.total_epochs is not None:
            budget.append(f"{sweep.total_epochs} epochs in all")
        if sweep.time_budget is not None:
            budget.append(f"{format_duration(sweep.time_budget)} of time")
        has_several_cells = len(cells) > 1
        yield (
            f"{len(cells)} cell{'s' * has_several_cells}, {', '.join(budget)}, of every trial at most "
            f"{sweep.epochs} epochs{f'; every cell gets the same {sweep.balance_by}' * has_several_cells}"
        )
        sampler_name, stopping_rule = (
            describe_sampler(sweep.sampler),
            self.policy.stopping.describe_rule(),
        )
        yield f"{sampler_name} proposes; {stopping_rule}; {slots.count} trials at once"
        if not slots.is_uniform_cpu_only:
            yield slots.describe_resources()
        if num_test_images:
            yield describe_detectable_difference(
                num_test_images, sweep.seeds, len(set(sweep.models))
            )
        else:
            yield "without test images the sweep cannot be confirmed"

    def share_gpus(self, slots: Slots) -> Slots:
        """Measure how many trials share a GPU best, if that is wanted; all views are there."""
        sweep, target_requests = self.prepared.sweep, self.prepared.shared_inputs.target_requests
        return choose_gpu_sharing(
            sweep, slots, self.prepared.example_configs, target_requests, self.screen.say
        )

    def run(self, log: EventLog, slots: Slots) -> None:
        """Run all trials, then make all that follows from the log."""
        sweep = self.prepared.sweep
        trials_per_cell = dict.fromkeys(sweep.cells(), sweep.trials)
        goal = Goal(trials_per_cell, sweep.total_epochs, sweep.time_budget)
        self.driver.run(log, slots, self.prepared.shared_inputs.target_requests, goal)
        self.finish(log)

    def finish(self, log: EventLog) -> None:
        """Make all that follows from the log.

        Raises:
            RunError: no trial finished an epoch.
        """
        self.driver.sync_remote()  # checkpoints are removed, and may be another driver's by now
        write_results(self.folder, self.driver.resume_command, self.checkpoint_storage)
        self.checkpoint_cleanup.remove_all()
        events = self.folder.load_events()
        if not isinstance(events[-1], Completed):
            log.append(Completed())
        if not any(isinstance(event, EpochFinished) for event in events):
            reasons = (event.reason for event in events if isinstance(event, TrialEnded))
            raise RunError(
                f"No trial of {self.folder.path} finished an epoch; the first says: "
                f"{next(reasons, 'nothing')}"
            )
        if savings := self.driver.progress.describe_cache_savings():
            self.screen.say(savings)

    def confirm(self, changes: Mapping[str, Any]) -> None:
        """Confirm the search, if that is wanted; `given` as `confirm_sweep` takes it.

        Raises:
            KeyboardInterrupt: the sweep was to stop when its last trials ended.
        """
        path, interrupts = self.folder.path, self.policy.interrupts
        if not self.prepared.sweep.confirm:
            return
        if interrupts.stop_requested:
            interrupts.raise_interrupt(f"the search is complete; to go on: kdtune confirm {path}")
        confirm_sweep(path, changes, self.screen.show)
