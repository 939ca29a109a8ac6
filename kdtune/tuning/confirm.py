"""Confirmation of a search: its best trials train again with fresh seeds, then are tested."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.errors import DiskFullError, RunError, UserError, last_line
from kdtune.log import events
from kdtune.log.event_log import EventLog
from kdtune.log.folder import SweepFolder
from kdtune.log.image_scores import score_images
from kdtune.log.remote_sync import synced_to
from kdtune.reports.tables.log_tables import trials_table
from kdtune.reports.tables.looks import LAST_LOOK, SCHEDULE
from kdtune.reports.tables.sentences import describe_detectable_difference
from kdtune.runtime.console import waiting
from kdtune.runtime.signals import raise_on_sigterm
from kdtune.storage.files import atomic_write
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import find_slots, ray_session
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, Workplace
from kdtune.tuning.driver.preflight import prepare_confirmation
from kdtune.tuning.driver.resume_rules import build_confirm_config, confirm_flags
from kdtune.tuning.planning.gpu_sharing import choose_gpu_sharing
from kdtune.tuning.scheduling.confirm_policy import Candidates, ConfirmPolicy, best_trials
from kdtune.tuning.scheduling.until_decided import add_seeds, find_questions
from kdtune.tuning.trials.best_weights import ConfirmedWeights
from kdtune.tuning.trials.held_out import predict_test_images, profile_student
from kdtune.units import format_duration


def confirm_sweep(
    path: str | Path, changes: Mapping[str, Any] | None = None, show: str = "live"
) -> SweepFolder:
    """Train the best trials of every cell again with fresh seeds, choose one, and test it once.

    An interrupted confirmation is resumed. A further call with more seeds, or after the sweep got
    new cells, adds what is missing.

    Args:
        path: the sweep's folder; its search must be complete.
        changes: settings of `SweepConfig`: ``top``, ``seeds``, locations, and resources.
        show: as for `kdtune.tuning.sweep.run_sweep`, which also says what may be raised.
    """
    folder, screen, changes = SweepFolder(path), Screen(show), changes or {}
    storage = changes.get("storage")
    with synced_to(folder, storage, False, screen.warn) as remote_sync, folder.locked_existing():
        history = _read_logs(folder, changes)
        command = folder.command("confirm", *confirm_flags(history.sweep, changes))
        _ConfirmSession(Workplace(folder, screen, command, remote_sync), history).run()
    return folder


@dataclass(frozen=True)
class _History:
    """Settings, trials and candidates with which a confirmation starts."""

    sweep: SweepConfig
    trials: pd.DataFrame  # of the search
    trial_configs: dict[str, dict[str, Any]]
    openings: list[events.ConfirmStarted]
    candidates: Candidates  # of all cells
    new_candidates: Candidates  # of cells that `openings` lack


def _read_logs(folder: SweepFolder, changes: Mapping[str, Any]) -> _History:
    """Read the logs of a sweep, and raise if it cannot be confirmed with these settings."""
    search, openings = folder.load_events(), folder.load_confirm_openings()
    if not isinstance(search[-1], events.Completed):
        raise UserError(
            f"{folder.path} is not complete: run {folder.command('resume')} first; with a lower "
            "--trials it ends with the trials that it has."
        )
    sweep = build_confirm_config(folder, changes)
    if openings and sweep.top != (top := openings[-1].top):
        raise UserError(
            f"The candidates are the best {top} of each cell and stay so; only --seeds can grow."
        )
    if openings and sweep.seeds < (seeds := openings[-1].seeds):
        raise UserError(f"There are already {seeds} seeds; --seeds can only grow.")
    proposals = (event for event in search if isinstance(event, events.TrialProposed))
    configs = {proposal.trial_id: proposal.config for proposal in proposals}
    candidates: Candidates = {}
    for candidate in chain.from_iterable(opening.candidates for opening in openings):
        candidates.setdefault(candidate.cell, []).append(candidate.trial_id)
        if candidate.trial_id not in configs:
            problem = f"{candidate.trial_id} was not searched"
            raise UserError(f"{folder.confirm_log_path} is damaged: {problem}.")
    trials = trials_table(search)
    if not (best := best_trials(trials, sweep.top)):
        raise UserError(f"No trial of {folder.path} has succeeded: there is nothing to confirm.")
    new_candidates = {cell: ids for cell, ids in best.items() if cell not in candidates}
    return _History(sweep, trials, configs, openings, candidates | new_candidates, new_candidates)


class _ConfirmSession:
    """A confirmation with its driver."""

    def __init__(self, workplace: Workplace, history: _History):
        self.workplace, self.history = workplace, history
        self.folder, self.screen = workplace.folder, workplace.screen
        self._warn_late_trials()
        self.earlier_opening = history.openings[-1] if history.openings else None
        new_candidates = [
            events.Candidate(method=method, model=model, trial_id=trial_id)
            for (method, model), ids in history.new_candidates.items()
            for trial_id in ids
        ]
        trial_ids = chain.from_iterable(history.candidates.values())
        configs = [history.trial_configs[trial_id] for trial_id in trial_ids]
        openings = self.folder.load_opening_events()[-1], self.earlier_opening
        inputs = history.sweep, *openings, configs, new_candidates
        with waiting("checking data, teacher and networks", self.screen.say):
            self.prepared = prepare_confirmation(*inputs)
        self.sweep = self.prepared.sweep
        self.policy = ConfirmPolicy(self.sweep, history.trial_configs, say=self.screen.warn)
        self.confirmed_weights = ConfirmedWeights(self.folder, workplace.checkpoint_storage)
        self.driver = Driver(workplace, self.policy, self.confirmed_weights, "runs")

    def _warn_late_trials(self) -> None:
        best = best_trials(self.history.trials, self.history.sweep.top)
        for cell, ids in self.history.candidates.items():
            if late_trials := set(best.get(cell, ())) - set(ids):
                self.screen.warn(
                    f"{'-'.join(cell)}: {', '.join(sorted(late_trials))} ranked among the best "
                    "only after the candidates were chosen; to confirm this, start a new sweep"
                )

    def run(self) -> None:
        """Run, choose and test what is left, and write all that is made from the logs."""
        policy, opening_event = self.policy, self.prepared.opening_event
        with self.driver.open_log(self.folder.confirm_log_path) as log:
            if self.earlier_opening is not None:
                self.driver.report_resumed(log, self.earlier_opening, opening_event)
            try:
                self.confirmed_weights.activate()
                for run_id in policy.testable_runs():
                    if not self.folder.network_path(run_id).is_file():
                        log.append(events.WeightsMissing(**policy.proposals[run_id].identity))
                is_open = self._added_seeds() is not None
                if self._has_changes() or self._has_work() or is_open:
                    log.append(opening_event)  # runs that crashed run again
                if self._has_work() or is_open:
                    verbose, warn = self.screen.show == "verbose", self.screen.warn
                    says = verbose, warn, self.screen.say
                    with ray_session(self.sweep.address, *says), raise_on_sigterm():
                        self._run_choose_test(log, find_slots(self.sweep, warn))
                else:
                    what = f"the confirmation of {self.folder.path}"
                    self.screen.say(f"nothing left to train: {what} is complete")
                    self.driver.flush_trackers()
                self._finish(log)
            except DiskFullError as error:
                raise RunError(self.workplace.add_resume_hint(error)) from None
            except KeyboardInterrupt as error:
                if str(error):
                    raise
                raise type(error)(f"to continue: {self.workplace.resume_command}") from None

    def _has_changes(self) -> bool:
        """Return True if the log lacks candidates or settings."""
        earlier, current = self.earlier_opening, self.prepared.opening_event
        if earlier is None or current.candidates or current.config != earlier.config:
            return True
        return current.groups_sha256 != earlier.groups_sha256

    def _has_work(self) -> bool:
        policy = self.policy
        has_runs = not policy.finished or bool(policy.crashed_runs())
        return has_runs or bool(policy.choose_candidates() or policy.untested_runs())

    def _run_choose_test(self, log: EventLog, slots: Slots) -> None:
        say, shared_inputs = self.screen.say, self.prepared.shared_inputs
        for line in self._describe_plan(slots):
            say(line)
        with waiting("preparing what all runs share", say):
            shared_inputs.warm_cache(slots, say)
        targets = shared_inputs.target_requests
        slots = choose_gpu_sharing(self.sweep, slots, self._example_configs, targets, say)
        self._profile_students(log, slots)
        while True:
            self.driver.run(log, slots, targets, Goal(self.policy.runs_per_cell))
            if (interrupts := self.policy.interrupts).stop_requested:
                interrupts.raise_interrupt(f"to continue: {self.workplace.resume_command}")
            for choice in self.policy.choose_candidates():
                log.append(choice)
            self._score_test_images(log, slots)
            if (added := self._added_seeds(slots)) is None:
                break
            log.append(added)
            cells = ", ".join(map("-".join, added.cells))
            say(f"{added.reason}; {added.seeds} seeds for {cells}")
        if self.sweep.until_decided:
            say(self._describe_savings())

    def _added_seeds(self, slots: Slots | None = None) -> events.SeedsAdded | None:
        """Return the seeds that `until_decided` adds after a look; None if it is off or done.

        Args:
            slots: of the runs, for their time; without them, the budget is not looked at.
        """
        if not self.sweep.until_decided or not self.policy.chosen_trials:
            return None
        seeds = {cell: self.policy.seeds_of(cell) for cell in self.policy.candidates}
        min_difference = self.sweep.min_difference
        added = add_seeds(find_questions(self.folder, min_difference), min_difference, seeds)
        if added is None or slots is None:
            return added
        num_runs = sum(max(0, added.seeds - seeds[cell]) for cell in added.cells)
        seconds = num_runs * self._run_seconds / slots.count
        return added if self.driver.fits_budget(added.reason, num_runs, seconds) else None

    def _describe_savings(self) -> str:
        policy = self.policy
        most = max(map(policy.seeds_of, policy.candidates))
        fixed = most * sum(map(len, policy.candidates.values()))
        return f"{policy.num_runs} runs; {most} seeds for every candidate would have been {fixed}"

    def _finish(self, log: EventLog) -> None:
        self._write_labels()
        self.workplace.write_results()
        self.workplace.sync_remote()
        if not isinstance(self.folder.load_confirm_events()[-1], events.Completed):
            log.append(events.Completed())
        if not self.policy.chosen_trials:
            reason = next(iter(self.policy.end_events.values())).reason
            log_path = self.folder.confirm_log_path
            raise RunError(f"No run of {log_path} finished; the first says: {reason}")

    @cached_property
    def _run_seconds(self) -> float:
        """Device seconds of a run, by the search's epochs."""
        totals = self.history.trials[["device_seconds", "epochs"]].sum()
        return float(totals["device_seconds"] / max(1, totals["epochs"]) * self.sweep.epochs)

    def _describe_plan(self, slots: Slots) -> Iterator[str]:
        policy, sweep, trials = self.policy, self.sweep, self.history.trials
        run_seconds = self._run_seconds
        runs_left = policy.num_runs - len(policy.end_events)
        yield (
            f"confirm: the best {sweep.top} of {len(policy.candidates)} cells with "
            f"{policy.num_seeds} fresh seeds of {sweep.epochs} epochs each; "
            f"{runs_left} of {policy.num_runs} runs are left, {slots.count} at once, about "
            f"{format_duration(runs_left * run_seconds / slots.count)}"
        )
        if sweep.until_decided:
            looks = ", ".join(str(seeds) for seeds in SCHEDULE if seeds > policy.num_seeds)
            most = max(0, LAST_LOOK - policy.num_seeds) * len(policy.candidates)
            longest = format_duration(most * run_seconds / slots.count)
            yield (
                f"until decided: looks at the test images with {looks} seeds add at most {most} "
                f"runs, about {longest}, where they can still change the answer"
            )
        for cell, ids in self.history.new_candidates.items():
            if len(ids) < sweep.top:
                yield f"{'-'.join(cell)} has only {len(ids)} successful trials"
        num_images = len(self.prepared.test_split)
        num_models = len({model for _, model in policy.candidates})
        best = trials["best_validation_accuracy"].max()
        yield describe_detectable_difference(num_images, policy.num_seeds, num_models, best)

    def _configure(self, trial_id: str) -> TrainConfig:
        config = self.policy.configure_run(trial_id, 1)
        locations = self.sweep.locations(config.teacher_model is not None)
        return config.model_copy(update=locations)

    def _example_configs(self) -> dict[str, TrainConfig]:
        configs: dict[str, TrainConfig] = {}
        for (_, model), trials in self.policy.candidates.items():
            configs.setdefault(model, self._configure(trials[0]))
        return configs

    def _profile_students(self, log: EventLog, slots: Slots) -> None:
        logged = self.folder.load_confirm_events()
        profiled = {e.model for e in logged if isinstance(e, events.StudentProfiled)}
        num_classes = len(self.prepared.shared_inputs.decoded.data.classes)
        configs = self._example_configs()
        for model in (model for model in configs if model not in profiled):
            try:
                costs = profile_student(configs[model], num_classes, slots)
            except ray.exceptions.RayError as error:
                self.screen.warn(f"{model} could not be measured: {last_line(error)}")
            else:
                log.append(events.StudentProfiled(model=model, **costs))

    def _score_test_images(self, log: EventLog, slots: Slots) -> None:
        runs, labels = self.policy.untested_runs(), np.asarray(self.prepared.test_split.labels)
        if not runs:
            return
        self.workplace.sync_remote()
        self._write_labels()
        networks = [
            (self.folder.network_path(run_id), self._configure(self.policy.chosen_trials[cell]))
            for cell, run_id in runs
        ]
        self.screen.say(f"classifying {len(labels):,} test images with {len(runs)} networks")
        try:
            predictions = predict_test_images(networks, slots)
            for (_, run_id), predicted in zip(runs, predictions, strict=True):
                with atomic_write(self.folder.predictions_path(run_id)) as temporary:
                    np.savez_compressed(temporary, predicted=predicted.astype(np.uint16))
                accuracy, balanced = (
                    float(score_images(predicted, labels, metric).mean())
                    for metric in (self.sweep.metric, "balanced_accuracy")
                )
                result = {"test_accuracy": accuracy, "test_balanced_accuracy": balanced}
                result |= {**self.policy.proposals[run_id].identity, "test_images": len(labels)}
                log.append(events.RunTested.model_validate(result))
        except ray.exceptions.RayError as error:
            reason = last_line(error)
            raise RunError(f"The test images could not be classified: {reason}") from error

    def _write_labels(self) -> None:
        arrays = {"labels": np.asarray(self.prepared.test_split.labels, dtype=np.uint16)}
        if self.prepared.test_groups is not None:
            arrays["groups"] = np.asarray(self.prepared.test_groups)
        with atomic_write(self.folder.test_labels_path) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
