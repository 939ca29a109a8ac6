"""Events of small sweeps, and logs with them."""

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import (
    CachePlan,
    CellModelled,
    DataSummary,
    EpochFinished,
    EpochMetrics,
    SpaceRecord,
    SweepStarted,
    TrialEnded,
    TrialEstimate,
    TrialProposed,
)
from kdtune.log.folder import SweepFolder

LR_DISTRIBUTION = {
    "name": "FloatDistribution",
    "attributes": {"step": None, "low": 1e-3, "high": 1.0, "log": True},
}
CHOICE_DISTRIBUTION = {"name": "CategoricalDistribution", "attributes": {"choices": [0, 2]}}

DATA = DataSummary(
    classes=("x", "y"), train_images=50, validation_images=2_000, test_images=400,
    fingerprint="f", test_fingerprint="g",
)  # fmt: skip

OPENING_FIELDS = {
    "data": DATA,
    "teacher": None,
    "environment": {},
    "cache": CachePlan(methods=(), augment_views=0, num_bytes=0),
}
"""Fields of the event that opens a log, but for its settings and spaces."""


def make_space(**distributions):
    """Return the record of a search space with these distributions."""
    return SpaceRecord(
        path="space.py", function=False, distributions=distributions, constants={}, start=()
    )


def sweep_opening(**config):
    """Return the event that opens a sweep of at and student on the student A."""
    defaults = {
        "name": "s", "data": "d", "methods": ["at", "student"], "models": ["A"],
        "baselines": False, "epochs": 3, "settings": {"batch_size": 64},
    }  # fmt: skip
    sweep = SweepConfig.parse({**defaults, **config})
    spaces = dict.fromkeys(sweep.methods, make_space(lr=LR_DISTRIBUTION))
    return SweepStarted(config=sweep.model_dump(mode="json"), spaces=spaces, **OPENING_FIELDS)


def make_metrics(epoch, accuracy, best=None, seconds=1.5, **changes):
    """Return the metrics of an epoch; without `best` it is the best so far."""
    values = {
        "epoch": epoch, "lr": 0.1, "train_loss": 0.0, "train_accuracy": accuracy,
        "validation_loss": 0.0, "validation_accuracy": accuracy,
        "best_validation_accuracy": accuracy if best is None else best, "losses": {},
        "seconds": seconds, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return EpochMetrics(**{**values, **changes})


def make_trial_config(method, model, **settings):
    """Return the complete settings of a trial, as an event holds them."""
    return TrainConfig.parse({"method": method, "model": model, **settings}).model_dump()


def trial_events(number, accuracies, state=None, method="at", **extra_params):
    """Yield the events of a trial, to its end if that has a state.

    Args:
        number: in its cell.
        accuracies: of its epochs.
        state: how it ended; None if it did not.
        method: its method.
        extra_params: values besides that of lr.
    """
    identity = {"trial_id": f"{method}-A-{number:03d}", "method": method, "model": "A"}
    params = {"lr": 0.1 * (number + 1), **extra_params}
    yield TrialProposed(
        **identity, number=number, origin="start", params=params,
        distributions={"lr": LR_DISTRIBUTION, **dict.fromkeys(extra_params, CHOICE_DISTRIBUTION)},
        config=make_trial_config(method, "A", batch_size=64, **params),
    )  # fmt: skip
    for epoch, accuracy in enumerate(accuracies, start=1):
        metrics = make_metrics(epoch, accuracy, max(accuracies[:epoch]))
        yield EpochFinished(**identity, **dict(metrics))
    if state is not None:
        best = max(accuracies, default=None)
        yield TrialEnded(
            **identity, state=state, reason=f"it was {state}", epochs=len(accuracies),
            best_validation_accuracy=best,
        )  # fmt: skip


def repeat_events(number, candidate, accuracies, state=None):
    """Yield the events of a repeat of a trial of at; see `trial_events`.

    Args:
        number: in its cell.
        candidate: number of the trial whose settings it has.
        accuracies: of its epochs.
        state: how it ended; None if it did not.
    """
    first, *_ = trial_events(candidate, [])
    proposed, *others = trial_events(number, accuracies, state)
    yield proposed.model_copy(
        update={
            "origin": "repeat",
            "candidate": first.trial_id,
            "params": first.params,
            "config": {**first.config, "seed": number},
        }
    )
    yield from others


def cell_modelled(estimates, noise_sd=0.01, method="at", model="A", **changes):
    """Return the event with the model of a cell.

    Args:
        estimates: the accuracies that it expects, by trial, the best first.
        noise_sd: over seeds.
        method: of the cell.
        model: of the cell.
        changes: other fields of the event.
    """
    means = [TrialEstimate(trial_id=t, mean=mean, sd=0.005) for t, mean in estimates.items()]
    fields = {"left_to_gain": 0.02, "search_luck": 0.01, "noise_sd": noise_sd, **changes}
    return CellModelled(method=method, model=model, estimates=tuple(means), **fields)


def add_times(events, first=0, step=60):
    """Yield the events with their times, `step` seconds apart."""
    for number, event in enumerate(events, start=first):
        times = {"time": 1.7e9 + step * number, "session_seconds": step * number}
        yield event.model_copy(update=times)


def write_events(path, events):
    """Write the events to a log, with the times that they have."""
    path.write_text("".join(event.model_dump_json() + "\n" for event in events))


def write_log(path, events):
    """Write a sweep's folder with such a log."""
    path.mkdir(parents=True)
    folder = SweepFolder(path)
    write_events(folder.log_path, add_times(events))
    return folder
