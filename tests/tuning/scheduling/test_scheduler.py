"""The log of the scheduler, and the trials that it ends or restarts."""

import re
import traceback
from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError
from sweep_harness import EPOCHS, SweepHarness, events_of

from kdtune.errors import DiskFullError, GpuLostError, UserError
from kdtune.log.events import (
    CacheUpdated,
    EpochFinished,
    TrialEnded,
    TrialProposed,
    TrialRestarted,
)
from kdtune.log.folder import SweepFolder
from kdtune.storage.array_cache import CacheProgress, CacheState
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.scheduling.scheduler import MISPLACED_RESTARTS
from kdtune.tuning.trials.results import CacheReported, Failure, ProcessStarted, TrialFailed


def ends(folder):
    return events_of(folder, TrialEnded)


def one_trial(tmp_path, **given):
    machinery = SweepHarness(tmp_path / "log.jsonl", **{"methods": "at", "models": "A", **given})
    return machinery, machinery.suggest()


def fail(machinery, trial, failure, reason="so"):
    result = TrialFailed(failure=failure, reason=reason)
    assert machinery.report_result(trial, result) == "STOP"


def test_an_end_names_the_rule_and_its_numbers(tmp_path):
    machinery = SweepHarness(tmp_path / "log.jsonl", methods="at", models="A")
    one, two = machinery.suggest(), machinery.suggest()
    assert machinery.report(one, 1, 0.47)
    assert not machinery.report(two, 1, 0.38, best=0.41)
    [end] = ends(tmp_path)
    assert (end.state, end.epochs, end.best_validation_accuracy) == ("stopped", 1, 0.41)
    assert end.reason == "asha, epoch 1: 41.00 %, the cut was 47.00 % among 1"


def test_a_trial_that_trains_all_epochs_is_finished_whatever_the_rule(tmp_path):
    machinery = SweepHarness(tmp_path / "log.jsonl", methods="at", models="A", grace_period=EPOCHS)
    machinery.train(machinery.suggest(), [0.9] * EPOCHS)
    machinery.train(machinery.suggest(), [0.1] * EPOCHS)
    assert [(e.state, e.reason) for e in ends(tmp_path)] == [
        ("finished", f"all {EPOCHS} epochs")
    ] * 2


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_every_rule_is_named_in_the_reason(tmp_path, scheduler):
    given = {"methods": "at", "models": "A", "scheduler": scheduler, "trials": 30}
    machinery = SweepHarness(tmp_path / "log.jsonl", **given)
    accuracies = iter(n / 100 for n in range(90, 50, -1))
    while not ends(tmp_path):
        machinery.report(machinery.suggest(), 1, next(accuracies))
    reason = ends(tmp_path)[0].reason
    assert re.fullmatch(rf"{scheduler}, epoch 1: .* %, the cut was .* % among \d", reason)


def test_cache_progress_and_epochs_are_logged_in_order(tmp_path):
    machinery = SweepHarness(tmp_path / "log.jsonl", methods="at", models="A")
    trial = machinery.suggest()
    progress = CacheProgress(content="pixels", label="it", state=CacheState.BUILT, num_bytes=7)
    machinery.report_result(trial, CacheReported(progress=progress))
    machinery.report(trial, 1, 0.5)
    cache, epoch = SweepFolder(tmp_path).load_events()[-2:]
    assert isinstance(cache, CacheUpdated) and isinstance(epoch, EpochFinished)
    assert (cache.trial_id, cache.progress) == ("at-A-000", progress)
    assert (epoch.epoch, epoch.validation_accuracy) == (1, 0.5)


def test_a_trial_whose_process_died_is_handed_out_again_and_continues(tmp_path):
    machinery, trial = one_trial(tmp_path, trials=1)
    machinery.report(trial, 1, 0.5)
    machinery.scheduler.on_trial_error(None, trial)
    again = machinery.suggest()
    assert again.config == trial.config
    assert again.config["config"]["data_dir"] == "d"  # where the sweep has its data now
    assert machinery.report(again, 1, 0.5)  # it repeats its first epoch
    assert machinery.report(again, 2, 0.6)
    epochs = [e.epoch for e in events_of(tmp_path, EpochFinished)]
    assert epochs == [1, 2]


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_restarted_trial_is_handed_out_once_however_often_the_driver_died(tmp_path, deaths):
    given = {"methods": "at", "models": "A", "trials": 2}
    machinery = SweepHarness(tmp_path / "log.jsonl", **given)
    trial = machinery.suggest()
    for _ in range(deaths):
        machinery.scheduler.on_trial_error(None, trial)
        trial = machinery.suggest()
    machinery = SweepHarness(tmp_path / "log.jsonl", **given)
    first, second = machinery.suggest(), machinery.suggest()
    names = [t.config["trial_id"] for t in (first, second)]
    assert names == ["at-A-000", "at-A-001"] and machinery.suggest() is None
    machinery.train(first, [0.5] * EPOCHS)
    machinery = SweepHarness(tmp_path / "log.jsonl", **given)
    assert machinery.suggest().config["trial_id"] == "at-A-001"
    assert machinery.suggest() is None


