"""Studies as folds over the log, without Ray's loop."""

from collections import Counter

import pytest
from event_logs import make_metrics
from optuna.trial import TrialState as OptunaState
from space_files import write_space
from sweep_harness import SweepHarness, events_of, sweep_config

from kdtune.errors import UserError
from kdtune.log.event_log import EventLog
from kdtune.log.events import EpochFinished, SpaceExhausted, TrialEnded, TrialProposed
from kdtune.tuning.search.samplers import GRID_SAMPLER, STATEFUL_SAMPLERS, STATELESS_SAMPLERS
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.search.studies import CellStudies
from kdtune.tuning.trials.results import TrialFailed

SAMPLERS = [*STATELESS_SAMPLERS, *STATEFUL_SAMPLERS, "optuna.samplers.NSGAIISampler"]

FINITE = "{'lr': tune.choice([0.1, 0.2, 0.3]), 'temperature': tune.quniform(1, 9, 1)}"


def make_harness(path, **changes):
    """Return a harness; the grid gets spaces whose points can be listed."""
    spaces = load_spaces()
    if changes.get("sampler") == GRID_SAMPLER:
        for method in ("at", "kd"):
            text = f"METHOD='{method}'; SPACE={FINITE}; START=[]"
            spaces[method] = write_space(path.parent, text)
    return SweepHarness(path, spaces, **changes)


def snapshot(machinery):
    return {
        cell: [
            (t.state, t.params, t.value, t.user_attrs) for t in study.get_trials() if t.user_attrs
        ]
        for cell, study in machinery.studies.by_cell.items()
    }  # without proposals that were not taken


@pytest.fixture
def finished(tmp_path):
    machinery = SweepHarness(tmp_path / "log.jsonl")
    machinery.run()
    return machinery


def proposals(folder):
    return events_of(folder, TrialProposed)


def test_start_points_come_first(finished, tmp_path):
    for (method, _), study in finished.studies.by_cell.items():
        start = load_spaces()[method].start_points
        assert [t.params for t in study.trials[: len(start)]] == start
    origins = Counter((e.number < 1, e.origin) for e in proposals(tmp_path))
    assert set(origins) == {(True, "start"), (False, "sampler")}


def test_a_sampler_gets_the_accuracy_that_a_trial_would_have_reached():
    studies = CellStudies(sweep_config(methods="at", models="A"), load_spaces())

    def told(state, *bests):
        trial_id = f"at-{len(studies.by_cell['at', 'A'].trials)}"
        identity = {"method": "at", "model": "A", "trial_id": trial_id}
        studies.propose(("at", "A"), trial_id)
        for epoch, best in enumerate(bests, start=1):
            studies.fold(EpochFinished(**identity, **dict(make_metrics(epoch, best))))
        end = {"reason": "", "epochs": len(bests), "best_validation_accuracy": None}
        studies.fold(TrialEnded(**identity, state=state, **end))
        trial = studies.by_cell["at", "A"].trials[-1]
        assert (trial.state == OptunaState.FAIL) == (trial.value is None)
        return trial.value

    assert told("diverged") == 0.0  # the worst that can be
    assert told("stopped", 0.2, 0.3) == 0.3  # no trial trained longer
    assert told("finished", 0.1, 0.2, 0.3, 0.9) == 0.9
    assert told("finished", 0.1, 0.2, 0.4, 0.8) == 0.8
    assert told("stopped", 0.1, 0.2, 0.2) == pytest.approx(0.7)  # those gained 0.6 and 0.4
    assert told("diverged", 0.5, 0.6) == 0.0  # as the worst so far
    assert told("crashed", 0.5) is None  # its settings are not to blame
    assert told("stopped") is None  # out of time before its first epoch


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_suggestion_depends_on_the_history_alone(tmp_path, sampler):
    trials = 8 if sampler != "cmaes" else 20  # so that it has a generation behind it
    given = {"sampler": sampler, "trials": trials, "methods": "at", "scheduler": "none"}
    whole = make_harness(tmp_path / "log.jsonl", **given)
    whole.run()
    written = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    cut = max(i for i, line in enumerate(written[:90]) if '"trial_ended"' in line) + 1
    (tmp_path / "cut.jsonl").write_text("".join(written[:cut]))
    again = make_harness(tmp_path / "cut.jsonl", **given)
    again.run()
    assert snapshot(again) == snapshot(whole)


