"""Studies and rungs as folds over the log, without Ray's loop."""

from collections import Counter
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from kdtune.results import STATES, Log, SweepFolder
from kdtune.tuning.schedule import Rungs, Schedule
from kdtune.tuning.search import OPTUNA_STATES, Search, Studies
from kdtune.tuning.space import load_spaces
from kdtune.tuning.trainable import OUTCOME

CELLS = [("at", "A"), ("kd", "A"), ("at", "B")]
EPOCHS = 9


class Sweep:
    """The machinery of a sweep on a log, driven by hand instead of by Ray."""

    def __init__(self, path, trials=6, seed=0):
        self.studies = Studies(CELLS, load_spaces(), seed)
        self.rungs = Rungs(CELLS, EPOCHS, grace_period=1, reduction_factor=3)
        folds = [self.studies.fold, self.rungs.fold]
        with Log(path, folds):
            pass  # opening it is what fills the studies and the rungs

        def append(event):
            with Log(path, []) as log:
                log.append(event)
            for fold in folds:
                fold(event)

        self.search = Search(self.studies, trials, self.configure, append)
        self.schedule = Schedule(self.rungs, append)

    @staticmethod
    def configure(cell, number, settings):
        return {"method": cell[0], "model": cell[1], **settings}

    def suggest(self):
        config = self.search.suggest("an id of Ray's")
        return None if config == Searcher.FINISHED else SimpleNamespace(config=config)

    def report(self, trial, epoch, accuracy, best):
        figures = {"epoch": epoch, "validation_accuracy": accuracy}
        result = {**figures, "best_validation_accuracy": best, "pid": 7}
        return self.schedule.on_trial_result(None, trial, result)

    def train(self, trial, curve):
        best = 0.0
        for epoch, accuracy in enumerate(curve, start=1):
            best = max(best, accuracy)
            if self.report(trial, epoch, accuracy, best) == TrialScheduler.STOP:
                return


def curve(trial):
    """A learning curve that follows from the settings: best at lr 0.03."""
    lr = trial.config["config"]["lr"]
    top = 1 / (1 + abs(lr - 0.03) * 10)
    return [top * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)]


def run(sweep):
    while trial := sweep.suggest():
        sweep.train(trial, curve(trial))


def snapshot(sweep):
    studies = {
        cell: [
            (t.state, t.params, t.value, t.intermediate_values, t.user_attrs)
            for t in study.get_trials()
        ]
        for cell, study in sweep.studies.by_cell.items()
    }
    rungs = {
        cell: [sorted(recorded.items()) for _, recorded in asha._brackets[0]._rungs]
        for cell, asha in sweep.rungs._asha.items()
    }
    return studies, rungs


@pytest.fixture
def finished(tmp_path):
    sweep = Sweep(tmp_path / "log.jsonl")
    run(sweep)
    return sweep


def test_every_cell_gets_the_same_number_in_turn(finished, tmp_path):
    asked = [e for e in SweepFolder(tmp_path).events() if e["event"] == "asked"]
    assert [(e["method"], e["model"]) for e in asked] == CELLS * 6
    assert len({e["trial_id"] for e in asked}) == 18
    assert asked[0]["trial_id"] == "at-A-000"


def test_start_points_come_first(finished):
    for (method, _), study in finished.studies.by_cell.items():
        start = load_spaces()[method].start
        assert [t.params for t in study.trials[: len(start)]] == start


def test_states_and_values_in_the_study(finished, tmp_path):
    states = Counter()
    ends = {e["trial_id"]: e for e in SweepFolder(tmp_path).events() if e["event"] == "ended"}
    for study in finished.studies.by_cell.values():
        for trial in study.trials:
            end = ends[trial.user_attrs["trial_id"]]
            epochs = max(trial.intermediate_values)
            assert list(trial.intermediate_values) == list(range(1, epochs + 1))
            assert epochs == end["epochs"]
            assert trial.value == trial.intermediate_values[epochs]
            expected = TrialState.COMPLETE if epochs == EPOCHS else TrialState.PRUNED
            assert trial.state == expected
            assert end["state"] == {"COMPLETE": "finished", "PRUNED": "stopped"}[trial.state.name]
            states[trial.state] += 1
    assert states[TrialState.PRUNED] > 3 and states[TrialState.COMPLETE] > 3


