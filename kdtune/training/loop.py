"""The training loop of teacher, plain student and every method; it writes no files.

Global random states are seeded with (seed, epoch), so that a resumed run needs none of its own.
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
from kdtune.methods import build_method
from kdtune.methods.method import Method
from kdtune.methods.student import StudentOnly
from kdtune.models import build_model, probe, stage_shapes
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.models.pretrained import load_pretrained
from kdtune.runtime.seeds import derive_seed

OnStep = Callable[[int, int, Tensor], None]
"""Called after a training step with (epoch, step in it from 1, loss)."""


@dataclass(frozen=True)
class EpochResult:
    """Metrics of one epoch, and the live objects behind them.

    Attributes:
        validation_loss: mean cross-entropy; this and the other values of validation are None
            without validation. Accuracies are shares of 1.
        validation_top_class_share: share of the images that get the most frequent answer.
        best_validation_accuracy: best of ``config.metric`` so far, this epoch included.
        losses: means of the named parts of the training loss.
        device: name of a GPU with the precision on it, or ``cpu``; see `DeviceModel.describe`.
        threads: CPU threads of torch; on a CPU, results depend on them in the last bit.
        student: the live network; the next epoch changes it.
        state: all that `fit` needs to resume, and ``best_weights``; its tensors are live, too.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    validation_balanced_accuracy: float | None
    validation_top_class_share: float | None
    best_validation_accuracy: float | None
    losses: dict[str, float]
    seconds: float
    device: str
    threads: int
    student: nn.Module
    state: dict[str, Any]

    @property
    def is_best(self) -> bool:
        """True if no earlier epoch was as accurate; always true without validation images."""
        return bool(self.state["best_epoch"] == self.epoch)

    def validation_score(self, config: TrainConfig) -> float | None:
        """Return the accuracy on validation by which `config` compares epochs."""
        score: float | None = getattr(self, f"validation_{config.metric}")
        return score

    def metrics(self) -> dict[str, Any]:
        """Return the numbers alone; ``loss_<part>`` is None if that part is not finite."""
        metrics = {name: getattr(self, name) for name in METRIC_NAMES}
        for loss_name, value in self.losses.items():
            metrics[f"loss_{loss_name}"] = value if math.isfinite(value) else None
        return metrics

    def describe(self, config: TrainConfig) -> str:
        """Describe the epoch of a run with these settings in one line."""
        best_mark = " *" if self.is_best else ""
        validation_text = ""
        if (score := self.validation_score(config)) is not None:
            label = "validation" if config.metric == "accuracy" else "balanced validation"
            validation_text = f"{label} {100 * score:.2f} %{best_mark}, "
        loss_text = f"epoch {self.epoch}/{config.epochs}: loss {self.train_loss:.4f}"
        return f"{loss_text}, {validation_text}{self.seconds:.1f} s"


_NO_METRICS = {"losses", "student", "state"}
METRIC_NAMES = [f.name for f in fields(EpochResult) if f.name not in _NO_METRICS]
"""Metrics of an epoch other than the parts of its loss."""


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
    """Train a student, one epoch for each result that is taken.

    Args:
        config: the run's settings.
        train_batches: batches (images, labels, targets or None), iterated over once per epoch, or
            a function of the epoch, from 1. Images are uint8 [B, 3, H, W] or normalised floats.
        validation_batches: compare epochs; without them the last epoch counts as the best.
        num_classes: K.
        teacher: computes the targets of batches without any; put into eval mode on the device.
        resume: `EpochResult.state` of an earlier run, which continues as if it never stopped.
        on_step: called after each training step.

    Raises:
        DivergedError: from the iterator, when a loss is no longer finite.
    """
    run = _Run(config, num_classes, teacher)
    if resume is not None:
        run.load_state(resume)
    return run.iter_epochs(train_batches, validation_batches, on_step)


