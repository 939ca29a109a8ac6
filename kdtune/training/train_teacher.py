"""Training of a teacher, which leaves one checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.models import build_model, require_model
from kdtune.models.checkpoints import save_model
from kdtune.models.pretrained import load_pretrained
from kdtune.runtime.console import say, waiting
from kdtune.storage.files import make_folder
from kdtune.training.epoch import OnStep, evaluate
from kdtune.training.loop import fit
from kdtune.training.run import describe_start, find_run_data, open_run_batches


def train_teacher(
    config: TrainConfig,
    out: Path,
    say: Callable[[str], None] = say,
    threads: int | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train a network with the method ``student`` and save its best weights.

    Args:
        config: the run's settings.
        out: the checkpoint, which must not exist; until the end, the best weights so far are in
            ``<out>.partial.pth``.
        say: takes lines about each epoch and about what is built.
        threads: CPU threads of torch; None for torch's default.
        on_step: called after each training step.

    Returns:
        ``validation_accuracy`` and ``test_accuracy`` (None without test images), shares of 1
        by the metric of `config`.
    """
    if out.exists():
        raise UserError(f"{out} already exists; remove it, or choose another --out.")
    require_model(config.model)
    if threads is not None:
        torch.set_num_threads(threads)
    make_folder(out.parent)
    config, data = find_run_data(config, say)
    classes = list(data.classes)
    if config.weights is not None:  # refused, if at all, before images are decoded
        model = build_model(config.model, len(classes), config.image_size)
        say(load_pretrained(model, config.model, config.weights, len(classes)))
    with waiting("decoding images", say):
        batches = open_run_batches(config, data, None, data.classes, {}, say)
    metadata: dict[str, Any] = {"config": config.model_dump(), "classes": classes}
    partial_path = out.with_name(f"{out.stem}.partial{out.suffix}")
    say(describe_start(config, data))
    epochs = fit(
        config,
        batches.train,
        batches.validation,
        num_classes=len(classes),
        class_counts=batches.class_counts,
        on_step=on_step,
    )
    try:
        for result in epochs:
            say(result.describe(config))
            if result.is_best:
                save_model(partial_path, result.student, **metadata, epoch=result.epoch)
    except KeyboardInterrupt:
        if partial_path.exists():
            raise KeyboardInterrupt(f"the best weights so far are in {partial_path}") from None
        raise
    model = result.student
    model.load_state_dict(result.state["best_weights"])
    tested = evaluate(model, batches.test, config) if batches.test is not None else {}
    accuracies: dict[str, Any] = {
        "validation_accuracy": result.best_validation_accuracy,
        "test_accuracy": tested.get(config.metric),
    }
    save_model(out, model, **metadata, epoch=result.state["best_epoch"], **accuracies)
    partial_path.unlink()
    return accuracies
