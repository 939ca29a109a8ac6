"""The machinery of a sweep on a log, driven by hand instead of by Ray."""

from types import SimpleNamespace

from event_logs import OPENING_FIELDS, make_metrics
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.event_log import EventLog
from kdtune.log.events import SweepStarted
from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.scheduling.searcher import LogSearcher
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.results import EpochReported, ProcessStarted, to_ray

EPOCHS = 9


def sweep_config(**changes) -> SweepConfig:
    """Return the settings of a sweep of at and kd on the students A and B."""
    defaults = {
        "name": "n", "data": "d", "methods": "at,kd", "models": "A,B", "baselines": False,
        "trials": 6, "epochs": EPOCHS, "grace_period": 1, "reduction_factor": 3, "sampler": "tpe",
    }  # fmt: skip
    return SweepConfig.parse({**defaults, **changes})


SWEEP_OPENING = SweepStarted(
    config=sweep_config().model_dump(mode="json"), spaces={}, **OPENING_FIELDS
)
"""The event that opens a sweep."""


def events_of(folder, event_type):
    """Return the events of a type in the log of a folder."""
    return [e for e in SweepFolder(folder).load_events() if isinstance(e, event_type)]


class SweepHarness:
    """Policy, searcher and scheduler on a log; `clock` is the time that they see."""

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
            times = {"time": self.clock, "session_seconds": self.clock}
            event = event.model_copy(update=times)
            with open(path, "a") as log:
                log.write(event.model_dump_json() + "\n")
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
        """Return the next trial as Ray would hold it; None if there is none."""
        config = self.searcher.suggest("an id of Ray's")
        if config in (None, Searcher.FINISHED):
            return None
        trial = SimpleNamespace(config=config, error_file=None)
        self.report_result(trial, ProcessStarted(node_id=config["allocation"]["node"], pid=7))
        return trial

    def report_result(self, trial, result):
        """Report a result of the trial's process; return Ray's decision."""
        return self.scheduler.on_trial_result(None, trial, to_ray(result))

    def lose_node(self, node):
        """Lose a node and add another one; Ray knows of neither yet."""
        self.lost_nodes.add(node)
        self.nodes.append(Node(f"{node}+", 1000))

    def report(self, trial, epoch, accuracy, best=None, seconds=1.0):
        """Report an epoch; return True if the trial continues."""
        result = EpochReported(metrics=make_metrics(epoch, accuracy, best, seconds))
        return self.report_result(trial, result) == TrialScheduler.CONTINUE

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
