"""Passes over the batches of an epoch: training, evaluation and predictions."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch, move_batch
from kdtune.errors import UserError
from kdtune.methods.method import Method
from kdtune.methods.student import StudentOnly
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.training.cuda_graph import use_stream
from kdtune.training.step import MetricSums, RunNetwork, TrainingStep, compute_parts

OnStep = Callable[[int, int, Tensor], None]
"""Called after a training step with (epoch, step in it from 1, loss); the next one changes it."""


def train_epoch(
    step: TrainingStep, batches: Iterable[Batch], on_step: OnStep | None = None
) -> dict[str, float]:
    """Train on all batches; return the means of the step's metrics over the images.

    Args:
        step: trains on a batch.
        batches: see `kdtune.training.loop.fit`.
        on_step: called after each step.

    Returns:
        ``loss``, its named parts, and ``accuracy`` (share of 1).
    """
    step.start_epoch()
    count = 0
    with use_stream(step.stream):
        for number, batch in enumerate(batches, start=1):
            images, labels, targets = move_batch(batch, step.student.device)
            loss = step(images, labels, targets)
            count += len(labels)
            if on_step is not None:
                on_step(step.method.epoch, number, loss)
    _require_images(count)
    if step.ema is not None:
        step.ema.steps += number
    return step.sums.means(count)


@torch.no_grad()
def evaluate_epoch(
    student: DeviceModel, teacher: RunNetwork | None, method: Method, batches: Iterable[Batch]
) -> dict[str, float]:
    """Compute the loss of all batches, and return means of metrics over the images.

    Args:
        student: put into eval mode.
        teacher: computes the targets of batches without any; None without one.
        method: computes the loss; put into eval mode.
        batches: see `kdtune.training.loop.fit`.

    Returns:
        ``loss``, its named parts, ``accuracy`` (share of 1), ``balanced_accuracy``, the mean
        recall of the classes that occur, and ``top_class_share``, the share of the images that
        get the most frequent answer.
    """
    student.model.eval()
    method.eval()
    sums, count, class_counts = MetricSums(), 0, list[Tensor]()
    for batch in batches:
        images, labels, targets = move_batch(batch, student.device)
        logits, parts = compute_parts(student, teacher, method, images, labels, targets)
        sums.add(parts, logits, labels)
        class_counts.append(_count_by_class(labels, logits.argmax(1), logits.shape[1]))
        count += len(labels)
    _require_images(count)
    return sums.means(count) | _class_metrics(torch.stack(class_counts).sum(0))


def _require_images(count: int) -> None:
    if not count:
        raise UserError("There are no images: the loader gave no batch.")


def _count_by_class(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Return by class: images, correct answers, answers; int64 [3, K], without a wait for it."""
    classes = torch.arange(num_classes, device=labels.device)
    is_label, is_answer = labels[:, None] == classes, predicted[:, None] == classes
    return torch.stack([is_label.sum(0), (is_label & is_answer).sum(0), is_answer.sum(0)])


def _class_metrics(class_counts: Tensor) -> dict[str, float]:
    images, correct, answers = class_counts.cpu().double()
    recalls = correct[images > 0] / images[images > 0]
    share = (answers.max() / images.sum()).item()
    return {"balanced_accuracy": recalls.mean().item(), "top_class_share": share}


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], config: TrainConfig) -> Tensor:
    """Return the predicted class of each image: int64 [N], on the CPU.

    Args:
        model: returns logits and features; it is put into eval mode.
        batches: see `kdtune.training.loop.fit`.
        config: gives device and precision.
    """
    network = DeviceModel(model.eval(), pick_device(config.device), config)
    logits = (network(images.to(network.device))[0] for images, _, _ in batches)
    return torch.cat([values.argmax(1).cpu() for values in logits])


def evaluate(model: nn.Module, batches: Iterable[Batch], config: TrainConfig) -> dict[str, float]:
    """Return ``loss`` (mean cross-entropy), ``accuracy`` and ``balanced_accuracy`` (shares of 1).

    Args:
        model: returns logits and features; it is put into eval mode.
        batches: see `kdtune.training.loop.fit`.
        config: gives device and precision.
    """
    device_model = DeviceModel(model, pick_device(config.device), config)
    metrics = evaluate_epoch(device_model, None, StudentOnly(config, [], None), batches)
    return {name: metrics[name] for name in ("loss", "accuracy", "balanced_accuracy")}
