"""Confirm a search: its best trials trained again from scratch, with fresh seeds, then tested."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray

from kdtune.config.train import TrainConfig
from kdtune.errors import DiskFullError, RunError, UserError, last_line
from kdtune.log.events import Event, Log, cell_of
from kdtune.log.folder import SweepFolder
from kdtune.log.mirror import Mirror, mirrored
from kdtune.reports.tables.log_tables import trials_table
from kdtune.reports.tables.sentences import visible
from kdtune.runtime.signals import terminating
from kdtune.storage.files import replacing
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import find_slots, ray_session
from kdtune.tuning.display.progress import Goal
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Driver, stored
from kdtune.tuning.driver.outputs import write_outputs
from kdtune.tuning.driver.preflight import check_confirmation
from kdtune.tuning.driver.resume_rules import confirm_settings, named_again
from kdtune.tuning.planning.gpu_sharing import shared_slots
from kdtune.tuning.scheduling.confirm_policy import Candidates, Confirmation, best_trials
from kdtune.tuning.scheduling.trial_state import Trial
from kdtune.tuning.trials.best_networks import Networks
from kdtune.tuning.trials.held_out import measure, predict_test
from kdtune.tuning.trials.prepare import prepare
from kdtune.units import duration


def confirm_sweep(
    path: str | Path, given: Mapping[str, Any] | None = None, show: str = "live"
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
    folder, screen, given = SweepFolder(path), Screen(show), given or {}
    with (
        mirrored(folder, given.get("storage"), False, screen.trouble) as mirror,
        folder.held_again(),
    ):
        _Confirm(folder, given, screen, mirror).run()
    return folder


class _Confirm:
    """A confirmation from beginning to end."""

    def __init__(
        self,
        folder: SweepFolder,
        given: Mapping[str, Any],
        screen: Screen,
        mirror: Mirror | None,
    ):
        self.folder, self.screen, search = folder, screen, folder.events()
        if search[-1]["event"] != "complete":
            raise UserError(
                f"{folder.path} is not complete: first 'kdtune resume {folder.path}'; with a "
                "lower number of --trials it ends with what it has."
            )
        before = [event for event in folder.confirm_events() if event["event"] == "confirm"]
        self.earlier = folder.opened()[-1]
        self.sweep = confirm_settings(folder, given)
        if before and self.sweep.top != before[-1]["top"]:
            raise UserError(
                f"The candidates are the best {before[-1]['top']} of each cell, and stay so; "
                "--seeds can grow."
            )
        if before and self.sweep.seeds < before[-1]["seeds"]:
            raise UserError(f"There are {before[-1]['seeds']} seeds already; --seeds can grow.")
        self.trials = trials_table(search)
        known: Candidates = {}
        for event in before:
            for candidate in event["candidates"]:
                known.setdefault(cell_of(candidate), []).append(candidate["trial_id"])
        best = best_trials(self.trials, self.sweep.top)
        if not best:
            raise UserError(f"No trial of {folder.path} came to an end: nothing can be confirmed.")
        self.new = {cell: ids for cell, ids in best.items() if cell not in known}
        for cell, ids in known.items():
            if later := set(best.get(cell, ())) - set(ids):
                screen.trouble(
                    f"{'-'.join(cell)}: {', '.join(sorted(later))} came after the candidates were "
                    "taken, and is not confirmed; that takes a sweep of its own"
                )
        settings = {e["trial_id"]: e["config"] for e in search if e["event"] == "asked"}
        self.before = before[-1] if before else None
        self.decisions = Confirmation(self.sweep, settings, say=screen.trouble)
        command = f"kdtune confirm {folder.path}{named_again(self.sweep)}"
        self.networks = Networks(folder, stored(mirror))
        log = folder.confirm_log
        self.driver = Driver(
            folder, log, self.decisions, self.networks, "runs", command, screen, mirror
        )
        used = [trial for ids in (*known.values(), *self.new.values()) for trial in ids]
        if unknown := set(used) - settings.keys():
            raise UserError(f"{folder.confirm_log} is damaged: {unknown.pop()} was not searched.")
        self.checked = check_confirmation(
            self.sweep, self.earlier, self.before, [settings[trial] for trial in used]
        )

    def run(self) -> None:
        """Do what is left to be done."""
        decisions, opened = self.decisions, self.checked.opened
        opened |= {"top": self.sweep.top, "seeds": self.sweep.seeds}
        opened["candidates"] = [
            {"method": method, "model": model, "trial_id": trial}
            for (method, model), ids in self.new.items()
            for trial in ids
        ]
        with self.driver.open_log() as log:
            if self.before is not None:
                self.driver.found(log, self.before, opened)
            try:
                self.networks.begin()
                for run in decisions.wanted():
                    if not self.folder.network(run).is_file():
                        log.append(self._about(run, "lost"))
                if self._changed(opened) or self._left():
                    log.append(opened)  # has runs that crashed run again
                if self._left():
                    verbose, say = self.screen.show == "verbose", self.screen.trouble
                    with ray_session(self.sweep.address, verbose, say), terminating():
                        self._work(log, find_slots(self.sweep, say))
                else:
                    self.driver.tell()
                self._finish(log)
            except DiskFullError as error:
                raise RunError(f"{error} Make room, then: {self.driver.command}") from None
            except KeyboardInterrupt as error:
                if str(error):
                    raise
                raise type(error)(f"to go on: {self.driver.command}") from None

    def _changed(self, opened: Event) -> bool:
        """Whether something is asked for that the log does not know."""
        before = self.before
        if before is None or self.new:
            return True
        return any(opened[key] != before.get(key) for key in ("config", "groups"))

    def _left(self) -> bool:
        """Whether something is left to be done."""
        decisions = self.decisions
        crashed = any(end["state"] == "crashed" for end in decisions.ended.values())
        return bool(
            not decisions.finished or crashed or decisions.choose() or decisions.untested()
        )

    def _work(self, log: Log, slots: Slots) -> None:
        """Run, choose, test."""
        for line in self._describe(slots):
            self.screen.say(line)
        prepare(self.checked.shared, slots, self.screen.say)
        slots = self._share(slots)
        self._measure(log, slots)
        goal = Goal(self.decisions.totals)
        self.driver.run(log, slots, self.checked.shared.askers, goal)
        if self.decisions.interrupts.requested:
            self.decisions.interrupts.end(f"to go on: {self.driver.command}")
        for choice in self.decisions.choose():
            log.append(choice)
        self._test(log, slots)

    def _finish(self, log: Log) -> None:
        """Make all that follows.

        Raises:
            RunError: no run was sound.
        """
        self._write_labels()
        write_outputs(self.folder, self.driver.command)
        self.driver.check()
        if self.folder.confirm_events()[-1]["event"] != "complete":
            log.append({"event": "complete"})
        if not self.decisions.chosen:
            reason = next(iter(self.decisions.ended.values()))["reason"]
            raise RunError(
                f"No run of {self.folder.confirm_log} came to its end; the first says: {reason}"
            )

    def _about(self, run: str, kind: str, **about: Any) -> Event:
        """An event about a run."""
        return Trial(self.decisions.events[run]).event(kind, **about)

    def _describe(self, slots: Slots) -> Iterator[str]:
        """Say what is going to happen."""
        runs, images = self.decisions.total, len(self.checked.test)
        spent = self.trials[["device_seconds", "epochs"]].sum()
        seconds = spent["device_seconds"] / max(1, spent["epochs"]) * self.sweep.epochs
        left = runs - len(self.decisions.ended)
        yield (
            f"confirm: the best {self.sweep.top} of {len(self.decisions.candidates)} cells with "
            f"{self.decisions.seeds} fresh seeds of {self.sweep.epochs} epochs each; {left} of "
            f"{runs} runs are left, {slots.count} at once, about "
            f"{duration(left * seconds / slots.count)}"
        )
        for (method, model), ids in self.new.items():
            if len(ids) < self.sweep.top:
                yield f"{method}-{model} has no more than {len(ids)} sound trials"
        models = len({model for _, model in self.decisions.candidates})
        accuracy = self.trials["best_validation_accuracy"].max()
        yield visible(images, self.decisions.seeds, models, accuracy)

    def _share(self, slots: Slots) -> Slots:
        """Measure how many runs share a GPU best, if that is wanted."""
        askers = self.checked.shared.askers
        return shared_slots(self.sweep, slots, self._examples, askers, self.screen.say)

    def _examples(self) -> dict[str, TrainConfig]:
        """Settings of a run of each student."""
        return {
            model: self._here(self.decisions.configure(trials[0], 1))
            for (_, model), trials in self.decisions.candidates.items()
        }

    def _measure(self, log: Log, slots: Slots) -> None:
        """Find out what each student costs."""
        known = {e["model"] for e in self.folder.confirm_events() if e["event"] == "measured"}
        for (_, model), trials in self.decisions.candidates.items():
            if model not in known:
                known.add(model)
                config = self._here(self.decisions.configure(trials[0], 1))
                try:
                    costs = measure(config, len(self.checked.shared.views.data.classes), slots)
                except ray.exceptions.RayError as error:
                    text = f"{model} could not be measured: {last_line(error)}"
                    self.screen.trouble(text)
                else:
                    log.append({"event": "measured", "model": model, **costs})

    def _test(self, log: Log, slots: Slots) -> None:
        """Read the test images, for what was chosen."""
        runs, labels = self.decisions.untested(), np.asarray(self.checked.test.labels)
        if not runs:
            return
        self.driver.check()
        self._write_labels()
        paths = [self.folder.network(run) for _, run in runs]
        configs = [
            self._here(self.decisions.configure(self.decisions.chosen[cell], 1))
            for cell, _ in runs
        ]
        self.screen.say(
            f"reading {len(labels):,} test images with {len(runs)} networks of what was chosen"
        )
        try:
            found = predict_test(list(zip(paths, configs, strict=True)), slots)
            for (_, run), predicted in zip(runs, found, strict=True):
                with replacing(self.folder.predictions(run)) as temporary:
                    np.savez_compressed(temporary, predicted=predicted.astype(np.uint16))
                tested = {
                    "test_accuracy": float((predicted == labels).mean()),
                    "test_images": len(labels),
                }
                log.append(self._about(run, "tested", **tested))
        except ray.exceptions.RayError as error:
            raise RunError(
                f"The test images could not be classified: {last_line(error)}"
            ) from error

    def _write_labels(self) -> None:
        """Keep what is right for each test image, and which belong together."""
        arrays = {"labels": np.asarray(self.checked.test.labels, dtype=np.uint16)}
        if self.checked.groups is not None:
            arrays["groups"] = np.asarray(self.checked.groups)
        with replacing(self.folder.test_labels) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)

    def _here(self, config: TrainConfig) -> TrainConfig:
        """A run's settings with the places of now."""
        places = {**self.sweep.source._asdict(), "cache_gb": self.sweep.cache_gb}
        return config.model_copy(update=places)
