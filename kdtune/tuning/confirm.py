"""Confirm a search: its best trials trained again from scratch, with fresh seeds, then tested."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray

from kdtune.config.train import TrainConfig
from kdtune.errors import DiskFullError, RunError, UserError, last_line
from kdtune.log.event_log import EventLog
from kdtune.log.events import (
    Candidate,
    Completed,
    ConfirmStarted,
    RunTested,
    StudentProfiled,
    TrialProposed,
    WeightsMissing,
)
from kdtune.log.folder import SweepFolder
from kdtune.log.remote_sync import RemoteSync, synced_to
from kdtune.reports.tables.log_tables import trials_table
from kdtune.reports.tables.sentences import describe_detectable_difference
from kdtune.runtime.signals import raise_on_sigterm
from kdtune.storage.files import atomic_write
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import find_slots, ray_session
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, get_checkpoint_storage
from kdtune.tuning.driver.preflight import prepare_confirmation
from kdtune.tuning.driver.resume_rules import build_confirm_config, resume_flags
from kdtune.tuning.driver.write_results import write_results
from kdtune.tuning.planning.gpu_sharing import choose_gpu_sharing
from kdtune.tuning.scheduling.confirm_policy import Candidates, ConfirmPolicy, best_trials
from kdtune.tuning.trials.best_weights import ConfirmedWeights
from kdtune.tuning.trials.held_out import predict_test_images, profile_student
from kdtune.tuning.trials.warm_cache import warm_cache
from kdtune.units import format_duration


def confirm_sweep(
    path: str | Path, changes: Mapping[str, Any] | None = None, show: str = "live"
) -> SweepFolder:
    """Train the best trials of every cell again with fresh seeds, choose, and test once.

    What was interrupted goes on. A further call with more seeds, or after the sweep got new cells,
    adds what is missing.

    Args:
        path: the sweep's folder; its search must be complete.
        given: settings of `SweepConfig`: ``top`` and ``seeds``, where things are, and what a run
            gets.
        show: as for `kdtune.tuning.sweep.run_sweep`.

    Returns:
        The sweep's folder.

    Raises:
        UserError: this is no complete sweep, another process runs it, or what it needs is not
            there any more or not what it was.
        RunError, KeyboardInterrupt: as `kdtune.tuning.sweep.run_sweep`.
    """
    folder, screen, given = SweepFolder(path), Screen(show), changes or {}
    with (
        synced_to(folder, given.get("storage"), False, screen.warn) as remote_sync,
        folder.locked_existing(),
    ):
        _ConfirmSession(folder, given, screen, remote_sync).run()
    return folder


class _ConfirmSession:
    """A confirmation from beginning to end."""

    def __init__(
        self,
        folder: SweepFolder,
        changes: Mapping[str, Any],
        screen: Screen,
        remote_sync: RemoteSync | None,
    ):
        self.folder, self.screen, search_events = folder, screen, folder.load_events()
        if not isinstance(search_events[-1], Completed):
            raise UserError(
                f"{folder.path} is not complete: first 'kdtune resume {folder.path}'; with a "
                "lower number of --trials it ends with what it has."
            )
        confirm_openings = folder.load_confirm_openings()
        self.earlier_opening = folder.load_opening_events()[-1]
        self.sweep = build_confirm_config(folder, changes)
        if confirm_openings and self.sweep.top != (top := confirm_openings[-1].top):
            raise UserError(
                f"The candidates are the best {top} of each cell, and stay so; --seeds can grow."
            )
        if confirm_openings and self.sweep.seeds < (seeds := confirm_openings[-1].seeds):
            raise UserError(f"There are {seeds} seeds already; --seeds can grow.")
        self.search_trials = trials_table(search_events)
        known_candidates: Candidates = {}
        for event in confirm_openings:
            for candidate in event.candidates:
                known_candidates.setdefault(candidate.cell, []).append(candidate.trial_id)
        best_candidates = best_trials(self.search_trials, self.sweep.top)
        if not best_candidates:
            raise UserError(f"No trial of {folder.path} came to an end: nothing can be confirmed.")
        self.new_candidates = {
            cell: ids for cell, ids in best_candidates.items() if cell not in known_candidates
        }
        for cell, ids in known_candidates.items():
            if late_trials := set(best_candidates.get(cell, ())) - set(ids):
                screen.warn(
                    f"{'-'.join(cell)}: {', '.join(sorted(late_trials))} came after the "
                    "candidates were taken, and is not confirmed; that takes a sweep of its own"
                )
        trial_configs = {
            e.trial_id: e.config for e in search_events if isinstance(e, TrialProposed)
        }
        self.earlier_confirmation = confirm_openings[-1] if confirm_openings else None
        self.policy = ConfirmPolicy(self.sweep, trial_configs, say=screen.warn)
        resume_command = f"kdtune confirm {folder.path}{resume_flags(self.sweep)}"
        self.confirmed_weights = ConfirmedWeights(folder, get_checkpoint_storage(remote_sync))
        log_path = folder.confirm_log_path
        self.driver = Driver(
            folder,
            log_path,
            self.policy,
            self.confirmed_weights,
            "runs",
            resume_command,
            screen,
            remote_sync,
        )
        used_trials = [
            trial
            for ids in (*known_candidates.values(), *self.new_candidates.values())
            for trial in ids
        ]
        if unknown_trials := set(used_trials) - trial_configs.keys():
            raise UserError(
                f"{folder.confirm_log_path} is damaged: {unknown_trials.pop()} was not searched."
            )
        self.prepared = prepare_confirmation(
            self.sweep,
            self.earlier_opening,
            self.earlier_confirmation,
            [trial_configs[trial] for trial in used_trials],
            [
                Candidate(method=method, model=model, trial_id=trial)
                for (method, model), ids in self.new_candidates.items()
                for trial in ids
            ],
        )

    def run(self) -> None:
        """Do what is left to be done."""
        policy, opening_event = self.policy, self.prepared.opening_event
        with self.driver.open_log() as log:
            if self.earlier_confirmation is not None:
                self.driver.report_resumed(log, self.earlier_confirmation, opening_event)
            try:
                self.confirmed_weights.activate()
                for run_id in policy.testable_runs():
                    if not self.folder.network_path(run_id).is_file():
                        log.append(WeightsMissing(**policy.proposals[run_id].identity))
                if self._has_changes(opening_event) or self._has_work():
                    log.append(opening_event)  # has runs that crashed run again
                if self._has_work():
                    verbose, say = self.screen.show == "verbose", self.screen.warn
                    with ray_session(self.sweep.address, verbose, say), raise_on_sigterm():
                        self._run_choose_test(log, find_slots(self.sweep, say))
                else:
                    self.driver.flush_trackers()
                self._finish(log)
            except DiskFullError as error:
                raise RunError(f"{error} Make room, then: {self.driver.resume_command}") from None
            except KeyboardInterrupt as error:
                if str(error):
                    raise
                raise type(error)(f"to go on: {self.driver.resume_command}") from None

    def _has_changes(self, opening_event: ConfirmStarted) -> bool:
        """Whether something is asked for that the log does not know."""
        previous = self.earlier_confirmation
        if previous is None or self.new_candidates:
            return True
        same_config = opening_event.config == previous.config
        return not same_config or opening_event.groups_sha256 != previous.groups_sha256

    def _has_work(self) -> bool:
        """Whether something is left to be done."""
        policy = self.policy
        return bool(
            not policy.finished
            or policy.crashed_runs()
            or policy.choose_candidates()
            or policy.untested_runs()
        )

    def _run_choose_test(self, log: EventLog, slots: Slots) -> None:
        """Run, choose, test."""
        for line in self._describe_plan(slots):
            self.screen.say(line)
        warm_cache(self.prepared.shared_inputs, slots, self.screen.say)
        slots = self._share_gpus(slots)
        self._profile_students(log, slots)
        goal = Goal(self.policy.runs_per_cell)
        self.driver.run(log, slots, self.prepared.shared_inputs.target_requests, goal)
        if self.policy.interrupts.stop_requested:
            self.policy.interrupts.raise_interrupt(f"to go on: {self.driver.resume_command}")
        for choice in self.policy.choose_candidates():
            log.append(choice)
        self._score_test_images(log, slots)

    def _finish(self, log: EventLog) -> None:
        """Make all that follows.

        Raises:
            RunError: no run was sound.
        """
        self._write_labels()
        write_results(self.folder, self.driver.resume_command)
        self.driver.sync_remote()
        if not isinstance(self.folder.load_confirm_events()[-1], Completed):
            log.append(Completed())
        if not self.policy.chosen_trials:
            reason = next(iter(self.policy.end_events.values())).reason
            raise RunError(
                f"No run of {self.folder.confirm_log_path} came to its end; the first says: "
                f"{reason}"
            )

    def _describe_plan(self, slots: Slots) -> Iterator[str]:
        """Say what is going to happen."""
        num_runs, num_images = self.policy.num_runs, len(self.prepared.test_split)
        totals = self.search_trials[["device_seconds", "epochs"]].sum()
        run_seconds = totals["device_seconds"] / max(1, totals["epochs"]) * self.sweep.epochs
        runs_left = num_runs - len(self.policy.end_events)
        yield (
            f"confirm: the best {self.sweep.top} of {len(self.policy.candidates)} cells with "
            f"{self.policy.num_seeds} fresh seeds of {self.sweep.epochs} epochs each; "
            f"{runs_left} of {num_runs} runs are left, {slots.count} at once, about "
            f"{format_duration(runs_left * run_seconds / slots.count)}"
        )
        for (method, model), ids in self.new_candidates.items():
            if len(ids) < self.sweep.top:
                yield f"{method}-{model} has no more than {len(ids)} sound trials"
        num_models = len({model for _, model in self.policy.candidates})
        best_accuracy = self.search_trials["best_validation_accuracy"].max()
        yield describe_detectable_difference(
            num_images, self.policy.num_seeds, num_models, best_accuracy
        )

    def _share_gpus(self, slots: Slots) -> Slots:
        """Measure how many runs share a GPU best, if that is wanted."""
        target_requests = self.prepared.shared_inputs.target_requests
        return choose_gpu_sharing(
            self.sweep, slots, self._example_configs, target_requests, self.screen.say
        )

    def _example_configs(self) -> dict[str, TrainConfig]:
        """Settings of a run of each student."""
        return {
            model: self._with_current_locations(self.policy.configure_run(trials[0], 1))
            for (_, model), trials in self.policy.candidates.items()
        }

    def _profile_students(self, log: EventLog, slots: Slots) -> None:
        """Find out what each student costs."""
        events = self.folder.load_confirm_events()
        profiled = {event.model for event in events if isinstance(event, StudentProfiled)}
        for (_, model), trials in self.policy.candidates.items():
            if model not in profiled:
                profiled.add(model)
                config = self._with_current_locations(self.policy.configure_run(trials[0], 1))
                try:
                    costs = profile_student(
                        config, len(self.prepared.shared_inputs.decoded.data.classes), slots
                    )
                except ray.exceptions.RayError as error:
                    text = f"{model} could not be measured: {last_line(error)}"
                    self.screen.warn(text)
                else:
                    log.append(StudentProfiled(model=model, **costs))

    def _score_test_images(self, log: EventLog, slots: Slots) -> None:
        """Read the test images, for what was chosen."""
        runs, labels = self.policy.untested_runs(), np.asarray(self.prepared.test_split.labels)
        if not runs:
            return
        self.driver.sync_remote()
        self._write_labels()
        paths = [self.folder.network_path(run_id) for _, run_id in runs]
        configs = [
            self._with_current_locations(
                self.policy.configure_run(self.policy.chosen_trials[cell], 1)
            )
            for cell, _ in runs
        ]
        self.screen.say(
            f"reading {len(labels):,} test images with {len(runs)} networks of what was chosen"
        )
        try:
            predictions = predict_test_images(list(zip(paths, configs, strict=True)), slots)
            for (_, run_id), predicted in zip(runs, predictions, strict=True):
                with atomic_write(self.folder.predictions_path(run_id)) as temporary:
                    np.savez_compressed(temporary, predicted=predicted.astype(np.uint16))
                log.append(
                    RunTested(
                        **self.policy.proposals[run_id].identity,
                        test_accuracy=float((predicted == labels).mean()),
                        test_images=len(labels),
                    )
                )
        except ray.exceptions.RayError as error:
            raise RunError(
                f"The test images could not be classified: {last_line(error)}"
            ) from error

    def _write_labels(self) -> None:
        """Keep what is right for each test image, and which belong together."""
        arrays = {"labels": np.asarray(self.prepared.test_split.labels, dtype=np.uint16)}
        if self.prepared.test_groups is not None:
            arrays["groups"] = np.asarray(self.prepared.test_groups)
        with atomic_write(self.folder.test_labels_path) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)

    def _with_current_locations(self, config: TrainConfig) -> TrainConfig:
        uses_teacher = config.teacher_model is not None
        return config.model_copy(update=self.sweep.locations(uses_teacher))