def test_a_process_that_dies_while_the_sweep_stops_is_no_restart(tmp_path):
    """Slurm sends its SIGTERM to all processes of a job."""
    machinery, trial = one_trial(tmp_path)
    machinery.policy.interrupts.stop_requested = True
    machinery.scheduler.on_trial_error(None, trial)
    assert [e.kind for e in SweepFolder(tmp_path).load_events()] == ["trial_proposed"]


def test_running_trials_are_worth_waiting_for_once_one_has_finished_an_epoch(tmp_path):
    machinery, trial = one_trial(tmp_path)
    has_progress = machinery.policy.interrupts.has_progress
    assert not has_progress()
    machinery.report(trial, 1, 0.5)
    assert has_progress()


def test_a_trial_with_the_name_of_another_is_damage(tmp_path):
    machinery, _ = one_trial(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text().replace("at-A-000", "Documents"))
    with pytest.raises(UserError, match="line 1 does not fit .* should be at-A-000"):
        SweepHarness(log, methods="at", models="A")


def test_a_process_may_die_at_most_max_restarts_times(tmp_path):
    machinery, trial = one_trial(tmp_path, trials=1, max_restarts=2)
    for _ in range(3):
        machinery.scheduler.on_trial_error(None, trial)
        trial = machinery.suggest() or trial
    machinery.scheduler.on_trial_error(None, trial)  # of a trial that has ended
    [end] = ends(tmp_path)
    reason = "its process died: killed, or out of memory, 3 times"
    assert (end.state, end.reason) == ("crashed", reason)
    assert machinery.suggest() is None and machinery.policy.finished


def test_a_process_that_lost_its_gpu_is_described_and_its_trial_restarts(tmp_path):
    machinery, trial = one_trial(tmp_path, trials=1)
    text = "its process lost the GPU T4 (GPU-5): AcceleratorError: CUDA error: device-side assert"
    try:
        raise GpuLostError(text) from RuntimeError("so")
    except GpuLostError as error:
        task_error = RayTaskError("step", traceback.format_exc(), error)
    error_file = tmp_path / "error.txt"
    error_file.write_text(f"Failure # 1\n{task_error.as_instanceof_cause()}\n")  # as Tune does
    trial.error_file = str(error_file)
    machinery.scheduler.on_trial_error(None, trial)
    [restart] = events_of(tmp_path, TrialRestarted)
    assert (restart.cause, restart.reason) == ("process_died", text)
    assert machinery.suggest() is not None


def test_a_trial_that_lacks_memory_waits_for_a_device_of_its_own(tmp_path):
    slots = Slots({"A": ResourceRequest(1, 0.5)}, lambda: [Node("n", cpus=4, gpus=1)])
    machinery, trial = one_trial(tmp_path, trials=2, slots=slots)
    fail(machinery, trial, Failure.OUT_OF_MEMORY)
    other = machinery.suggest()
    assert other.config["trial_id"] == "at-A-001" and other.config["allocation"]["gpus"] == 0.5
    assert machinery.suggest() is None  # half of the device is free
    machinery.train(other, [0.5] * EPOCHS)
    again = machinery.suggest()
    assert again.config == {
        **trial.config,
        "allocation": {**trial.config["allocation"], "gpus": 1.0},
    }
    fail(machinery, again, Failure.OUT_OF_MEMORY)
    assert [e.state for e in ends(tmp_path)] == ["finished", "crashed"]


def test_a_trial_that_has_its_device_to_itself_and_lacks_memory_has_crashed(tmp_path):
    slots = Slots({"A": ResourceRequest(1, 1.0)}, lambda: [Node("n", cpus=4, gpus=1)])
    machinery, trial = one_trial(tmp_path, slots=slots)
    fail(machinery, trial, Failure.OUT_OF_MEMORY)
    assert [e.state for e in ends(tmp_path)] == ["crashed"]


def test_a_full_disk_ends_the_sweep_and_no_trial(tmp_path):
    machinery, trial = one_trial(tmp_path)
    fail(machinery, trial, Failure.DISK_FULL, "There is no room.")
    assert isinstance(machinery.policy.failure, DiskFullError)
    assert machinery.suggest() is None and ends(tmp_path) == []
    assert list(machinery.active_trials.by_id) == ["at-A-000"]


def test_an_interrupted_trial_finishes_its_epoch_and_stays_active(tmp_path):
    machinery, trial = one_trial(tmp_path)
    machinery.policy.interrupts.stop_requested = True
    assert not machinery.report(trial, 1, 0.5)
    assert machinery.suggest() is None
    again = SweepHarness(tmp_path / "log.jsonl", methods="at", models="A")
    assert [(t, o.epoch) for t, o in again.active_trials.by_id.items()] == [("at-A-000", 1)]
    assert again.suggest().config == trial.config