class _Run:
    """Everything that training changes: networks, method, optimizer, and the best epoch so far."""

    def __init__(self, config: TrainConfig, num_classes: int, teacher: nn.Module | None):
        device = pick_device(config.device)
        self.config = config
        self.student = DeviceModel(build_student(config, num_classes), device, config)
        self.method = build_method_for_models(config, self.student.model, teacher).to(device)
        self.teacher = None
        if teacher is not None and self.method.uses_teacher:
            self.teacher = DeviceModel(teacher.eval(), device, config)
        parameters = [*self.student.model.parameters(), *self.method.parameters()]
        self.optimizer = build_optimizer(config, parameters)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "student": self.student.model, "method": self.method, "optimizer": self.optimizer,
        }  # fmt: skip
        self.progress: dict[str, Any] = {
            "epoch": 0, "best_validation_accuracy": None, "best_epoch": 0, "best_weights": {},
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        match_memory_format(self.optimizer)
        self.progress = {key: state[key] for key in self.progress}

    def state(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {**self.progress, **parts}

    def iter_epochs(
        self,
        train_batches: TrainingBatches,
        validation_batches: Iterable[Batch] | None,
        on_step: OnStep | None,
    ) -> Iterator[EpochResult]:
        classification = StudentOnly(self.config, [], None)
        models = self.student, self.teacher, self.method
        for epoch in range(self.progress["epoch"] + 1, self.config.epochs + 1):
            batches = train_batches(epoch) if callable(train_batches) else train_batches
            started = time.perf_counter()  # building or waiting for arrays does not count
            seed_epoch(self.config, epoch)
            lr = learning_rate(self.config, epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.method.epoch = epoch
            train = run_epoch(*models, batches, self.optimizer, on_step)
            _require_finite_loss(epoch, "training", train["loss"])
            validation: dict[str, float] = {}
            if validation_batches is not None:
                validation = run_epoch(self.student, None, classification, validation_batches)
                _require_finite_loss(epoch, "validation", validation["loss"])
            self.progress["epoch"] = epoch
            score = validation.get(self.config.metric)
            best = self.progress["best_validation_accuracy"]
            if score is None or best is None or score > best:
                weights = self.student.model.state_dict()
                self.progress |= {"best_validation_accuracy": score, "best_epoch": epoch}
                self.progress["best_weights"] = {k: v.clone() for k, v in weights.items()}
            yield EpochResult(
                epoch=epoch,
                lr=lr,
                train_loss=train.pop("loss"),
                train_accuracy=train.pop("accuracy"),
                validation_loss=validation.get("loss"),
                validation_accuracy=validation.get("accuracy"),
                validation_balanced_accuracy=validation.get("balanced_accuracy"),
                validation_top_class_share=validation.get("top_class_share"),
                best_validation_accuracy=self.progress["best_validation_accuracy"],
                losses=train,
                seconds=time.perf_counter() - started,
                device=self.student.describe(),
                threads=torch.get_num_threads(),
                student=self.student.model,
                state=self.state(),
            )


def _require_finite_loss(epoch: int, name: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"epoch {epoch}: the {name} loss became {loss}")


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Return lr · gamma^((epoch − 1) div step_size).

    Args:
        config: gives lr, gamma and step_size.
        epoch: from 1.
    """
    return config.lr * config.gamma ** ((epoch - 1) // config.step_size)


def build_student(config: TrainConfig, num_classes: int) -> nn.Module:
    """Build the student, with initial weights that depend on `config.seed` and on no method.

    Args:
        config: gives model, image size, seed and pretrained weights.
        num_classes: K.
    """
    torch.manual_seed(derive_seed(config.seed, "student"))
    model = build_model(config.model, num_classes, config.image_size)
    if config.weights is not None:
        load_pretrained(model, config.model, config.weights, num_classes)
    return model


def seed_epoch(config: TrainConfig, epoch: int) -> None:
    """Seed the global random states for an epoch.

    Args:
        config: gives the seed.
        epoch: from 1.
    """
    seed = derive_seed(config.seed, "epoch", epoch)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def build_method_for_models(
    config: TrainConfig, student: nn.Module, teacher: nn.Module | None
) -> Method:
    """Build the method of a run, with initial weights that depend on `config.seed`.

    Args:
        config: the run's settings.
        student: returns logits and features.
        teacher: likewise; None without one.
    """
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    logits, features = probe(student, image)
    teacher_shapes = None
    if teacher is not None:
        teacher_logits, teacher_features = probe(teacher, image)
        known, own = teacher_logits.shape[1], logits.shape[1]
        if known != own:
            raise UserError(f"The teacher knows {known} classes, but the student has {own}.")
        teacher_shapes = stage_shapes(teacher_features)
    torch.manual_seed(derive_seed(config.seed, "method"))
    return build_method(config, stage_shapes(features), teacher_shapes)


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.SGD:
    """Build the SGD of a run.

    Args:
        config: gives learning rate, momentum and weight decay.
        parameters: those of student and method.
    """
    optimizer = torch.optim.SGD(
        parameters, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True
    )
    # Fused SGD fails when only some parameters have a momentum yet, as after a hint stage;
    # starting all of them from zero gives the same numbers.
    if config.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's buffers their parameters' memory format, as fused steps require."""
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
    """Run one pass over all batches, training if there is an optimizer.

    Args:
        student: put into train mode, or into eval mode without an optimizer.
        teacher: computes the targets of batches without any; None without one.
        method: computes the loss.
        batches: see `fit`.
        optimizer: of the parameters of student and method; None evaluates.
        on_step: called after each step.

    Returns:
        Means over the images: ``loss``, its named parts, and ``accuracy`` (share of 1). Without an
        optimizer also ``balanced_accuracy``, the mean recall of the classes that occur, and
        ``top_class_share``, the share of the images that get the most frequent answer.
    """
    student.model.train(optimizer is not None)
    method.train(optimizer is not None)
    totals: dict[str, Tensor] = {}  # sums stay on the device, so that no step waits for a number
    correct, count = torch.zeros((), device=student.device, dtype=torch.int64), 0
    class_counts: Tensor | None = None
    with torch.set_grad_enabled(optimizer is not None):
        for step, (images, labels, targets) in enumerate(batches, start=1):
            images = normalise(images.to(student.device, non_blocking=True))
            labels = labels.to(student.device, non_blocking=True)
            if targets is not None:
                targets = {
                    name: value.to(student.device, torch.float32, non_blocking=True)
                    for name, value in targets.items()
                }
            elif teacher is not None:
                with torch.no_grad():
                    targets = method.targets(*teacher(images))
            logits, features = student(images)
            parts = method(logits, features, targets, labels)
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(parts["loss"])
                optimizer.step()
            for name, value in parts.items():
                totals[name] = totals.get(name, 0) + value.detach() * len(labels)
            predicted = logits.argmax(1)
            correct += (predicted == labels).sum()
            count += len(labels)
            if optimizer is None:
                counts = _count_by_class(labels, predicted, logits.shape[1])
                class_counts = counts if class_counts is None else class_counts + counts
            if on_step is not None:
                on_step(method.epoch, step, parts["loss"])
    if not count:
        raise UserError("There are no images: the loader gave no batch.")
    means = {name: total.item() / count for name, total in totals.items()}
    means["accuracy"] = correct.item() / count
    return means if class_counts is None else means | _class_metrics(class_counts)


def _count_by_class(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Return by class: images, correct answers, answers; int64 [3, K], without a wait for it."""
    classes = torch.arange(num_classes, device=labels.device)
    is_label, is_answer = labels[:, None] == classes, predicted[:, None] == classes
    return torch.stack([is_label.sum(0), (is_label & is_answer).sum(0), is_answer.sum(0)])


def _class_metrics(class_counts: Tensor) -> dict[str, float]:
    """Return the values that `run_epoch` gives without an optimizer only."""
    images, correct, answers = class_counts.cpu().double()
    recalls = correct[images > 0] / images[images > 0]
    share = (answers.max() / images.sum()).item()
    return {"balanced_accuracy": recalls.mean().item(), "top_class_share": share}


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], config: TrainConfig) -> Tensor:
    """Return the predicted class of each image: int64 [N], on the CPU.

    Args:
        model: returns logits and features; it is put into eval mode.
        batches: see `fit`.
        config: gives device and precision.
    """
    network = DeviceModel(model.eval(), pick_device(config.device), config)
    logits = (network(normalise(images.to(network.device)))[0] for images, _, _ in batches)
    return torch.cat([values.argmax(1).cpu() for values in logits])


def evaluate(model: nn.Module, batches: Iterable[Batch], config: TrainConfig) -> dict[str, float]:
    """Return ``loss`` (mean cross-entropy), ``accuracy`` and ``balanced_accuracy`` (shares of 1).

    Args:
        model: returns logits and features; it is put into eval mode.
        batches: see `fit`.
        config: gives device and precision.
    """
    device_model = DeviceModel(model, pick_device(config.device), config)
    metrics = run_epoch(device_model, None, StudentOnly(config, [], None), batches)
    return {name: metrics[name] for name in ("loss", "accuracy", "balanced_accuracy")}
