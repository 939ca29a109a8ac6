"""A program that runs trials on two GPUs that Ray only counts, on a node with five CPUs.

It writes a log of trials that wait instead of training, into the folder that it is given, and
prints what sharing a GPU was measured to bring.
"""

import os
import sys
import time
from pathlib import Path

import ray
import torch
from event_logs import make_metrics
from small_runs import small_config
from sweep_harness import EPOCHS, SweepHarness, sweep_config

from kdtune.tuning.cluster.session import find_slots, run_trials
from kdtune.tuning.planning import gpu_sharing as sharing
from kdtune.tuning.trials.results import EpochReported
from kdtune.tuning.trials.trial_process import TrialProcess


class RealTimeHarness(SweepHarness):
    """A harness with real times in its log."""

    clock = property(lambda self: time.monotonic(), lambda self, value: None)


NUM_FIRST_TRIALS = 4
"""Trials that have room together: A with a GPU and 2 CPUs, B, B and C."""


class WaitingTrial(TrialProcess):
    """A trial that reports what its process has, once the first ones have all started."""

    def iter_results(self, trial_id, config):
        (self._checkpoints / trial_id).touch()
        deadline = time.monotonic() + 100
        while (
            len(list(self._checkpoints.iterdir())) < NUM_FIRST_TRIALS
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(0.1)
            device = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            yield EpochReported(
                metrics=make_metrics(
                    epoch, 0.5, seconds=0.1, threads=torch.get_num_threads(), device=device
                )
            )


def main(folder):
    """Run a sweep of mixed requests, then measure how a real student shares a GPU."""
    ray.init("local", num_cpus=5, num_gpus=2, include_dashboard=False, log_to_driver=False)
    sweep_settings = {"methods": "at", "trials": 2, "scheduler": "none", "sampler": "random"}
    needs = {"models": "A,B,C", "gpus_per_trial": "A=1,B=0.5,C=0"}
    slots = find_slots(sweep_config(**sweep_settings, **needs))
    harness = RealTimeHarness(folder / "log.jsonl", slots=slots, **sweep_settings, **needs)
    (folder / "begun").mkdir()
    trial_class = ray.tune.with_parameters(WaitingTrial, checkpoints=folder / "begun")
    run_trials(trial_class, harness.searcher, harness.scheduler, harness.policy.watchdog)
    sharing.MEASURE_SECONDS = 0.2
    sweep = sweep_config(models="MultiBranchNet", gpus_per_trial="auto")
    config = small_config("digits", method="student")
    slots = find_slots(sweep)
    slots = sharing.choose_gpu_sharing(sweep, slots, lambda: {config.model: config}, (), print)
    print(slots.requests)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
