"""Events of small sweeps for tests of tables and pages, and builders for them."""

import numpy as np
from event_logs import DATA, OPENING_FIELDS, cell_modelled, make_metrics

from kdtune.log.events import (
    CandidateChosen,
    EpochFinished,
    RestartCause,
    RunTested,
    StudentProfiled,
    SweepStarted,
    TrialEnded,
    TrialProposed,
    TrialRestarted,
    TrialState,
)
from kdtune.reports.tables.leaderboard import build_sweep_tables

IMAGES = 400
LR_DISTRIBUTION = {
    "name": "FloatDistribution",
    "attributes": {"step": None, "low": 1e-3, "high": 10.0, "log": True},
}
CONDITIONS = {"data": "f", "teacher": None, "image size": 32, "epochs": 5}
"""Conditions of a sweep, as `comparison_conditions` returns them."""


def sweep_started(config=None, spaces=None, **data):
    """Return the event that opens a sweep; `data` replaces fields of its `DataSummary`."""
    opening = {**OPENING_FIELDS, "data": DATA.model_copy(update=data)}
    return SweepStarted(config=config or {}, spaces=spaces or {}, **opening)


def _identity(trial_id):
    """Return id, method and model, which are the first parts of the id."""
    method, model, *_ = trial_id.split("-")
    return {"trial_id": trial_id, "method": method, "model": model}


def proposed(trial_id, number=0, **params):
    distributions = {"lr": LR_DISTRIBUTION} if "lr" in params else {}
    identity = _identity(trial_id)
    return TrialProposed(
        **identity,
        number=number,
        origin="sampler",
        params=params,
        distributions=distributions,
        config={"method": identity["method"], "model": identity["model"], **params},
    )


def repeated(trial_id, number, candidate, **params):
    """Return the proposal of a repeat; see `proposed`."""
    update = {"origin": "repeat", "candidate": candidate}
    return proposed(trial_id, number, **params).model_copy(update=update)


def epoch(trial_id, number, accuracy, seconds=2.0, best=None):
    """Return an epoch of a trial; see `event_logs.make_metrics`."""
    metrics = make_metrics(number, accuracy, best, seconds)
    return EpochFinished(**_identity(trial_id), **metrics.model_dump())


def ended(trial_id, state, reason="because"):
    return TrialEnded(
        **_identity(trial_id),
        state=TrialState(state),
        reason=reason,
        epochs=1,
        best_validation_accuracy=None,
    )


def restarted(trial_id):
    cause = RestartCause.PROCESS_DIED
    return TrialRestarted(**_identity(trial_id), cause=cause, reason="because")


def confirm_run(trial_id, seed, scores, state="finished"):
    """Yield the events of a confirm run."""
    run = f"{trial_id}-seed{seed}"
    yield proposed(run, seed).model_copy(update={"origin": "confirm", "candidate": trial_id})
    for number, score in enumerate(scores, start=1):
        yield epoch(run, number, score, best=max(scores[:number]))
    if state is not None:
        yield ended(run, state)


def chosen(trial_id):
    method, model, _ = trial_id.split("-")
    return CandidateChosen(method=method, model=model, candidate=trial_id)


def run_tested(run_id, accuracy):
    return RunTested(**_identity(run_id), test_accuracy=accuracy, test_images=8)


STARTED = sweep_started()
PROFILE = StudentProfiled(model="A", parameters=7, macs=9, latency_ms=1.5, latency_device="cpu")
EVENTS = [
    STARTED,
    proposed("at-A-000", 0, lr=0.1, beta=10.0),
    proposed("kd-A-000", 0, lr=0.2),
    epoch("at-A-000", 1, 0.5),
    epoch("kd-A-000", 1, 0.25),
    ended("kd-A-000", "stopped"),
    epoch("at-A-000", 2, 0.75),
    epoch("at-A-000", 3, 0.75),
    epoch("at-A-000", 4, 0.625, best=0.75),
    ended("at-A-000", "finished"),
    proposed("kd-A-001", 1, lr=0.3),
    epoch("kd-A-001", 1, 0.5, seconds=3.0),
    ended("kd-A-001", "diverged"),
    proposed("kd-A-002", 2, lr=0.4),
    epoch("kd-A-002", 1, 0.5),
    proposed("kd-A-003", 3, lr=0.7),
    epoch("kd-A-003", 1, 0.25),
    ended("kd-A-003", "finished"),
    proposed("at-B-000", 0, lr=0.5, beta=1.0),
    ended("at-B-000", "crashed"),
]
CONFIRM_EVENTS = [
    PROFILE,
    *confirm_run("at-A-000", 1, [0.5, 0.75, 0.625]),
    *confirm_run("at-A-000", 2, [0.5], "diverged"),
    *confirm_run("at-A-001", 1, [], "crashed"),
    *confirm_run("at-A-001", 2, [0.25], None),
    chosen("at-A-000"),
    run_tested("at-A-000-seed1", 0.875),
]