def test_studies_rebuilt_from_the_log_are_the_same(finished, tmp_path):
    assert snapshot(SweepHarness(tmp_path / "log.jsonl")) == snapshot(finished)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_differ_between_sweeps_and_cells(tmp_path, sampler):
    sweeps = [
        make_harness(tmp_path / f"{seed}.jsonl", seed=seed, sampler=sampler, trials=3)
        for seed in (1, 2)
    ]
    for sweep in sweeps:
        sweep.run()
    of = [
        str(sorted(sweep.studies.by_cell["at", model].trials[2].params.items()))
        for sweep in sweeps
        for model in "AB"
    ]
    assert len(set(of)) == 4


def test_the_log_alone_rebuilds_studies_whatever_became_of_the_search_spaces(finished, tmp_path):
    class Lost(dict):
        def __missing__(self, method):
            return load_spaces()["student"]

    again = CellStudies(sweep_config(), Lost())
    with EventLog(tmp_path / "log.jsonl", [again.fold]):
        pass
    for cell, study in finished.studies.by_cell.items():
        for old, new in zip(study.trials, again.by_cell[cell].trials, strict=True):
            assert (old.params, old.distributions, old.value, old.state) == (
                new.params, new.distributions, new.value, new.state,
            )  # fmt: skip


def test_diverged_and_crashed_trials_end_and_nothing_stays_running(tmp_path):
    given = {"trials": 1, "methods": "at", "models": "A,B,C", "max_restarts": 0}
    machinery = SweepHarness(tmp_path / "log.jsonl", **given)
    trials = [machinery.suggest() for _ in "ABC"]
    machinery.report(trials[0], 1, 0.5)
    for trial, outcome in zip(trials, ("diverged", "crashed"), strict=False):
        result = TrialFailed(failure=outcome, reason="so")
        assert machinery.report_result(trial, result) == "STOP"
    machinery.scheduler.on_trial_error(None, trials[2])
    machinery.scheduler.on_trial_error(None, trials[2])  # of a trial that has ended
    assert [(e.state, e.reason) for e in events_of(tmp_path, TrialEnded)] == [
        ("diverged", "so"),
        ("crashed", "so"),
        ("crashed", "its process died: killed, or out of memory"),
    ]
    states = [t.state for s in machinery.studies.by_cell.values() for t in s.trials]
    assert states == [OptunaState.COMPLETE, OptunaState.FAIL, OptunaState.FAIL]
    assert machinery.policy.finished


SMALL = "METHOD='at'; SPACE={'lr': tune.choice([0.1, 0.2, 0.3])}; START=[{'lr': 0.2}]"


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc"])
def test_no_point_is_trained_twice_and_a_cell_ends_with_its_space(tmp_path, sampler):
    large = "METHOD='kd'; SPACE={'lr': tune.quniform(0.1, 1, 0.1)}; START=[]"
    spaces = {"kd": write_space(tmp_path, large), "at": write_space(tmp_path, SMALL)}
    machinery = SweepHarness(tmp_path / "log.jsonl", spaces, sampler=sampler, models="A")
    machinery.run()
    tried = [e.params["lr"] for e in proposals(tmp_path) if e.method == "at"]
    assert tried[0] == 0.2 and sorted(tried) == [0.1, 0.2, 0.3]
    [exhausted] = events_of(tmp_path, SpaceExhausted)
    assert exhausted.method == "at" and "no point that was not tried" in exhausted.reason
    assert sum(e.method == "kd" for e in proposals(tmp_path)) == 6  # the others continue
    assert machinery.policy.finished
    again = SweepHarness(tmp_path / "log.jsonl", spaces, sampler=sampler, models="A")
    assert snapshot(again) == snapshot(machinery)


def test_duplicates_are_trained_on_request(tmp_path):
    spaces = {"at": write_space(tmp_path, SMALL)}
    machinery = SweepHarness(
        tmp_path / "log.jsonl", spaces, methods="at", models="A", allow_duplicates=True
    )
    machinery.run()
    assert len(proposals(tmp_path)) == 6


def test_a_conditional_space_is_searched(tmp_path):
    space = (
        "METHOD='kd'; START=[]\n"
        "def SPACE(trial):\n"
        "    if trial.suggest_categorical('alpha', [0.0, 1.0]):\n"
        "        trial.suggest_float('temperature', 1, 10)\n"
        "    trial.suggest_float('lr', 1e-3, 0.3, log=True)"
    )
    spaces = {"kd": write_space(tmp_path, space)}
    machinery = SweepHarness(tmp_path / "log.jsonl", spaces, methods="kd", models="A", trials=30)
    machinery.run()
    parameters = [e.params for e in proposals(tmp_path)]
    assert {("temperature" in p, p["alpha"]) for p in parameters} == {(True, 1.0), (False, 0.0)}
    assert snapshot(
        SweepHarness(tmp_path / "log.jsonl", spaces, methods="kd", models="A", trials=30)
    ) == snapshot(machinery)


