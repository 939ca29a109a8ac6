"""The order of cells, and when the budget is spent."""

from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_harness import EPOCHS, SWEEP_OPENING, events_of
from sweep_harness import SweepHarness as AnyMachinery

from kdtune.log.events import (
    Completed,
    EpochFinished,
    SpaceExhausted,
    SweepResumed,
    TrialEnded,
    TrialProposed,
)
from kdtune.storage.array_cache import CacheProgress, CacheState
from kdtune.tuning.trials.results import CacheReported

Machinery = partial(AnyMachinery, sampler="random")  # who proposes plays no part here


def ends(folder):
    return events_of(folder, TrialEnded)


def epochs_by_cell(folder):
    return Counter(event.cell for event in events_of(folder, EpochFinished))


def start_sweep(machinery):
    machinery.append(SWEEP_OPENING)
    return machinery


def run_slots(machinery, slots, accuracy=lambda trial, epoch: 0.5, seconds=lambda trial: 1.0):
    """Train with several slots, an epoch each in turn."""
    running = []
    while True:
        while len(running) < slots and (trial := machinery.suggest()):
            running.append([trial, 0])
        if not running:
            return
        for entry in list(running):
            trial, epoch = entry
            entry[1] = epoch + 1
            if not machinery.report(
                trial, epoch + 1, accuracy(trial, epoch + 1), seconds=seconds(trial)
            ):
                running.remove(entry)


