"""Observations and start points from an earlier sweep."""

import dataclasses
from pathlib import Path

import pytest
from event_logs import DATA
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState as OptunaState
from sweep_harness import SWEEP_OPENING, SweepHarness, events_of

from kdtune.log.events import TeacherSummary, TrialEnded, TrialProposed
from kdtune.storage.array_cache import CacheProgress, CacheState
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.search.warm_start import make_warm_start_events
from kdtune.tuning.trials.results import CacheReported, TrialFailed

OPENING = SWEEP_OPENING.model_copy(
    update={"teacher": TeacherSummary(path="teacher.pth", sha256="def", model="T")}
)
OTHER_DATA = OPENING.model_copy(update={"data": DATA.model_copy(update={"fingerprint": "x"})})
OTHER_TEACHER = OPENING.model_copy(
    update={"teacher": OPENING.teacher.model_copy(update={"sha256": "x"})}
)
OTHER_METRIC = OPENING.model_copy(update={"config": {"metric": "balanced_accuracy"}})
SPACES = load_spaces()


def configure(cell, number, settings):
    config = SweepHarness.configure_trial(cell, number, settings)
    return config.model_copy(update={"teacher_model": "teacher.pth"})


@pytest.fixture
def old(tmp_path):
    """A sweep of at and kd on the student A."""
    machinery = SweepHarness(tmp_path / "log.jsonl", models="A")
    machinery.policy.configure_trial = configure
    machinery.append(OPENING)
    machinery.run()
    return str(tmp_path)


def learn(path, cell, opening=OPENING, spaces=SPACES, configure=configure):
    event, *_ = make_warm_start_events(path, spaces, [cell], opening, configure)
    return event


def test_where_nothing_differs_its_trials_are_observations(old, tmp_path_factory):
    event = learn(old, ("at", "A"))
    assert len(event.observations) == 6 and event.start == ()
    assert event.reason == f"6 observations of {old}: nothing differs"
    folder = tmp_path_factory.mktemp("new")
    new = SweepHarness(folder / "log.jsonl", models="A")
    new.append(event)
    before = new.studies.by_cell["at", "A"].trials
    past = SweepHarness(Path(old) / "log.jsonl", models="A").studies.by_cell["at", "A"].trials
    assert [(t.params, t.value, t.state) for t in before] == [
        (t.params, t.value, t.state) for t in past
    ]
    new.run()
    own = [e for e in events_of(folder, TrialProposed) if e.method == "at"]
    assert len(own) == 6  # besides those that were learned
    assert {e.origin for e in own} == {"sampler"}  # START was tried then
    assert not {str(e.params) for e in own} & {str(t.params) for t in past}
    again = SweepHarness(folder / "log.jsonl", models="A").studies.by_cell["at", "A"]
    lived = new.studies.by_cell["at", "A"].trials
    assert [t.params for t in again.trials] == [t.params for t in lived if t.user_attrs]


def test_diverged_trials_are_observations_and_those_without_an_epoch_are_not(tmp_path):
    limits = {"trials": 3, "time_budget": 9}
    machinery = SweepHarness(tmp_path / "log.jsonl", models="A", methods="at", **limits)
    machinery.policy.configure_trial = configure
    machinery.append(OPENING)
    for outcome in ("diverged", "crashed"):
        trial = machinery.suggest()
        machinery.report_result(trial, TrialFailed(failure=outcome, reason="so"))
    trial, machinery.clock = machinery.suggest(), 10
    progress = CacheProgress(content="pixels", label="it", state=CacheState.BUILT)
    machinery.report_result(trial, CacheReported(progress=progress))
    assert events_of(tmp_path, TrialEnded)[-1].state == "stopped"
    assert learn(str(tmp_path), ("at", "B")).start == ()
    [seen] = learn(str(tmp_path), ("at", "A")).observations
    assert seen.state == "diverged"
    new = SweepHarness(tmp_path / "new.jsonl", models="A")
    new.append(learn(str(tmp_path), ("at", "A")))
    [trial] = new.studies.by_cell["at", "A"].trials
    assert trial.state == OptunaState.COMPLETE and trial.value == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"opening": OTHER_DATA}, "its data differ"),
        ({"opening": OTHER_TEACHER}, "its teacher differs"),
        ({"opening": OTHER_METRIC}, "its metric differs"),
        (
            {"spaces": {**SPACES, "at": SPACES["at"].with_constants({"momentum": 0.5})}},
            "momentum 0.9 there, 0.5 here",
        ),
        (
            {"spaces": {**SPACES, "at": SPACES["at"].with_constants({"beta": 5.0})}},
            "space differs",
        ),
        (
            {"configure": lambda *a: configure(*a).model_copy(update={"epochs": 7})},
            "epochs 50 there, 7 here",
        ),
    ],
)
def test_where_something_differs_the_best_points_are_start_points(old, change, reason):
    event = learn(old, ("at", "A"), **change)
    assert event.observations == () and reason in event.reason
    trials = [e for e in events_of(old, TrialEnded) if e.method == "at"]
    best = max(trials, key=lambda e: e.best_validation_accuracy).trial_id
    [proposed] = [e for e in events_of(old, TrialProposed) if e.trial_id == best]
    first = {k: v for k, v in proposed.params.items() if k in event.start[0]}
    assert event.start[0] == first and len(event.start) == 3


