"""One training run as a Ray Tune trainable: a few lines around `fit`.

A trial that fails by itself reports that as its last result, with the reason in one line, so that
Ray keeps the process for the next trial; only a process that dies is an error to Ray.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from ray import tune
from torch import nn

from kdtune.config import TrainConfig
from kdtune.data.images import find_images
from kdtune.data.views import Views
from kdtune.errors import DivergedError
from kdtune.inputs import Inputs, keeps_targets, open_views
from kdtune.models import build_model, feature_shapes
from kdtune.process import keep_freed_memory
from kdtune.targets import Lesson
from kdtune.teacher import load_teacher
from kdtune.training import FIGURES, LOSS, fit

OUTCOME = "outcome"
"""Key of a result that ends a trial: ``diverged`` or ``crashed``; ``reason`` stands beside it."""


NOTE = "note"
"""Key of a result that is no epoch: what the cache told, see `kdtune.cache.Tell`, as JSON."""

Askers = tuple[tuple[TrainConfig, tuple[tuple[int, int, int], ...]], ...]
"""Runs whose targets the sweep keeps: settings, and (C, H, W) of the student's stages."""


# What all trials of a sweep have in common is opened once in a process.
@lru_cache(maxsize=1)
def _views(data_dir: str, image_size: int, cache_gb: float) -> Views:
    return open_views(find_images(data_dir), image_size, cache_gb)


@lru_cache(maxsize=1)
def _teacher(path: str, classes: tuple[str, ...], image_size: int) -> nn.Module:
    return load_teacher(path, classes, image_size)


@lru_cache(maxsize=1)
def _lesson(teacher: nn.Module, image_size: int, askers: Askers) -> Lesson:
    """All that the sweep wants to know, so that one pass of the teacher gives it to all."""
    lesson = Lesson(teacher, image_size)
    for config, shapes in askers:
        lesson.ask(config, list(shapes))
    return lesson


def train_trial(settings: dict[str, Any], askers: Askers) -> None:
    """Run one trial, and report every epoch.

    Args:
        settings: ``trial_id``; ``config``, the complete `TrainConfig` as a dict; ``threads``.
        askers: see `Askers`.
    """
    keep_freed_memory()
    torch.set_num_threads(settings["threads"])
    config = TrainConfig.check(settings["config"])
    try:
        views = _views(config.data_dir, config.image_size, config.cache_gb)
        classes = views.data.classes
        teacher, lesson, own = None, None, {}
        if config.teacher_model is not None:
            teacher = _teacher(config.teacher_model, classes, config.image_size)
            if keeps_targets(config):
                lesson = _lesson(teacher, config.image_size, askers)
                student = build_model(config.model, len(classes), config.image_size)
                own = lesson.ask(config, feature_shapes(student, config.image_size))
        inputs = Inputs(config, views, lesson, own, _tell)
        results = fit(
            config,
            inputs.train,
            inputs.evaluation("validation"),
            num_classes=len(classes),
            teacher=teacher,
        )
        for result in results:
            # TensorBoard's step; Ray's own count has the notes in it.
            tune.report({**result.figures(), "timesteps_total": result.epoch})
    except DivergedError as error:
        tune.report({OUTCOME: "diverged", "reason": str(error)})
    except Exception as error:  # whatever a run may raise must not end the sweep
        message = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
        tune.report({OUTCOME: "crashed", "reason": reason})


def _tell(event: dict[str, Any]) -> None:
    if event["state"] != "found":
        tune.report({NOTE: json.dumps(event)})


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of an epoch in a result, without what Ray added to it."""
    return {k: v for k, v in result.items() if k in FIGURES or k.startswith(LOSS)}
