"""A program: trials on two GPUs that are only Ray's word, on a node with five CPUs.

It writes a log of trials that wait instead of training, into the folder that it is given, and
says what sharing a GPU was found to be good for.
"""

import os
import sys
import time
from pathlib import Path

import ray
import torch
from machinery import EPOCHS, Machinery, sweep_config
from small_runs import small_config

from kdtune.tuning.cluster.session import find_slots, run_trials
from kdtune.tuning.planning import gpu_sharing as sharing
from kdtune.tuning.trials.trainable import TrialProcess


class RealTime(Machinery):
    """The same with real times in its log."""

    clock = property(lambda self: time.monotonic(), lambda self, value: None)


FIRST = 4
"""Trials that have room together: A with a GPU and 2 CPUs, B, B and C."""


class Waits(TrialProcess):
    """A trial that says what its process has, once the first ones are all there."""

    def results(self, trial_id, config):
        (self._checkpoints / trial_id).touch()
        deadline = time.monotonic() + 100
        while len(list(self._checkpoints.iterdir())) < FIRST and time.monotonic() < deadline:
            time.sleep(0.1)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(0.1)
            yield {
                "epoch": epoch, "validation_accuracy": 0.5, "best_validation_accuracy": 0.5,
                "seconds": 0.1, "threads": torch.get_num_threads(),
                "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
            }  # fmt: skip


def main(folder):
    """Run a sweep of mixed needs, then measure how a real student shares a GPU."""
    ray.init("local", num_cpus=5, num_gpus=2, include_dashboard=False, log_to_driver=False)
    given = {"methods": "at", "trials": 2, "scheduler": "none", "sampler": "random"}
    needs = {"models": "A,B,C", "gpus_per_trial": "A=1,B=0.5,C=0"}
    slots = find_slots(sweep_config(**given, **needs))
    machinery = RealTime(folder / "log.jsonl", slots=slots, **given, **needs)
    (folder / "begun").mkdir()
    process = ray.tune.with_parameters(Waits, checkpoints=folder / "begun")
    run_trials(process, machinery.queue, machinery.schedule, machinery.decisions.watch)
    sharing.SECONDS = 0.2
    sweep = sweep_config(models="MultiBranchNet", gpus_per_trial="auto")
    config = small_config("digits", method="student")
    slots = find_slots(sweep)
    slots = sharing.shared_slots(sweep, slots, lambda: {config.model: config}, (), print)
    print(slots.needs)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