def test_a_grid_continues_with_its_other_points_when_there_are_more_trials(tmp_path):
    given = {"methods": "kd", "models": "A", "sampler": GRID_SAMPLER}
    make_harness(tmp_path / "log.jsonl", trials=4, **given).run()
    make_harness(tmp_path / "log.jsonl", trials=99, **given).run()
    points = [str(sorted(e.params.items())) for e in proposals(tmp_path)]
    assert len(points) == len(set(points)) == 27


def test_a_grid_over_a_continuous_range_is_refused_before_a_trial():
    with pytest.raises(UserError, match="'grid' tries every point, but 'lr' of"):
        CellStudies(sweep_config(sampler=GRID_SAMPLER), load_spaces())


REPEATING = {"methods": "at", "models": "A", "trials": 16, "scheduler": "none", "sampler": "gp"}


def test_repeats_are_a_quarter_after_the_first_eight_and_of_the_best_settings(tmp_path):
    make_harness(tmp_path / "log.jsonl", **REPEATING).run()
    asked = {e.trial_id: e for e in proposals(tmp_path)}
    repeats = [e for e in asked.values() if e.is_repeat]
    assert [e.number for e in repeats] == [11, 15]  # 1 of the 4 after the 8th, 2 of 8
    bests = {e.trial_id: e.best_validation_accuracy for e in events_of(tmp_path, TrialEnded)}
    for repeat in repeats:
        first = asked[repeat.candidate]
        assert repeat.params == first.params and repeat.distributions == first.distributions
        assert not first.is_repeat
        earlier = [e for e in asked.values() if e.number < repeat.number]
        ranked = sorted(earlier, key=lambda e: -bests[e.trial_id])
        assert first in ranked[:6]  # the model's best three are among the luckiest six


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"repeat_share": 0, "sampler": "random"}, 0),
        ({"repeat_share": 0.5, "sampler": "random"}, 4),
        ({"sampler": "grid"}, 0),
    ],
)
def test_the_share_of_repeats_is_a_setting_and_a_grid_has_none(tmp_path, change, count):
    machinery = make_harness(tmp_path / "log.jsonl", **{**REPEATING, **change})
    machinery.run()
    assert sum(e.is_repeat for e in proposals(tmp_path)) == count


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_a_sweep_with_repeats_resumes_with_the_same_proposals(tmp_path, sampler):
    given = {**REPEATING, "sampler": sampler}
    whole = make_harness(tmp_path / "log.jsonl", **given)
    whole.run()
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    [first_repeat, *_] = (i for i, line in enumerate(lines) if '"origin":"repeat"' in line)
    for cut in (first_repeat, first_repeat + 5):
        (tmp_path / "cut.jsonl").write_text("".join(lines[:cut]))
        again = make_harness(tmp_path / "cut.jsonl", **given)
        again.run()
        assert snapshot(again) == snapshot(whole)


def test_the_model_of_a_cell_is_logged_until_another_trial_is_proposed(tmp_path):
    given = {**REPEATING, "methods": "at,kd", "trials": 8}
    machinery = make_harness(tmp_path / "log.jsonl", **given)
    machinery.run()
    models = list(machinery.policy.model_cells())
    assert [model.cell for model in models] == [("at", "A"), ("kd", "A")]
    for model in models:
        means = [estimate.mean for estimate in model.estimates]
        assert means == sorted(means, reverse=True) and model.noise_sd > 0
        assert 0 <= model.left_to_gain < 1 and 0 < model.search_luck < 1
        assert all(0 < estimate.sd < 1 for estimate in model.estimates)
        machinery.append(model)
    assert list(machinery.policy.model_cells()) == []
    more = make_harness(tmp_path / "log.jsonl", **{**given, "trials": 9})
    assert list(more.policy.model_cells()) == []
    more.run()
    assert len(list(more.policy.model_cells())) == 2


def test_a_space_that_is_a_function_has_no_model(tmp_path):
    space = "METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('lr', 0.1, 0.2)"
    spaces = {"at": write_space(tmp_path, space)}
    given = {**REPEATING, "sampler": "auto"}
    machinery = SweepHarness(tmp_path / "log.jsonl", spaces, **given)
    machinery.run()
    assert list(machinery.policy.model_cells()) == []
    assert not any(e.is_repeat for e in proposals(tmp_path))