def test_another_student_starts_with_the_methods_best_points(old, tmp_path_factory):
    event = learn(old, ("at", "B"))
    assert len(event.start) == 3 and "it has no trials of at-B" in event.reason
    new = SweepHarness(tmp_path_factory.mktemp("new") / "log.jsonl", models="B", methods="at")
    new.append(event)
    new.run()
    tried = [t.params for t in new.studies.by_cell["at", "B"].trials]
    assert [p for p in event.start if p not in SPACES["at"].start_points] == [
        p for p in tried[1:4] if p in event.start
    ]


def test_earlier_cells_that_are_no_observations_are_a_prior_for_all_cells(old, tmp_path_factory):
    """The earlier sweep has at-A and kd-A; at-A is observed in the same cell."""
    events = list(make_warm_start_events(old, SPACES, [("at", "A")], OPENING, configure))
    assert [event.kind for event in events] == ["warm_start", "earlier_cell"]
    assert events[1].cell == ("kd", "A") and len(events[1].observations) == 6
    assert events[1].reason == f"a prior for all cells, from 6 trials of {old}"
    elsewhere = list(make_warm_start_events(old, SPACES, [("at", "B")], OTHER_DATA, configure))
    assert [event.cell for event in elsewhere[1:]] == [("at", "A"), ("kd", "A")]
    folders = [tmp_path_factory.mktemp(name) for name in ("with", "without", "resumed")]
    limits = {"models": "B", "methods": "at", "sampler": "gp", "trials": 9}
    proposals = []
    for folder, priors in zip(folders, (elsewhere[1:], [], elsewhere[1:]), strict=True):
        machinery = SweepHarness(folder / "log.jsonl", **limits)
        for event in priors:
            machinery.append(event)
        if folder is folders[2]:  # another process reads the prior from the log
            machinery = SweepHarness(folder / "log.jsonl", **limits)
        machinery.run()
        proposals.append([e.params for e in events_of(folder, TrialProposed)])
    assert proposals[0] == proposals[2] != proposals[1]


def test_repeats_of_an_earlier_sweep_are_no_observations(old, tmp_path):
    events = events_of(old, TrialProposed) + events_of(old, TrialEnded)
    first = next(e for e in events if e.method == "at")
    machinery = SweepHarness(Path(old) / "log.jsonl", models="A", trials=7)
    machinery.append(
        first.model_copy(
            update={
                "trial_id": "at-A-006",
                "number": 6,
                "origin": "repeat",
                "candidate": first.trial_id,
            }
        )
    )
    assert len(learn(old, ("at", "A")).observations) == 6


def test_a_method_that_was_not_there_teaches_nothing(old):
    event = learn(old, ("fitnets", "A"))
    assert event.start == event.observations == ()
    assert event.reason.startswith("0 start points")


def test_points_outside_the_new_space_are_no_start_points(old, tmp_path):
    narrow = dataclasses.replace(
        SPACES["at"], distributions={"lr": FloatDistribution(0.5, 0.6)}, start_points=[]
    )
    assert learn(old, ("at", "A"), spaces={"at": narrow}).start == ()


def test_equal_strengths_are_no_difference_where_the_weights_are(tmp_path):
    spaces = {**SPACES, "at": SPACES["at"].with_constants({"alpha_strength": 0.2})}
    machinery = SweepHarness(tmp_path / "log.jsonl", spaces, models="A", methods="at")
    machinery.policy.configure_trial = configure
    machinery.policy.measure_scales = lambda cell, settings: {"alpha": 0.3, "beta": 0.007}
    machinery.append(OPENING)
    machinery.run()
    assert len(learn(str(tmp_path), ("at", "A"), spaces=spaces).observations) == 6
    spaces = {**SPACES, "at": SPACES["at"].with_constants({"alpha_strength": 0.4})}
    event = learn(str(tmp_path), ("at", "A"), spaces=spaces)
    assert "alpha_strength 0.2 there, 0.4 here" in event.reason