def test_studies_and_rungs_built_from_the_log_are_those_that_lived(finished, tmp_path):
    again = Sweep(tmp_path / "log.jsonl")
    assert snapshot(again) == snapshot(finished)


@pytest.mark.parametrize("lines", [15, 40, 90])
def test_a_suggestion_depends_on_the_history_alone(finished, tmp_path, lines):
    whole = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    cut = max(i for i, line in enumerate(whole[:lines]) if '"ended"' in line) + 1
    (tmp_path / "cut.jsonl").write_text("".join(whole[:cut]))
    again = Sweep(tmp_path / "cut.jsonl")
    run(again)
    assert snapshot(again) == snapshot(finished)


def test_seeds_differ_between_sweeps_and_cells(tmp_path):
    one, two = Sweep(tmp_path / "1.jsonl", seed=1), Sweep(tmp_path / "2.jsonl", seed=2)
    for sweep in (one, two):
        run(sweep)
    third = [s.studies.by_cell[cell].trials[2].params for s in (one, two) for cell in CELLS]
    assert len({str(sorted(p.items())) for p in third}) == 6


def test_rungs_of_a_cell_are_its_own(tmp_path):
    sweep = Sweep(tmp_path / "log.jsonl")
    trials = {}
    for _ in range(6):
        trial = sweep.suggest()
        trials[trial.config["trial_id"]] = trial
    # in the cell at-A 0.9 comes first, so 0.5 is stopped; in kd-A 0.1 came first, so 0.5 goes on
    assert sweep.report(trials["at-A-000"], 1, 0.9, 0.9) == TrialScheduler.CONTINUE
    assert sweep.report(trials["kd-A-000"], 1, 0.1, 0.1) == TrialScheduler.CONTINUE
    assert sweep.report(trials["kd-A-001"], 1, 0.5, 0.5) == TrialScheduler.CONTINUE
    assert sweep.report(trials["at-A-001"], 1, 0.5, 0.5) == TrialScheduler.STOP


def test_the_log_alone_rebuilds_studies_whatever_became_of_the_search_spaces(finished, tmp_path):
    again = Studies(CELLS, {}, seed=0)
    with Log(tmp_path / "log.jsonl", [again.fold]):
        pass
    for cell, study in finished.studies.by_cell.items():
        for old, new in zip(study.trials, again.by_cell[cell].trials, strict=True):
            assert (old.params, old.distributions, old.value, old.state) == (
                new.params, new.distributions, new.value, new.state,
            )  # fmt: skip


def test_states_are_the_logs():
    assert tuple(OPTUNA_STATES) == STATES


def test_diverged_and_crashed_trials_fail_and_nothing_stays_running(tmp_path):
    sweep = Sweep(tmp_path / "log.jsonl", trials=1)
    trials = [sweep.suggest() for _ in CELLS]
    sweep.report(trials[0], 1, 0.5, 0.5)
    for trial, outcome in zip(trials, ("diverged", "crashed"), strict=False):
        result = {OUTCOME: outcome, "reason": "so"}
        assert sweep.schedule.on_trial_result(None, trial, result) == TrialScheduler.STOP
    sweep.schedule.on_trial_error(None, trials[2])
    ends = [e for e in SweepFolder(tmp_path).events() if e["event"] == "ended"]
    assert [(e["state"], e["reason"]) for e in ends] == [
        ("diverged", "so"),
        ("crashed", "so"),
        ("crashed", "its process died: killed, out of memory, or its node lost"),
    ]
    states = [t.state for study in sweep.studies.by_cell.values() for t in study.trials]
    assert states == [TrialState.FAIL] * 3