def test_every_cell_gets_the_same_number_of_trials_in_turn(tmp_path):
    machinery = Machinery(tmp_path / "log.jsonl")
    machinery.run()
    proposed = events_of(tmp_path, TrialProposed)
    cells = [("at", "A"), ("at", "B"), ("kd", "A"), ("kd", "B")]
    assert [e.cell for e in proposed] == cells * 6
    assert len({e.trial_id for e in proposed}) == 24
    assert proposed[0].trial_id == "at-A-000"


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("balance_by", ["trials", "epochs"])
def test_the_budget_of_epochs_is_kept_to_the_last_one(tmp_path, slots, balance_by):
    total = 83
    machinery = Machinery(
        tmp_path / "log.jsonl",
        trials=None,
        total_epochs=total,
        balance_by=balance_by,
        scheduler="none",
    )
    run_slots(machinery, slots)
    spent = epochs_by_cell(tmp_path)
    if balance_by == "epochs":
        assert set(spent.values()) == {total // 4}
    else:
        assert sum(spent.values()) == total
    assert machinery.policy.finished
    late = [e.reason for e in ends(tmp_path) if e.state == "stopped"]
    share = (
        f"the cell's share of {total // 4}" if balance_by == "epochs" else f"the budget of {total}"
    )
    assert late and set(late) == {f"{share} epochs is spent"}


def test_equal_epochs_gives_cells_that_are_stopped_early_more_trials(tmp_path):
    machinery = Machinery(
        tmp_path / "log.jsonl", trials=None, total_epochs=160, balance_by="epochs", models="A"
    )

    def accuracy(trial, epoch):  # at gets worse with every trial, kd is all alike
        number = int(trial.config["trial_id"][-3:])
        return 0.5 - 0.01 * number * (trial.config["config"]["method"] == "at")

    run_slots(machinery, 2, accuracy)
    assert set(epochs_by_cell(tmp_path).values()) == {80}
    trials = Counter(e.method for e in ends(tmp_path))
    assert trials["at"] > 3 * trials["kd"]


def test_equal_seconds_gives_slow_cells_fewer_trials(tmp_path):
    machinery = start_sweep(
        Machinery(
            tmp_path / "log.jsonl",
            trials=None,
            time_budget=1000,
            balance_by="seconds",
            models="A",
            scheduler="none",
        )  # fmt: skip
    )

    def seconds(trial):
        took = 4.0 if trial.config["config"]["method"] == "at" else 1.0
        machinery.clock += took
        return took

    run_slots(machinery, 1, seconds=seconds)
    spent = {
        m: epochs * (4 if m == "at" else 1) for (m, _), epochs in epochs_by_cell(tmp_path).items()
    }
    assert abs(spent["at"] - spent["kd"]) <= 4 * EPOCHS


def test_when_time_is_over_trials_end_with_their_epoch_and_none_starts(tmp_path):
    machinery = start_sweep(Machinery(tmp_path / "log.jsonl", trials=None, time_budget="1m30s"))
    one, two = machinery.suggest(), machinery.suggest()
    assert machinery.report(one, 1, 0.5)
    machinery.clock = 89.9
    assert machinery.report(two, 1, 0.5)
    machinery.clock = 90.0
    assert machinery.suggest() is None
    assert not machinery.policy.finished  # two are running
    assert not machinery.report(one, 2, 0.6)
    assert not machinery.report(two, 2, 0.6)
    assert machinery.policy.finished
    reasons = [(e.state, e.reason, e.epochs) for e in ends(tmp_path)]
    assert reasons == [("stopped", "the time budget of 1 min 30 s is spent", 2)] * 2


def test_a_trial_that_builds_a_cache_when_time_is_over_ends_too(tmp_path):
    machinery = start_sweep(Machinery(tmp_path / "log.jsonl", trials=None, time_budget=9))
    trial = machinery.suggest()
    machinery.clock = 10
    progress = CacheProgress(content="pixels", label="it", state=CacheState.BUILT)
    assert machinery.report_result(trial, CacheReported(progress=progress)) == "STOP"
    assert [(e.state, e.epochs) for e in ends(tmp_path)] == [("stopped", 0)]


def test_several_limits_hold_together(tmp_path):
    machinery = Machinery(tmp_path / "log.jsonl", trials=2, total_epochs=10_000)
    machinery.run()
    assert len(ends(tmp_path)) == 8 and machinery.policy.finished


def test_the_budget_rebuilt_from_the_log_is_the_same(tmp_path):
    given = {"trials": None, "total_epochs": 100, "balance_by": "epochs"}
    machinery = Machinery(tmp_path / "log.jsonl", **given)
    run_slots(machinery, 2)
    again = Machinery(tmp_path / "log.jsonl", **given)
    assert again.budget._usage_by_cell == machinery.budget._usage_by_cell
    assert again.policy.finished


@settings(max_examples=15)
@given(
    slots=st.integers(1, 9),
    balance_by=st.sampled_from(["trials", "epochs", "seconds"]),
    scheduler=st.sampled_from(["asha", "hyperband", "median", "none"]),
    limits=st.tuples(st.none() | st.integers(1, 5), st.none() | st.integers(4, 120)).filter(any),
    seed=st.integers(0, 99),
)
def test_whatever_the_rule_no_slot_idles_while_a_cell_has_room(
    tmp_path_factory, slots, balance_by, scheduler, limits, seed
):
    trials, total = limits
    if balance_by != "trials" and total is None:
        return
    given = {
        "trials": trials,
        "total_epochs": total,
        "balance_by": balance_by,
        "scheduler": scheduler,
    }
    folder = tmp_path_factory.mktemp("sweep")
    machinery = Machinery(folder / "log.jsonl", **given, seed=seed)
    run_slots(machinery, slots, lambda trial, epoch: trial.config["config"]["lr"] * epoch)
    assert machinery.policy.finished and not machinery.budget.next_cells()
    started = Counter(e.cell for e in ends(folder))
    spent = epochs_by_cell(folder)
    assert trials is None or max(started.values()) <= trials
    assert total is None or sum(spent.values()) <= total
    if trials is not None and total is None:
        assert set(started.values()) == {trials}
    if balance_by == "trials" and total is not None and trials is None:
        assert sum(spent.values()) == total
        assert max(started.values()) - min(started.values()) <= 1


def test_time_in_which_no_driver_ran_does_not_count(tmp_path):
    given = {"trials": None, "time_budget": 100}
    machinery = start_sweep(Machinery(tmp_path / "log.jsonl", **given))
    machinery.clock = 60
    machinery.report(machinery.suggest(), 1, 0.5)
    again = Machinery(tmp_path / "log.jsonl", **given)
    again.clock = 5  # of another session; so long it took to start
    again.append(SweepResumed(**{**dict(SWEEP_OPENING), "kind": "sweep_resumed"}))
    again.clock = 25
    assert again.budget.stopwatch.elapsed_seconds == 80
    again.append(SpaceExhausted(method="at", model="A", reason="so"))
    third = Machinery(tmp_path / "log.jsonl", **given)
    third.append(Completed())  # at 0 of a session that was not opened
    assert third.budget.stopwatch.elapsed_seconds == 80
