"""Confirm a search: its best trials trained again from scratch, with fresh seeds, then tested.

The winner of a search is the luckiest of many. So the best trials of every cell, its candidates,
are trained with further seeds, which are the same in all cells: student initialisation and order
of the data are paired. The choice among them is by validation images. Only then, and once, is what
was chosen judged by the test images. A choice stands: later seeds are trained for it alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import ray

from kdtune.config import SweepConfig, TrainConfig, duration
from kdtune.errors import DiskFullError, RunError, UserError
from kdtune.files import replacing
from kdtune.reports.statistics import LEAST_SEEDS, visible
from kdtune.reports.tables import SOUND, trials_table
from kdtune.results import Cell, Event, Log, SweepFolder, cell_of
from kdtune.run_files import say
from kdtune.seeds import derive_seed
from kdtune.tuning.check import check_confirmation, confirm_settings
from kdtune.tuning.decisions import Decisions
from kdtune.tuning.driver import Driver
from kdtune.tuning.interrupts import terminating
from kdtune.tuning.launch import find_slots, ray_session
from kdtune.tuning.outputs import write_outputs
from kdtune.tuning.placement import Slots
from kdtune.tuning.progress import Goal
from kdtune.tuning.screen import Screen
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.testing import measure, predict_test
from kdtune.tuning.trial_files import Networks
from kdtune.tuning.under_way import Trial

Candidates = dict[Cell, list[str]]
"""Trials of each cell that are trained again, the best first."""


class Confirmation(Decisions):
    """What decides in a confirmation.

    Args:
        sweep: complete settings.
        settings: complete settings of each trial of the search.
        clock: seconds, which nobody sets.
        say: as for `Decisions`.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        settings: Mapping[str, dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = say,
    ):
        whole = Stopping("none", sweep.epochs, sweep.grace_period, sweep.reduction_factor)
        super().__init__(sweep, whole, 1, clock, say)
        self.settings = settings
        self.candidates: Candidates = {}
        self.seeds = 0
        """Fresh seeds, from 1."""
        self.chosen: dict[Cell, str] = {}
        self.asked: dict[tuple[str, int], str] = {}
        """The run of each candidate and seed."""
        self.events: dict[str, Event] = {}
        """How each run was asked for."""
        self.ended: dict[str, Event] = {}
        """How each run ended."""
        self.tested: set[str] = set()

    @property
    def folds(self) -> list[Callable[[Event], None]]:
        """What takes every event of the log."""
        return [self.fold, *super().folds]

    def fold(self, event: Event) -> None:
        """Take an event of the log."""
        kind = event["event"]
        if kind == "confirm":
            self.seeds = max(self.seeds, event["seeds"])
            for run in [run for run, end in self.ended.items() if end["state"] == "crashed"]:
                self._again(run)  # what made it crash may have passed
            for candidate in event["candidates"]:
                self.candidates.setdefault(cell_of(candidate), []).append(candidate["trial_id"])
        elif kind == "asked":
            trial, seed = event["confirms"], event["number"]
            if event["trial_id"] != run_id(trial, seed) or trial not in self.settings:
                raise ValueError(f"there is no run {event['trial_id']}")
            self.asked[trial, seed] = event["trial_id"]
            self.events[event["trial_id"]] = event
        elif kind == "ended":
            self.ended[event["trial_id"]] = event
        elif kind == "chosen":
            self.chosen[cell_of(event)] = event["confirms"]
        elif kind == "tested":
            self.tested.add(event["trial_id"])
        elif kind == "lost":
            self._again(event["trial_id"])

    def _again(self, run: str) -> None:
        """Have a run that has ended run again."""
        del self.ended[run]
        self.asked = {key: name for key, name in self.asked.items() if name != run}

    def runs(self) -> Iterator[tuple[Cell, str, int]]:
        """All that is to be run: cell, trial, seed. A cell is complete before the next begins."""
        for cell, trials in self.candidates.items():
            chosen = self.chosen.get(cell)
            for seed in range(1, self.seeds + 1):
                for trial in trials:
                    if chosen in (None, trial):
                        yield cell, trial, seed

    def turns(self) -> list[Cell]:
        """The cells of which a run is left."""
        return list(
            dict.fromkeys(cell for cell, *run in self.runs() if tuple(run) not in self.asked)
        )

    def propose(self, cell: Cell) -> Event:
        """The next run of a cell."""
        trial, seed = next(
            (trial, seed)
            for of, trial, seed in self.runs()
            if of == cell and (trial, seed) not in self.asked
        )
        return {
            "event": "asked",
            "trial_id": run_id(trial, seed),
            "method": cell[0],
            "model": cell[1],
            "confirms": trial,
            "number": seed,
            "origin": "confirm",
            "parameters": {},
            "distributions": {},
            "config": self.configure(trial, seed).model_dump(),
        }

    @property
    def totals(self) -> dict[Cell, int]:
        """Runs of each cell, those of candidates that were not chosen among them."""
        runs = {(trial, seed): cell for cell, trial, seed in self.runs()}
        asked = {key: cell_of(self.events[run]) for key, run in self.asked.items()}
        return Counter((runs | asked).values())

    @property
    def total(self) -> int:
        """Runs of all cells."""
        return sum(self.totals.values())

    def configure(self, trial: str, seed: int) -> TrainConfig:
        """A trial's settings with a fresh seed, the same for all trials."""
        fresh = derive_seed(self.sweep.seed, "confirm", seed)
        return TrainConfig.check({**self.settings[trial], "seed": fresh})

    def spent(self, cell: Cell) -> str | None:
        """Nothing: the budget of a confirmation is the number of its runs."""
        return None

    @property
    def finished(self) -> bool:
        """Whether all has been run."""
        return not self.under_way.trials and not self.turns()

    def choose(self) -> list[Event]:
        """The choice in each cell that has none yet, and of which a run was sound.

        It is the candidate with the highest mean validation accuracy over its sound runs, the
        earliest of equals, among those of which no run diverged, if there are any, and then those
        with as many sound runs as a comparison needs.
        """
        events = []
        for cell, trials in self.candidates.items():
            ranked = []
            for trial in sorted(trials, key=lambda trial: int(trial.rpartition("-")[2])):
                ends = [self.ended[run] for (of, _), run in self.asked.items() if of == trial]
                sound = [e["best_validation_accuracy"] for e in ends if e["state"] == "finished"]
                if sound:
                    diverged = any(end["state"] == "diverged" for end in ends)
                    enough = len(sound) >= LEAST_SEEDS
                    ranked.append((not diverged, enough, fmean(sound), trial))
            if ranked and cell not in self.chosen:
                *_, best = max(ranked, key=lambda rank: rank[:-1])
                identity = {"method": cell[0], "model": cell[1]}
                events.append({"event": "chosen", **identity, "confirms": best})
        return events

    def wanted(self) -> list[str]:
        """Sound runs whose networks may be tested: all of a cell until one is chosen."""
        return [
            run
            for cell, trial, seed in self.runs()
            if (run := self.asked.get((trial, seed))) is not None
            and run not in self.tested
            and run in self.ended
            and self.ended[run]["state"] == "finished"
        ]

    def untested(self) -> list[tuple[Cell, str]]:
        """Sound runs of what was chosen for which the test images were not read yet."""
        return [
            (cell, run)
            for cell, trial in self.chosen.items()
            for (of, _), run in self.asked.items()
            if of == trial and self.ended[run]["state"] == "finished" and run not in self.tested
        ]


