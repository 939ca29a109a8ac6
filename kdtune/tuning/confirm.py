"""Confirm a search: its best trials trained again from scratch, with fresh seeds, then tested.

The winner of a search is the luckiest of many. So the best trials of every cell, its candidates,
are trained with further seeds, which are the same in all cells: student initialisation and order
of the data are paired. The choice among them is by validation images. Only then, and once, are
the test images read, for what was chosen. A choice stands: later seeds are trained for it alone.
"""

import time
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
from kdtune.reports.statistics import visible
from kdtune.reports.tables import SOUND, trials_table
from kdtune.results import Cell, Event, Log, SweepFolder, cell_of
from kdtune.run_files import say
from kdtune.seeds import derive_seed
from kdtune.tuning.check import check_confirmation, confirm_settings
from kdtune.tuning.decisions import Decisions
from kdtune.tuning.driver import Driver
from kdtune.tuning.launch import Slots, find_slots, ray_session
from kdtune.tuning.outputs import write_outputs
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.testing import measure, predict_test
from kdtune.tuning.trial_files import Networks

Candidates = dict[Cell, list[str]]
"""Trials of each cell that are trained again, the best first."""


class Confirmation(Decisions):
    """What decides in a confirmation.

    Args:
        sweep: complete settings.
        settings: complete settings of each trial of the search.
        clock: seconds, which nobody sets.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        settings: Mapping[str, dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ):
        whole = Stopping("none", sweep.epochs, sweep.grace_period, sweep.reduction_factor)
        super().__init__(sweep, whole, 1, clock)
        self.settings = settings
        self.candidates: Candidates = {}
        self.seeds = 0
        """Fresh seeds, from 1."""
        self.chosen: dict[Cell, str] = {}
        self.asked: dict[tuple[str, int], str] = {}
        """The run of each candidate and seed."""
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
            for candidate in event["candidates"]:
                self.candidates.setdefault(cell_of(candidate), []).append(candidate["trial_id"])
        elif kind == "asked":
            trial, seed = event["confirms"], event["number"]
            if event["trial_id"] != run_id(trial, seed) or trial not in self.settings:
                raise ValueError(f"there is no run {event['trial_id']}")
            self.asked[trial, seed] = event["trial_id"]
        elif kind == "ended":
            self.ended[event["trial_id"]] = event
        elif kind == "chosen":
            self.chosen[cell_of(event)] = event["confirms"]
        elif kind == "tested":
            self.tested.add(event["trial_id"])

    def runs(self) -> Iterator[tuple[Cell, str, int]]:
        """All that is to be run: cell, trial, seed. A cell is complete before the next begins."""
        for cell, trials in self.candidates.items():
            chosen = self.chosen.get(cell)
            for seed in range(1, self.seeds + 1):
                for trial in trials:
                    if chosen in (None, trial):
                        yield cell, trial, seed

    def propose(self) -> Event | None:
        """The next run."""
        for (method, model), trial, seed in self.runs():
            if (trial, seed) not in self.asked:
                return {
                    "event": "asked",
                    "trial_id": run_id(trial, seed),
                    "method": method,
                    "model": model,
                    "confirms": trial,
                    "number": seed,
                    "origin": "confirm",
                    "parameters": {},
                    "distributions": {},
                    "config": self.configure(trial, seed).model_dump(),
                }
        return None

    @property
    def total(self) -> int:
        """Runs, those of candidates that were not chosen among them."""
        return len({*self.asked, *((trial, seed) for _, trial, seed in self.runs())})

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
        return not self.under_way.trials and self.propose() is None

    def choose(self) -> list[Event]:
        """The choice in each cell that has none yet, and of which a run was sound.

        It is the candidate with the highest mean validation accuracy over its sound runs, among
        those of which no run diverged, if there are any; the earliest trial of equals.
        """
        events = []
        for cell, trials in self.candidates.items():
            ranked = []
            for trial in sorted(trials):
                ends = [self.ended[run] for (of, _), run in self.asked.items() if of == trial]
                sound = [e["best_validation_accuracy"] for e in ends if e["state"] == "finished"]
                if sound:
                    diverged = any(end["state"] == "diverged" for end in ends)
                    ranked.append((not diverged, fmean(sound), trial))
            if ranked and cell not in self.chosen:
                best = max(ranked, key=lambda rank: rank[:2])
                identity = {"method": cell[0], "model": cell[1]}
                events.append({"event": "chosen", **identity, "confirms": best[2]})
        return events

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


def confirm_sweep(path: str | Path, given: Mapping[str, Any] | None = None) -> SweepFolder:
    """Train the best trials of every cell again with fresh seeds, choose, and test once.

    What was interrupted goes on. A further call with more seeds, or after the sweep got new cells,
    adds what is missing.

    Args:
        path: the sweep's folder; its search must be complete.
        given: settings of `SweepConfig`: ``top`` and ``seeds``, where things are, and what a run
            gets.

    Returns:
        The sweep's folder.

    Raises:
        UserError: this is no complete sweep, another process runs it, or what it needs is not
            there any more or not what it was.
        RunError, KeyboardInterrupt: as `kdtune.tuning.sweep.run_sweep`.
    """
    folder = SweepFolder(path)
    folder.opened()  # before anything is locked in a folder that is no sweep's
    with folder.held():
        _Confirm(folder, given or {}).run()
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

    def __init__(self, folder: SweepFolder, given: Mapping[str, Any]):
        self.folder, search = folder, folder.events()
        if search[-1]["event"] != "complete":
            raise UserError(
                f"{folder.path} is not complete: first 'kdtune resume {folder.path}'; with a "
                "lower number of --trials it ends with what it has."
            )
        before = [event for event in folder.confirm_events() if event["event"] == "confirm"]
        self.earlier = folder.opened()[-1]
        self.sweep = confirm_settings(self.earlier, before, given)
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
                say(
                    f"{'-'.join(cell)}: {', '.join(sorted(later))} came after the candidates were "
                    "taken, and is not confirmed; that takes a sweep of its own"
                )
        settings = {e["trial_id"]: e["config"] for e in search if e["event"] == "asked"}
        self.before = before[-1] if before else None
        self.decisions = Confirmation(self.sweep, settings)
        command = f"kdtune confirm {folder.path}"
        networks = Networks(folder)
        self.driver = Driver(folder, folder.confirm_log, self.decisions, networks, command)
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
                for line in self.driver.found(log, self.before, opened):
                    say(line)
            grows = bool(self.new) or self.sweep.seeds > decisions.seeds
            if not (grows or self.left):
                self._finish(log, opened)
                return
            with ray_session():
                slots = find_slots(self.sweep)
                opened["views"]["prepared"] = self.checked.shared.prepare()
                log.append(opened)
                for line in self._plan(slots):
                    say(line)
                try:
                    self._measure(log, slots)
                    self.driver.run(log, slots, self.checked.shared.askers, decisions.total)
                    for choice in decisions.choose():
                        log.append(choice)
                    self._test(log, slots)
                except DiskFullError as error:
                    raise RunError(f"{error} Make room, then: {self.driver.command}") from None
                except KeyboardInterrupt as error:
                    if str(error):
                        raise
                    raise KeyboardInterrupt(f"to go on: {self.driver.command}") from None
            self._finish(log, opened)

    def _finish(self, log: Log, opened: Event) -> None:
        """Make all that follows, also where only what matters to the user has changed."""
        events = self.folder.confirm_events()
        latest = [event for event in events if event["event"] == "confirm"][-1]["config"]
        if latest["min_difference"] != self.sweep.min_difference:
            log.append(opened)
        if self.folder.confirm_events()[-1]["event"] != "complete":
            log.append({"event": "complete"})
        write_outputs(self.folder)

    @property
    def left(self) -> bool:
        """Whether something is left to be done of what was begun."""
        decisions = self.decisions
        return not decisions.finished or bool(decisions.choose() or decisions.untested())

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
                costs = measure(config, len(self.checked.shared.views.data.classes), slots)
                log.append({"event": "measured", "model": model, **costs})

    def _test(self, log: Log, slots: Slots) -> None:
        """Read the test images, for what was chosen."""
        runs = self.decisions.untested()
        labels = np.asarray(self.checked.test.labels, dtype=np.uint16)
        arrays = {"labels": labels}
        if self.checked.groups is not None:
            arrays["groups"] = np.asarray(self.checked.groups)
        with replacing(self.folder.test_labels) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        paths = [self.folder.network(run) for _, run in runs]
        configs = [
            self._here(self.decisions.configure(self.decisions.chosen[cell], 1))
            for cell, _ in runs
        ]
        say(f"reading {len(labels):,} test images with {len(runs)} networks of what was chosen")
        try:
            found = predict_test(list(zip(paths, configs, strict=True)), slots)
            for ((method, model), run), predicted in zip(runs, found, strict=True):
                with replacing(self.folder.predictions(run)) as temporary:
                    np.savez_compressed(temporary, predicted=predicted.astype(np.uint16))
                tested = {
                    "test_accuracy": float((predicted == labels).mean()),
                    "test_images": len(labels),
                }
                log.append(
                    {
                        "event": "tested",
                        "trial_id": run,
                        "method": method,
                        "model": model,
                        **tested,
                    }
                )
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(f"The test images could not be classified: {reason}") from error

    def _here(self, config: TrainConfig) -> TrainConfig:
        """A run's settings with the places of now."""
        return config.model_copy(
            update={"data_dir": self.sweep.data, "cache_gb": self.sweep.cache_gb}
        )
