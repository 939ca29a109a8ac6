"""THE loop. One generator trains the teacher, the plain student and every method alike.

It hands numbers back after each epoch and writes nothing; callers decide what to do with them.
Everything random in an epoch follows from (seed, epoch), so a run that goes on from a checkpoint
needs no random state. For that it seeds torch's, numpy's and Python's global random states.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch, TrainingBatches
from kdtune.data.transforms import normalise
from kdtune.errors import DivergedError, UserError
from kdtune.methods import Method, build_method
from kdtune.methods.method import TensorsByName
from kdtune.methods.student import StudentOnly
from kdtune.models import build_model, probe, stage_shapes
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.models.pretrained import load_pretrained
from kdtune.runtime.seeds import derive_seed


@dataclass(frozen=True)
class EpochResult:
    """One epoch in numbers, and the live objects behind them.

    Attributes:
        epoch: from 1.
        lr: learning rate during the epoch.
        train_loss: mean of the method's loss over the training images.
        train_accuracy: share of the training images that were classified rightly on the way.
        validation_loss: mean cross-entropy; None, as the next two, without validation images.
        validation_accuracy: share of 1.
        best_validation_accuracy: best so far, this epoch included.
        losses: means of the named parts of the training loss.
        seconds: training and validation together.
        device: where it ran.
        threads: CPU threads that torch used; on the CPU results depend on them in the last bit.
        student: the live network; the next epoch changes it.
        state: all that `fit` needs to go on, and ``best_weights``, those of the best epoch; it
            refers to live tensors, so save it before the next epoch is asked for.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    best_validation_accuracy: float | None
    losses: dict[str, float]
    seconds: float
    device: str
    threads: int
    student: nn.Module
    state: dict[str, Any]

    @property
    def is_best(self) -> bool:
        """Whether no earlier epoch was as accurate; true without validation images."""
        return self.state["best_epoch"] == self.epoch

    def metrics(self) -> dict[str, Any]:
        """The numbers alone, flat: ``loss_<part>`` for the parts of the loss, None if infinite."""
        metrics = {name: getattr(self, name) for name in METRIC_NAMES}
        for loss_name, value in self.losses.items():
            metrics[LOSS_PREFIX + loss_name] = value if math.isfinite(value) else None
        return metrics


LOSS_PREFIX = "loss_"
"""Prefix of the parts of the loss among the figures of an epoch."""

OnStep = Callable[[int, int, Tensor], None]
"""Takes (epoch, step in it, loss)."""