def run_id(trial_id: str, seed: int) -> str:
    """The name of a run.

    >>> run_id("at-ResNet18-017", 3)
    'at-ResNet18-017-seed3'
    """
    return f"{trial_id}-seed{seed}"


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
    folder, screen = SweepFolder(path), Screen(show)
    folder.opened()  # before anything is locked in a folder that is no sweep's
    with folder.held():
        _Confirm(folder, given or {}, screen).run()
    return folder


def best_trials(trials: pd.DataFrame, top: int) -> Candidates:
    """The best sound trials of each cell, so many; cells of slow students first.

    So the last cell, at whose end slots are idle, is one of short runs.

    Args:
        trials: as `kdtune.reports.tables.trials_table` makes it.
        top: at most so many in each cell.
    """
    spent = trials.groupby("model")[["device_seconds", "epochs"]].sum()
    slow = (spent["device_seconds"] / spent["epochs"]).to_dict()
    sound = trials[trials["state"].isin(SOUND)].dropna(subset="best_validation_accuracy")
    ranked = sound.sort_values("best_validation_accuracy", ascending=False, kind="stable")
    cells = ranked.groupby(["method", "model"], sort=False)["trial_id"]
    best = {(str(m), str(s)): list(ids.head(top)) for (m, s), ids in cells}
    return dict(sorted(best.items(), key=lambda cell: -slow[cell[0][1]]))


class _Confirm:
    """A confirmation from beginning to end."""

    def __init__(self, folder: SweepFolder, given: Mapping[str, Any], screen: Screen):
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
        for candidate in (c for event in before for c in event["candidates"]):
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
        command = f"kdtune confirm {folder.path}"
        self.networks = Networks(folder)
        self.driver = Driver(
            folder, folder.confirm_log, self.decisions, self.networks, "runs", command, screen
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
                    with ray_session(self.screen.show == "verbose"), terminating():
                        self._work(log, find_slots(self.sweep))
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
        for line in self._plan(slots):
            self.screen.say(line)
        self.checked.shared.prepare(self.screen.say)
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

    def _plan(self, slots: Slots) -> Iterator[str]:
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
                    text = f"{model} could not be measured: {_last_line(error)}"
                    self.screen.trouble(text)
                else:
                    log.append({"event": "measured", "model": model, **costs})

    def _test(self, log: Log, slots: Slots) -> None:
        """Read the test images, for what was chosen."""
        runs, labels = self.decisions.untested(), np.asarray(self.checked.test.labels)
        if not runs:
            return
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
                f"The test images could not be classified: {_last_line(error)}"
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
        return config.model_copy(
            update={"data_dir": self.sweep.data, "cache_gb": self.sweep.cache_gb}
        )


def _last_line(error: Exception) -> str:
    """What an error of Ray's comes down to."""
    return str(error).strip().splitlines()[-1]
