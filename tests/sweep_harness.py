"""The machinery of a sweep on a log, driven by hand instead of by Ray."""

import json
from types import SimpleNamespace

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import EventLog
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.trainable import NODE_KEY

EPOCHS = 9


def sweep_config(**changes) -> SweepConfig:
    """A sweep of at and kd on the students A and B."""
    defaults = {
        "name": "n", "data": "d", "methods": "at,kd", "models": "A,B", "baselines": False,
        "trials": 6, "epochs": EPOCHS, "grace_period": 1, "reduction_factor": 3, "sampler": "tpe",
    }  # fmt: skip
    return SweepConfig.parse({**defaults, **changes})


SWEEP_OPENING = {
    "event": "sweep", "config": sweep_config().model_dump(mode="json"), "spaces": {}, "data": {},
    "views": {"prepared": []}, "environment": {},
}  # fmt: skip
"""The event that opens a sweep."""


class SweepHarness:
    """All that decides, as folds over a log; `clock` is what they take for the time."""

    def __init__(self, path, spaces=None, slots=None, **changes):
        self.clock = 0.0
        self.messages = []
        self.lost_nodes: set[str] = set()
        self.config = sweep_config(**changes)
        self.policy = SearchPolicy(
            self.config, spaces or load_spaces(), self.configure_trial, lambda: self.clock
        )
        self.studies, self.stopping = self.policy.studies, self.policy.stopping
        self.budget, self.active_trials = self.policy.budget, self.policy.active_trials
        with EventLog(path, self.policy.folds):
            pass  # opening it is what fills them

        def append(event):
            event = {**event, "time": self.clock, "session_seconds": self.clock}
            with open(path, "a") as log:
                log.write(json.dumps(event) + "\n")
            for fold in self.policy.folds:
                fold(event)

        self.append = append
        needs = dict.fromkeys(self.config.models, ResourceRequest(1))
        self.nodes = [Node("n", 1000)]
        self.slots = slots or Slots(needs, lambda: self.nodes)
        self.searcher = LogSearcher(self.policy, append, self.slots, self.messages.append)
        self.scheduler = LogScheduler(
            self.policy, append, self.slots, self.lost_nodes.__contains__
        )

    @staticmethod
    def configure_trial(cell, number, settings):
        return TrainConfig.parse({"method": cell[0], "model": cell[1], **settings})

    def suggest(self):
        """The next trial as Ray would hold it; None if there is none."""
        config = self.searcher.suggest("an id of Ray's")
        if config in (None, Searcher.FINISHED):
            return None
        trial = SimpleNamespace(config=config, get_error=lambda: None)
        self.scheduler.on_trial_result(
            None, trial, {NODE_KEY: config["allocation"]["node"], "pid": 7}
        )
        return trial

    def lose_node(self, node):
        """A node is lost, and another one is there; Ray knows of neither yet."""
        self.lost_nodes.add(node)
        self.nodes.append(Node(f"{node}+", 1000))

    def report(self, trial, epoch, accuracy, best=None, seconds=1.0):
        """Report an epoch; gives whether the trial goes on."""
        best = accuracy if best is None else best
        figures = {"epoch": epoch, "validation_accuracy": accuracy, "seconds": seconds}
        result = {**figures, "best_validation_accuracy": best, "pid": 7}
        decision = self.scheduler.on_trial_result(None, trial, result)
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
