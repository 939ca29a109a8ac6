"""The machinery of a sweep on a log, driven by hand instead of by Ray."""

import json
from types import SimpleNamespace

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from kdtune.config import SweepConfig, TrainConfig
from kdtune.results import Log
from kdtune.tuning.budget import Budget
from kdtune.tuning.schedule import Schedule
from kdtune.tuning.search import Search
from kdtune.tuning.space import load_spaces
from kdtune.tuning.stopping import Stopping
from kdtune.tuning.studies import Studies

EPOCHS = 9


def sweep_config(**given) -> SweepConfig:
    """A sweep of at and kd on the students A and B."""
    defaults = {
        "name": "n", "data": "d", "methods": "at,kd", "models": "A,B", "baselines": False,
        "trials": 6, "epochs": EPOCHS, "grace_period": 1, "reduction_factor": 3, "sampler": "tpe",
    }  # fmt: skip
    return SweepConfig.check({**defaults, **given})


class Machinery:
    """Studies, rule and budget as folds over a log; `clock` is what they take for the time."""

    def __init__(self, path, spaces=None, **given):
        self.clock = 0.0
        self.config = sweep_config(**given)
        self.studies = Studies(self.config, spaces or load_spaces())
        self.stopping = Stopping(
            self.config.scheduler, EPOCHS, self.config.grace_period, self.config.reduction_factor
        )
        self.budget = Budget(self.config, lambda: self.clock)
        folds = [self.studies.fold, self.stopping.fold, self.budget.fold]
        with Log(path, folds):
            pass  # opening it is what fills them

        def append(event):
            event = {**event, "time": self.clock}
            with open(path, "a") as log:
                log.write(json.dumps(event) + "\n")
            for fold in folds:
                fold(event)

        self.append = append
        self.search = Search(self.studies, self.budget, self.configure, append)
        self.schedule = Schedule(EPOCHS, self.stopping, self.budget, append)

    @staticmethod
    def configure(cell, number, settings):
        return TrainConfig.check({"method": cell[0], "model": cell[1], **settings})

    def suggest(self):
        """The next trial as Ray would hold it; None if there is none."""
        config = self.search.suggest("an id of Ray's")
        return None if config == Searcher.FINISHED else SimpleNamespace(config=config)

    def report(self, trial, epoch, accuracy, best=None, seconds=1.0):
        """Report an epoch; gives whether the trial goes on."""
        best = accuracy if best is None else best
        figures = {"epoch": epoch, "validation_accuracy": accuracy, "seconds": seconds}
        result = {**figures, "best_validation_accuracy": best, "pid": 7}
        decision = self.schedule.on_trial_result(None, trial, result)
        return decision == TrialScheduler.CONTINUE

    def train(self, trial, curve):
        """Train a trial to its end."""
        best = 0.0
        for epoch, accuracy in enumerate(curve, start=1):
            best = max(best, accuracy)
            if not self.report(trial, epoch, accuracy, best):
                return

    def run(self):
        """Train trial after trial until there is none, on curves that are best at lr 0.03."""
        while trial := self.suggest():
            top = 1 / (1 + abs(trial.config["config"]["lr"] - 0.03) * 10)
            self.train(trial, [top * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)])
