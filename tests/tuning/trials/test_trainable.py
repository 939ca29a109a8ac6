"""Processes that run one trial after another: what a trial gives, and that none harms the next."""

import json
import os
import time
from types import SimpleNamespace

import pytest
from small_runs import small_config
from sweep_harness import EPOCHS, SweepHarness

from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.placement import ResourceRequest, Slots
from kdtune.tuning.cluster.session import LivingNodes, run_trials
from kdtune.tuning.trials import trainable
from kdtune.tuning.trials.trainable import (
    CACHE_EVENT_KEY,
    NODE_KEY,
    OUTCOME_KEY,
    TrialProcess,
    run_trial,
)


def settings_of(config):
    return {"trial_id": "x", "config": config.model_dump(), "allocation": {"threads": 1}}


def test_a_trial_gives_its_epochs_and_what_it_built(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    trainable._open_decoded.cache_clear()  # what earlier tests opened in this process
    config = small_config(folder, method="student")
    results = list(run_trial(config.model_dump(), ()))
    notes = [json.loads(r[CACHE_EVENT_KEY]) for r in results if CACHE_EVENT_KEY in r]
    assert [n["state"] for n in notes] == ["building", "built"] * 2
    assert [r["epoch"] for r in results[len(notes) :]] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "outcome", "reason"),
    [
        ({"lr": 1e30}, "diverged", "loss became"),
        ({"data_dir": "nowhere"}, "crashed", "UserError: There is no folder nowhere"),
    ],
)
def test_a_trial_that_fails_says_how(folder, settings, outcome, reason):
    config = small_config(folder, **{"method": "student", **settings})
    *_, last = run_trial(config.model_dump(), ())
    assert last[OUTCOME_KEY] == outcome and reason in last["reason"] and "\n" not in last["reason"]


def test_a_process_goes_from_trial_to_trial_with_the_same_numbers(folder, monkeypatch):
    """Also when the trial before was left in the middle, and has changed what it could."""
    import torch

    # Asked outside Ray, it would start it.
    context = SimpleNamespace(
        get_node_id=lambda: "here", get_accelerator_ids=lambda: {"GPU": ["0"]}
    )
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)

    def first_epoch(process):
        while CACHE_EVENT_KEY in (result := process.step()) or NODE_KEY in result:
            pass
        return {k: v for k, v in result.items() if k != "seconds"}

    config = small_config(folder, method="student", epochs=3)
    process = TrialProcess(settings_of(config))
    expected = first_epoch(process)
    assert process.reset_config(settings_of(config.model_copy(update={"seed": 5})))
    assert first_epoch(process)["train_loss"] != expected["train_loss"]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    assert process.reset_config(settings_of(config))
    assert first_epoch(process) == expected
    process.cleanup()


@pytest.mark.slow
def test_a_trial_that_is_slow_to_end_harms_nobody(ray_session, tmp_path):
    epochs = EPOCHS

    class SlowToEnd(TrialProcess):
        """It takes longer than Ray Tune waits for functions, and complains at the end."""

        def iter_results(self, trial_id, config):
            try:
                for epoch in range(1, epochs + 1):
                    yield {
                        "epoch": epoch, "validation_accuracy": config["lr"], "seconds": 0.01,
                        "best_validation_accuracy": config["lr"], "device": f"pid {os.getpid()}",
                    }  # fmt: skip
            finally:
                time.sleep(2.5)
                raise OSError("a worker would not go")

    slots = Slots({"A": ResourceRequest(), "B": ResourceRequest()}, LivingNodes())
    given = {"methods": "kd", "trials": 2, "sampler": "random"}
    machinery = SweepHarness(tmp_path / "log.jsonl", slots=slots, **given)
    run_trials(SlowToEnd, machinery.searcher, machinery.scheduler, machinery.policy.watchdog)
    events = SweepFolder(tmp_path).load_events()
    ends = [e["state"] for e in events if e["event"] == "ended"]
    assert len(ends) == 4 and set(ends) <= {"finished", "stopped"}
    assert machinery.policy.finished
    processes = {e["device"] for e in events if e["event"] == "epoch"}
    assert len(processes) < 4  # they are used again