METRIC_NAMES = [
    f.name for f in fields(EpochResult) if f.name not in ("losses", "student", "state")
]
"""The other figures of an epoch."""


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """lr · gamma^((epoch − 1) div step_size), for epochs from 1."""
    return config.lr * config.gamma ** ((epoch - 1) // config.step_size)


def build_student(config: TrainConfig, num_classes: int) -> nn.Module:
    """Build the student with the weights that `config.seed` fixes, the same for every method.

    Raises:
        UserError: there is no such model, or the weights that it is to begin with are no good.
    """
    torch.manual_seed(derive_seed(config.seed, "student"))
    model = build_model(config.model, num_classes, config.image_size)
    if config.weights is not None:
        load_pretrained(model, config.model, config.weights, num_classes)
    return model


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Set the global random states to what `config.seed` fixes for an epoch."""
    seed = derive_seed(config.seed, "epoch", epoch)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def fit(
    config: TrainConfig,
    train_batches: TrainingBatches,
    validation_batches: Iterable[Batch] | None,
    *,
    num_classes: int,
    teacher: nn.Module | None = None,
    resume: dict[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[EpochResult]:
    """Train a student, one epoch each time a result is asked for.

    Args:
        config: the run's settings.
        train: batches (images, labels, targets or None); one `for` over it is one epoch. Images
            are uint8 [B, 3, H, W], or floats that the loader has normalised. Or a function that
            gives those of an epoch, from 1.
        validation: the same for the images on which epochs are compared; without any, the last
            epoch counts as the best.
        num_classes: K.
        teacher: asked for targets where a batch brings none; it is put into eval mode and
            moved to the device, and its weights and statistics stay as they are.
        resume: `EpochResult.state` of an earlier run with the same settings; the run goes on after
            that epoch as if it had never stopped.
        on_step: called after each step with the epoch, the step in it, from 1, and the loss.

    Returns:
        An iterator over the results of the epochs up to `config.epochs`; it raises a
        `DivergedError` when a loss is no longer finite.

    Raises:
        UserError: there is no such method, model or device, or the networks cannot be compared;
            at once, before anything is trained.
    """
    device = pick_device(config.device)
    student = DeviceModel(build_student(config, num_classes), device, config)
    method = build_method_for_models(config, student.model, teacher).to(device)
    teacher_on_device = place_teacher(method, teacher, device, config)
    optimizer = build_optimizer(config, [*student.model.parameters(), *method.parameters()])
    progress: dict[str, Any] = {
        "epoch": 0,
        "best_validation_accuracy": None,
        "best_epoch": 0,
        "best_weights": {},
    }
    if resume is not None:
        student.model.load_state_dict(resume["student"])
        method.load_state_dict(resume["method"])
        optimizer.load_state_dict(resume["optimizer"])
        match_memory_format(optimizer)
        progress = {key: resume[key] for key in progress}
    return _train_epochs(
        config,
        student,
        teacher_on_device,
        method,
        optimizer,
        progress,
        train_batches,
        validation_batches,
        on_step,
    )


def _train_epochs(
    config: TrainConfig,
    student: DeviceModel,
    teacher_on_device: DeviceModel | None,
    method: Method,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    train_batches: TrainingBatches,
    validation_batches: Iterable[Batch] | None,
    on_step: OnStep | None,
) -> Iterator[EpochResult]:
    classification_only = StudentOnly(config, [], None)
    for epoch in range(progress["epoch"] + 1, config.epochs + 1):
        batches = train_batches(epoch) if callable(train_batches) else train_batches
        started = time.perf_counter()  # views that are built or waited for are told elsewhere
        seed_epoch(config, epoch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch)
        method.epoch = epoch
        train_metrics = run_epoch(student, teacher_on_device, method, batches, optimizer, on_step)
        validation_metrics: dict[str, Any] = {"loss": None, "accuracy": None}
        if validation_batches is not None:
            validation_metrics = run_epoch(student, None, classification_only, validation_batches)
        for name, value in {
            "training": train_metrics["loss"],
            "validation": validation_metrics["loss"],
        }.items():
            if value is not None and not math.isfinite(value):
                raise DivergedError(f"epoch {epoch}: the {name} loss became {value}")
        progress["epoch"] = epoch
        best_accuracy = progress["best_validation_accuracy"]
        if best_accuracy is None or validation_metrics["accuracy"] > best_accuracy:
            weights = student.model.state_dict()
            progress |= {
                "best_validation_accuracy": validation_metrics["accuracy"],
                "best_epoch": epoch,
                "best_weights": {key: value.clone() for key, value in weights.items()},
            }
        yield EpochResult(
            epoch=epoch,
            lr=learning_rate(config, epoch),
            train_loss=train_metrics.pop("loss"),
            train_accuracy=train_metrics.pop("accuracy"),
            validation_loss=validation_metrics["loss"],
            validation_accuracy=validation_metrics["accuracy"],
            best_validation_accuracy=progress["best_validation_accuracy"],
            losses=train_metrics,
            seconds=time.perf_counter() - started,
            device=str(student.device),
            threads=torch.get_num_threads(),
            student=student.model,
            state={
                **progress,
                "student": student.model.state_dict(),
                "method": method.state_dict(),
                "optimizer": optimizer.state_dict(),
            },
        )


def build_method_for_models(
    config: TrainConfig, student: nn.Module, teacher: nn.Module | None
) -> Method:
    """Build a run's method for its networks, with the weights that `config.seed` fixes.

    Raises:
        UserError: the networks cannot be compared.
    """
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    logits, features = probe(student, image)
    teacher_shapes = None
    if teacher is not None:
        teacher_logits, teacher_features = probe(teacher, image)
        if (teacher_classes := teacher_logits.shape[1]) != (student_classes := logits.shape[1]):
            raise UserError(
                f"The teacher knows {teacher_classes} classes, but the student has {student_classes}."
            )
        teacher_shapes = stage_shapes(teacher_features)
    torch.manual_seed(derive_seed(config.seed, "method"))
    return build_method(config, stage_shapes(features), teacher_shapes)


def place_teacher(
    method: Method, teacher: nn.Module | None, device: torch.device, config: TrainConfig
) -> DeviceModel | None:
    """The teacher, in eval mode where it runs; None if there is none or the method needs none."""
    if teacher is None or not method.uses_teacher:
        return None
    return DeviceModel(teacher.eval(), device, config)


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.SGD:
    """SGD as every run has it."""
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # Fused SGD fails when only some parameters have a momentum yet, as after a hint stage;
    # starting all of them from zero gives the same numbers.
    if config.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimizer's buffers out in memory as its parameters are.

    Fused optimizers go through memory in order, so a buffer that was saved, or made, when the
    network had another memory format would be applied to the wrong weights.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def run_epoch(
    student: DeviceModel,
    teacher: DeviceModel | None,
    method: Method,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer | None = None,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Go through all batches once, and learn from them if there is an optimizer.

    Sums stay on the device until the end, so that no step waits for a number.

    Args:
        student: put into train mode, or into eval mode if there is no optimizer.
        teacher: asked for targets where a batch brings none; None without one.
        method: gives the loss; its epoch is the student's.
        batches: see `fit`.
        optimizer: of the student's parameters and the method's.
        on_step: see `fit`.

    Returns:
        Means over the images: ``loss``, its named parts, and ``accuracy`` (share of 1).

    Raises:
        UserError: there is no batch.
    """
    student.model.train(optimizer is not None)
    method.train(optimizer is not None)
    totals: dict[str, Tensor] = {}
    correct, count = torch.zeros((), device=student.device, dtype=torch.int64), 0
    with torch.set_grad_enabled(optimizer is not None):
        for step, (images, labels, targets) in enumerate(batches, start=1):
            images = normalise(images.to(student.device, non_blocking=True))
            labels = labels.to(student.device, non_blocking=True)
            if targets is not None:
                targets = {
                    name: value.to(student.device, torch.float32, non_blocking=True)
                    for name, value in targets.items()
                }
            logits, parts = compute_batch_loss(student, teacher, method, images, labels, targets)
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
                parts["loss"].backward()
                optimizer.step()
            for name, value in parts.items():
                totals[name] = totals.get(name, 0) + value.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
            if on_step is not None:
                on_step(method.epoch, step, parts["loss"])
    if not count:
        raise UserError("There are no images: the loader gave no batch.")
    means = {name: total.item() / count for name, total in totals.items()}
    return {**means, "accuracy": correct.item() / count}


def compute_batch_loss(
    student: DeviceModel,
    teacher: DeviceModel | None,
    method: Method,
    images: Tensor,
    labels: Tensor,
    targets: TensorsByName | None = None,
) -> tuple[Tensor, TensorsByName]:
    """The loss of one batch, on the student's device.

    Args:
        student: gives logits and features, with gradients if these are on.
        teacher: asked for targets if there are none; None without one.
        method: gives the loss.
        images: normalised floats [B, 3, H, W].
        labels: class indices [B].
        targets: the teacher's, where they were computed before.

    Returns:
        The student's logits [B, K], detached, and the loss with its parts.
    """
    if targets is None and teacher is not None:
        with torch.no_grad():
            targets = method.targets(*teacher(images))
    logits, features = student(images)
    return logits.detach(), method(logits, features, targets, labels)


def predict(model: nn.Module, batches: Iterable[Batch], config: TrainConfig) -> Tensor:
    """The class that a network gives each image: int64 [N], on the CPU. Args as `evaluate`."""
    device_model = DeviceModel(model.eval(), pick_device(config.device), config)
    with torch.no_grad():
        classes = [
            device_model(normalise(images.to(device_model.device)))[0].argmax(1).cpu()
            for images, _, _ in batches
        ]
    return torch.cat(classes)


def evaluate(model: nn.Module, batches: Iterable[Batch], config: TrainConfig) -> dict[str, float]:
    """Measure a network.

    Args:
        model: returns logits and features; it is put into eval mode.
        batches: as for `fit`.
        config: gives device and precision.

    Returns:
        ``loss`` (mean cross-entropy) and ``accuracy`` (share of 1).
    """
    device_model = DeviceModel(model, pick_device(config.device), config)
    metrics = run_epoch(device_model, None, StudentOnly(config, [], None), batches)
    return {"loss": metrics["loss"], "accuracy": metrics["accuracy"]}
