"""What decides in a confirmation: which runs there are, what is chosen, what may be tested.

The winner of a search is the luckiest of many. So the best trials of every cell, its candidates,
are trained with further seeds, which are the same in all cells: student initialisation and order
of the data are paired. The choice among them is by validation images. Only then, and once, is what
was chosen judged by the test images. A choice stands: later seeds are trained for it alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import SOUND, Cell, Event, cell_of
from kdtune.reports.tables.statistics import LEAST_SEEDS
from kdtune.runtime.console import say
from kdtune.runtime.seeds import derive_seed
from kdtune.tuning.scheduling.policy import Decisions
from kdtune.tuning.search.stopping import Stopping

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


def best_trials(trials: pd.DataFrame, top: int) -> Candidates:
    """The best sound trials of each cell, so many; cells of slow students first.

    So the last cell, at whose end slots are idle, is one of short runs.

    Args:
        trials: as `kdtune.reports.tables.log_tables.trials_table` makes it.
        top: at most so many in each cell.
    """
    spent = trials.groupby("model")[["device_seconds", "epochs"]].sum()
    slow = (spent["device_seconds"] / spent["epochs"]).to_dict()
    sound = trials[trials["state"].isin(SOUND)].dropna(subset="best_validation_accuracy")
    ranked = sound.sort_values("best_validation_accuracy", ascending=False, kind="stable")
    cells = ranked.groupby(["method", "model"], sort=False)["trial_id"]
    best = {(str(m), str(s)): list(ids.head(top)) for (m, s), ids in cells}
    return dict(sorted(best.items(), key=lambda cell: -slow[cell[0][1]]))