class Sweep:
    """Events of a sweep that is made cell by cell.

    Attributes:
        events, confirm_events: the logs of search and confirmation.
        correct: by run, which test images it classified correctly, bool [400].
    """

    def __init__(self):
        self.events, self.confirm_events, self.image_scores = [STARTED], [], {}

    def search(self, method, model, *scores):
        """Add trials of one epoch; each with its score, or the state in which it failed."""
        for number, score in enumerate(scores):
            trial = f"{method}-{model}-{number:03d}"
            self.events.append(proposed(trial, number, lr=0.1 * (number + 1)))
            if isinstance(score, str):
                self.events += [epoch(trial, 1, 0.99), ended(trial, score)]
            else:
                self.events += [epoch(trial, 1, score), ended(trial, "finished")]
        return self

    def repeat(self, method, model, candidate, *scores, state="finished"):
        """Add repeats of a trial of one epoch, each with its score."""
        for score in scores:
            number = sum(isinstance(event, TrialProposed) for event in self.events)
            trial = f"{method}-{model}-{number:03d}"
            first = f"{method}-{model}-{candidate:03d}"
            self.events.append(repeated(trial, number, first, lr=0.1 * (candidate + 1)))
            self.events += [epoch(trial, 1, score), ended(trial, state)]
        return self

    def model(self, method, model, noise_sd=0.01, changes=None, **means):
        """Add the model of a cell.

        Args:
            method, model: the cell.
            noise_sd: over seeds.
            changes: other fields of the event.
            means: those of trials ``t<number>``, the best first.
        """
        estimates = {f"{method}-{model}-{int(t[1:]):03d}": mean for t, mean in means.items()}
        self.events.append(cell_modelled(estimates, noise_sd, method, model, **(changes or {})))
        return self

    def confirm(self, method, model, number, accuracies, validation=0.75, choose=True):
        """Add runs of a trial; each with its test accuracy, or the state in which it failed."""
        trial = f"{method}-{model}-{number:03d}"
        for seed, accuracy in enumerate(accuracies, start=1):
            run, failed = f"{trial}-seed{seed}", isinstance(accuracy, str)
            state = accuracy if failed else "finished"
            self.confirm_events += confirm_run(trial, seed, [validation], state)
            if choose and not failed:
                self.confirm_events.append(run_tested(run, accuracy))
                self.image_scores[run] = classified(accuracy, seed)
        if choose:
            self.confirm_events.append(chosen(trial))
        return self

    @property
    def tables(self):
        return build_sweep_tables(self.events, self.confirm_events, self.image_scores)

    @property
    def leaderboard(self):
        return self.tables.leaderboard.set_index(["method", "model"])


def classified(accuracy, seed):
    """Return which images are classified correctly; the same images are hard for all."""
    correct = np.arange(IMAGES) < round(accuracy * IMAGES)
    correct[np.random.default_rng(seed).integers(0, 4, 1)] ^= True
    return correct


def four_cells():
    """AT is better than FitNets on A; on B they do equally well."""
    sweep = Sweep()
    for method, on_a in (("at", 0.9), ("fitnets", 0.7), ("student", 0.6)):
        for model, accuracy, validation in (("A", on_a, 0.75), ("B", 0.7, 0.74)):
            sweep.search(method, model, 0.7, 0.7)
            sweep.confirm(method, model, 0, [accuracy] * 3, validation)
    return sweep


def one_method():
    return Sweep().search("at", "A", 0.7).confirm("at", "A", 0, [0.7, 0.8, 0.75])


def one_model():
    sweep = Sweep()
    for method, accuracy in (("at", 0.9), ("fitnets", 0.7), ("student", 0.6)):
        sweep.search(method, "A", 0.7).confirm(method, "A", 0, [accuracy] * 5)
    return sweep


def half_confirmed():
    sweep = four_cells().search("kd", "A", 0.6).search("kd", "B", 0.6)
    return sweep.confirm("kd", "A", 0, [0.7], choose=False)


def diverged_seed():
    sweep = one_method().search("student", "A", 0.6)
    return sweep.confirm("student", "A", 0, [0.6, 0.6, 0.6, "diverged"])
