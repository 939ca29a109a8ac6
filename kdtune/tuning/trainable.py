"""One training run as a Ray Tune trainable: a few lines around `fit`.

A trial that fails by itself reports that as its last result, with the reason in one line, so that
Ray keeps the process for the next trial; only a process that dies is an error to Ray.
"""

from functools import lru_cache
from typing import Any

import torch
from ray import tune

from kdtune.config import TrainConfig
from kdtune.data.images import find_images
from kdtune.data.views import RunData, decode_run
from kdtune.errors import DivergedError
from kdtune.teacher import load_teacher
from kdtune.training import FIGURES, LOSS, fit

OUTCOME = "outcome"
"""Key of a result that ends a trial: ``diverged`` or ``crashed``; ``reason`` stands beside it."""


@lru_cache(maxsize=1)
def _open_data(data_dir: str, image_size: int) -> RunData:
    """Decode once in a process; all trials of a sweep have the same data."""
    return decode_run(find_images(data_dir), image_size)


def train_trial(settings: dict[str, Any]) -> None:
    """Run one trial, and report every epoch.

    Args:
        settings: ``trial_id``; ``config``, the complete `TrainConfig` as a dict; ``threads``.
    """
    torch.set_num_threads(settings["threads"])
    config = TrainConfig.check(settings["config"])
    try:
        data = _open_data(config.data_dir, config.image_size)
        teacher = None
        if config.teacher_model is not None:
            teacher = load_teacher(config.teacher_model, data.classes, config.image_size)
        results = fit(
            config,
            data.train_batches(config),
            data.validation_batches(),
            num_classes=len(data.classes),
            teacher=teacher,
        )
        for result in results:
            tune.report(result.figures())
    except DivergedError as error:
        tune.report({OUTCOME: "diverged", "reason": str(error)})
    except Exception as error:  # whatever a run may raise must not end the sweep
        message = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
        tune.report({OUTCOME: "crashed", "reason": reason})


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of an epoch in a result, without what Ray added to it."""
    return {k: v for k, v in result.items() if k in FIGURES or k.startswith(LOSS)}
