"""Processes that run one trial after another: their results, and that no trial harms the next."""

import os
import time
from types import SimpleNamespace

import pytest
from event_logs import make_metrics
from small_runs import small_config
from sweep_harness import EPOCHS, SweepHarness

from kdtune.log.events import EpochFinished, TrialEnded
from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.placement import ResourceRequest, Slots
from kdtune.tuning.cluster.session import LivingNodes, run_trials
from kdtune.tuning.trials.results import CacheReported, EpochReported, from_ray
from kdtune.tuning.trials.trial_process import TrialProcess, run_trial


def ray_config(config):
    return {
        "trial_id": "x",
        "config": config.model_dump(),
        "allocation": {"threads": 1, "gpus": 0.0},
    }


def test_a_trial_reports_its_epochs_and_what_it_built(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    config = small_config(folder, method="student")
    results = list(run_trial(config.model_dump()))
    states = [r.progress.state for r in results if isinstance(r, CacheReported)]
    assert states == ["building", "built"] * 2
    assert [r.metrics.epoch for r in results[len(states) :]] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "failure", "reason"),
    [
        ({"lr": 1e30}, "diverged", "loss became"),
        ({"data_dir": "nowhere"}, "crashed", "UserError: There is no folder nowhere"),
        ({"cache_gb": 1e-9}, "crashed", "images take 0.0 MB at 8 px, but cache_gb is 1e-09"),
    ],
)
def test_a_trial_that_fails_says_how(folder, settings, failure, reason):
    config = small_config(folder, **{"method": "student", **settings})
    *_, last = run_trial(config.model_dump())
    assert last.failure == failure and reason in last.reason and "\n" not in last.reason


def test_a_process_runs_trial_after_trial_with_the_same_numbers(folder, monkeypatch):
    """Also when the trial before was left in the middle, and has changed what it could."""
    import torch

    # Asked outside Ray, it would start it.
    context = SimpleNamespace(
        get_node_id=lambda: "here", get_accelerator_ids=lambda: {"GPU": ["0"]}
    )
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)

    def first_epoch(process):
        while not isinstance(result := from_ray(process.step()), EpochReported):
            pass
        return result.metrics.model_copy(update={"seconds": 0})

    config = small_config(folder, method="student", epochs=3)
    process = TrialProcess(ray_config(config))
    expected = first_epoch(process)
    assert process.reset_config(ray_config(config.model_copy(update={"seed": 5})))
    assert first_epoch(process).train_loss != expected.train_loss
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    assert process.reset_config(ray_config(config))
    assert first_epoch(process) == expected
    process.cleanup()


def test_a_process_may_use_the_share_of_the_gpu_that_its_trial_has(folder, monkeypatch):
    """Also a larger one, if a later trial has it."""
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": ["0"]})
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    shares, waits = [], []
    monkeypatch.setattr("kdtune.tuning.trials.trial_process.limit_gpu_memory", shares.append)
    monkeypatch.setattr("kdtune.tuning.trials.trial_process.wait_for_gpu_memory", waits.append)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    config = ray_config(small_config(folder, method="student"))
    shared = {**config, "allocation": {"threads": 1, "gpus": 0.25}}
    process = TrialProcess(shared)
    process.reset_config({**config, "allocation": {"threads": 1, "gpus": 1.0}})
    assert shares == [0.25, 1.0]
    assert waits == [0.25]  # its own memory returns at once
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.slow
def test_a_trial_that_is_slow_to_end_harms_no_other(ray_session, tmp_path):
    epochs, template = EPOCHS, make_metrics(1, 0.5, seconds=0.01)  # workers cannot import tests

    class SlowToEnd(TrialProcess):
        """It takes longer than Ray Tune waits for functions, and complains at the end."""

        def iter_results(self, trial_id, config):
            try:
                for epoch in range(1, epochs + 1):
                    changes = {"epoch": epoch, "device": f"pid {os.getpid()}"}
                    yield EpochReported(metrics=template.model_copy(update=changes))
            finally:
                time.sleep(2.5)
                raise OSError("a worker would not go")

    slots = Slots({"A": ResourceRequest(), "B": ResourceRequest()}, LivingNodes())
    settings = {"methods": "kd", "trials": 2, "sampler": "random"}
    harness = SweepHarness(tmp_path / "log.jsonl", slots=slots, **settings)
    run_trials(SlowToEnd, harness.searcher, harness.scheduler, harness.policy.watchdog)
    events = SweepFolder(tmp_path).load_events()
    states = [event.state for event in events if isinstance(event, TrialEnded)]
    assert len(states) == 4 and set(states) <= {"finished", "stopped"}
    assert harness.policy.finished
    processes = {event.device for event in events if isinstance(event, EpochFinished)}
    assert len(processes) < 4  # they are used again
