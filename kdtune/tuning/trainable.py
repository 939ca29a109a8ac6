"""A function for a `ray.tune.Tuner` of one's own: `from kdtune import trainable`."""

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from kdtune.config.strengths import STRENGTHS, strengths_to_weights
from kdtune.config.train import TrainConfig
from kdtune.methods import METHODS
from kdtune.models import require_model
from kdtune.models.checkpoints import read_checkpoint
from kdtune.runtime.console import say
from kdtune.runtime.device import limit_gpu_memory
from kdtune.training.epoch_data import find_data, open_single_run
from kdtune.training.loop import EpochResult, fit
from kdtune.training.loss_scales import LossScales
from kdtune.training.teacher import load_run_teacher
from kdtune.tuning.trials.trial_checkpoints import resumable_state, save_epoch
from kdtune.tuning.trials.trial_process import hide_unassigned_gpus

CHECKPOINT_NAME = "student.pth"
"""The file in a checkpoint of Tune's; `kdtune.load_model` reads it."""

SCALES_SEED = 0
"""Seed of the measured strengths: trials that differ in the seed alone have the same weights."""


def trainable(config: dict[str, Any]) -> None:
    """Train a student, as a trial of `tune.Tuner(trainable, param_space=...)`.

    Each epoch reports what `training_history` of a single run has, such as
    ``validation_accuracy``, ``best_validation_accuracy`` and ``loss_kd``, and the trained
    ``alpha`` and ``beta``. Test images are not read. Every `save_freq` epochs (1 if not given),
    and after the last one, there is a checkpoint, from which Tune restores the trial.

    Args:
        config: settings of `TrainConfig`, for which ``alpha_strength`` and ``beta_strength`` may
            stand in place of ``alpha`` and ``beta``. Paths may be relative to the folder in which
            Ray started.
    """
    hide_unassigned_gpus()
    limit_gpu_memory(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))
    # Tune has changed it to a folder of the trial.
    with chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", ".")):
        _train({"save_freq": 1, **config})


def _train(settings: dict[str, Any]) -> None:
    config = TrainConfig.parse(strengths_to_weights(settings, loss_scales={}))
    METHODS.require(config.method)
    require_model(config.model)
    data, _ = find_data(config, with_test=False)
    teacher = load_run_teacher(config, data.classes)
    has_strengths = STRENGTHS.keys() & settings.keys() and METHODS[config.method].uses_teacher
    if teacher is not None and has_strengths:
        scales = LossScales(data, config.image_size, teacher, SCALES_SEED).measure(config)
        config = TrainConfig.parse(strengths_to_weights(settings, scales))
    batches = open_single_run(config, data, teacher, say)
    epochs = fit(
        config,
        batches.train_batches,
        batches.evaluation_batches("validation"),
        num_classes=len(data.classes),
        class_counts=batches.class_counts,
        teacher=teacher,
        resume=_load_state(),
    )
    weights = {weight: getattr(config, weight) for weight in STRENGTHS.values()}
    for result in epochs:
        with _checkpoint(config, data.classes, result) as checkpoint:
            tune.report({**result.metrics(), **weights}, checkpoint=checkpoint)


def _load_state() -> dict[str, Any] | None:
    """Return the state of the checkpoint from which Tune starts this trial, if there is one."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return resumable_state(read_checkpoint(Path(folder) / CHECKPOINT_NAME))


@contextmanager
def _checkpoint(
    config: TrainConfig, classes: tuple[str, ...], result: EpochResult
) -> Iterator[tune.Checkpoint | None]:
    """Yield a checkpoint of an epoch, which Tune copies; None if the epoch has none."""
    if result.epoch % config.save_freq and not result.is_last(config):
        yield None
        return
    with TemporaryDirectory(prefix="kdtune-") as folder:
        save_epoch(Path(folder) / CHECKPOINT_NAME, config, classes, result)
        yield tune.Checkpoint.from_directory(folder)