@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_an_end_that_a_crash_lost_is_logged_on_resume(tmp_path, epoch):
    """The last epoch was logged, but not that the trial was over."""
    given = {"methods": "at", "models": "A", "trials": 2}
    machinery = SweepHarness(tmp_path / "log.jsonl", **given)
    machinery.train(machinery.suggest(), [0.9] * EPOCHS)
    machinery.train(machinery.suggest(), [0.9] * EPOCHS if epoch == EPOCHS else [0.1])
    log = tmp_path / "log.jsonl"
    *rest, last = log.read_text().splitlines(keepends=True)
    log.write_text("".join(rest))
    again = SweepHarness(log, **given)
    assert again.suggest() is None and again.policy.finished
    assert log.read_text().splitlines()[-1] == last.rstrip()


def restarts(tmp_path):
    return [e.cause for e in events_of(tmp_path, TrialRestarted)]


def loses(machinery, trial):
    """The trial loses its node, and is handed out again if it may be."""
    machinery.lose_node(trial.config["allocation"]["node"])
    machinery.scheduler.on_trial_error(None, trial)
    return machinery.suggest()


def test_lost_nodes_do_not_count_for_a_trial_that_makes_progress_in_between(tmp_path):
    machinery, trial = one_trial(tmp_path, trials=1, max_restarts=1)
    for epoch in range(1, 6):  # the node is lost again and again, but always after an epoch
        machinery.report(trial, epoch, 0.5)
        trial = loses(machinery, trial)
    assert restarts(tmp_path) == ["node_lost"] * 5 and not ends(tmp_path)
    loses(machinery, loses(machinery, trial))  # it may take its node along, once
    [end] = ends(tmp_path)
    assert (end.state, end.reason) == ("crashed", "its node was lost, 2 times")


def test_lost_nodes_and_dead_processes_are_counted_apart(tmp_path):
    machinery, trial = one_trial(tmp_path, trials=1, max_restarts=1)
    machinery.scheduler.on_trial_error(None, trial)
    loses(machinery, machinery.suggest())
    assert restarts(tmp_path) == ["process_died", "node_lost"] and not ends(tmp_path)


def test_a_node_that_is_lost_gets_no_trial_though_ray_still_has_it(tmp_path):
    machinery, trial = one_trial(tmp_path, trials=3)
    machinery.lost_nodes.add("n")
    machinery.scheduler.on_trial_error(None, trial)
    assert machinery.suggest() is None  # there is no other one
    machinery.nodes.append(Node("m", 1000))
    assert [machinery.suggest().config["allocation"]["node"] for _ in range(2)] == ["m", "m"]


def test_a_node_that_was_lost_before_the_trial_began_is_known_to_be(tmp_path):
    machinery = SweepHarness(tmp_path / "log.jsonl", methods="at", models="A", max_restarts=1)
    config = machinery.searcher.suggest("x")
    machinery.lose_node("n")
    trial = SimpleNamespace(config=config, error_file=None)
    machinery.scheduler.on_trial_error(None, trial)
    assert (
        restarts(tmp_path) == ["node_lost"]
        and machinery.suggest().config["allocation"]["node"] == "n+"
    )


@pytest.fixture
def ended(monkeypatch):
    """Processes that were ended."""
    pids = []
    end = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=pids.append))
    monkeypatch.setattr("kdtune.tuning.scheduling.watchdog._kill", end)
    return pids


def test_a_process_on_a_node_that_gets_no_trials_is_ended(tmp_path, ended):
    machinery, trial = one_trial(tmp_path, trials=1, max_restarts=0)
    elsewhere = ProcessStarted(node_id=f"{5:056x}", pid=7)
    assert machinery.report_result(trial, elsewhere) == "CONTINUE" and ended == [7]
    assert machinery.report(trial, 1, 0.5)  # what it says until it is no more does not count
    machinery.scheduler.on_trial_error(None, trial)
    assert [type(e) for e in SweepFolder(tmp_path).load_events()] == [
        TrialProposed,
        TrialRestarted,
    ]
    assert restarts(tmp_path) == ["misplaced"]
    trial = machinery.suggest()
    assert trial.config["trial_id"] == "at-A-000"
    while not ends(tmp_path):  # but not for ever
        machinery.report_result(trial, elsewhere)
        machinery.scheduler.on_trial_error(None, trial)
        trial = machinery.suggest()
    assert len(ended) == MISPLACED_RESTARTS + 1
    assert ends(tmp_path)[0].reason == "Ray started it on a node that gets no trials, 11 times"


def test_a_sweep_that_stops_waits_for_no_process_that_is_misplaced(tmp_path, ended):
    machinery, trial = one_trial(tmp_path, trials=1)
    elsewhere = ProcessStarted(node_id=f"{5:056x}", pid=7)
    machinery.policy.interrupts.stop_requested = True
    assert machinery.report_result(trial, elsewhere) == "STOP"
    assert not ends(tmp_path) and not restarts(tmp_path)
