"""The training loop of teacher, plain student and every method; it writes no files.

Global random states are seeded with (seed, epoch), so that a resumed run needs none of its own.
"""

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batch, TrainingBatches
from kdtune.errors import DivergedError, UserError
from kdtune.methods import build_method
from kdtune.methods.method import Method
from kdtune.methods.student import StudentOnly
from kdtune.models import build_model, probe, stage_shapes
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.models.pretrained import load_pretrained
from kdtune.runtime.device import is_gpu
from kdtune.runtime.seeds import derive_seed
from kdtune.training.cuda_graph import CudaGraphRecorder, GraphedStep
from kdtune.training.ema import ModelEma
from kdtune.training.epoch import OnStep, evaluate_epoch, train_epoch
from kdtune.training.optimizer import build_optimizer, learning_rate, match_memory_format
from kdtune.training.step import RunNetwork, TrainingStep


@dataclass(frozen=True)
class EpochResult:
    """Metrics of one epoch, and the live objects behind them.

    Attributes:
        validation_loss: mean cross-entropy; this and the other values of validation are None
            without validation. Accuracies are shares of 1.
        validation_top_class_share: share of the images that get the most frequent answer.
        best_validation_accuracy: best of ``config.metric`` so far, this epoch included; 0 in a
            hint stage, whose epochs do not count.
        losses: means of the named parts of the training loss.
        device: name of a GPU with the precision on it, or ``cpu``; see `DeviceModel.describe`.
        threads: CPU threads of torch; on a CPU, results depend on them in the last bit.
        student: the live network that was validated, with `ema_decay` the average; the next epoch
            changes it.
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

    def is_last(self, config: TrainConfig) -> bool:
        """Return True if no epoch follows in a run with these settings."""
        waited = self.epoch - max(self.state["best_epoch"], config.hint_epochs)
        return self.epoch == config.epochs or 0 < config.patience <= waited

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
        stops = self.is_last(config) and self.epoch < config.epochs
        end = f"; the last one, since no better one came for {config.patience} epochs" * stops
        return f"{loss_text}, {validation_text}{self.seconds:.1f} s{end}"


_NO_METRICS = {"losses", "student", "state"}
METRIC_NAMES = [f.name for f in fields(EpochResult) if f.name not in _NO_METRICS]
"""Metrics of an epoch other than the parts of its loss."""


def fit(
    config: TrainConfig,
    train_batches: TrainingBatches,
    validation_batches: Iterable[Batch] | None,
    *,
    num_classes: int,
    class_counts: Sequence[int] | None = None,
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
        class_counts: training images by class, which balanced class weights need.
        teacher: computes the targets of batches without any; put into eval mode on the device.
        resume: `EpochResult.state` of an earlier run, which continues as if it never stopped.
        on_step: called after each training step, see `OnStep`.

    Raises:
        DivergedError: from the iterator, when a loss is no longer finite.
    """
    run = _Run(config, num_classes, teacher)
    if config.class_weights == "balanced":
        run.balance_classes(class_counts)
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
        self.teacher: RunNetwork | None = None
        if teacher is not None and self.method.uses_teacher:
            # Placed on the device when a batch needs it: if all targets are cached, none does.
            place_teacher = cache(partial(DeviceModel, teacher.eval(), device, config))
            self.teacher = lambda images: place_teacher()(images)
        parameters = [*self.student.model.parameters(), *self.method.parameters()]
        self.optimizer = build_optimizer(config, parameters)
        networks = self.student, self.teacher, self.method, self.optimizer
        self.step = TrainingStep(*networks)
        if is_gpu(device) and config.cuda_graph:
            self.step = GraphedStep(*networks, CudaGraphRecorder(device))
        self.validated = self.student
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "student": self.student.model, "method": self.method, "optimizer": self.optimizer,
        }  # fmt: skip
        if config.ema_decay:
            self.step.ema = ModelEma(self.student.model, config.ema_decay)
            self.validated = DeviceModel(self.step.ema.model, device, config)
            self.parts |= {"student": self.validated.model, "trained_student": self.student.model}
        self.progress: dict[str, Any] = {
            "epoch": 0, "best_validation_accuracy": None, "best_epoch": 0, "best_weights": {},
        }  # fmt: skip

    def balance_classes(self, class_counts: Sequence[int] | None) -> None:
        if class_counts is None:
            raise UserError("class_weights balanced needs the images of data_dir, not a loader.")
        counts = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
        self.method.class_weights = (counts.mean() / counts).to(self.student.device)

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        if self.step.scaler.is_enabled() and state["scaler"]:
            self.step.scaler.load_state_dict(state["scaler"])
        match_memory_format(self.optimizer)
        for group in self.optimizer.param_groups:  # the state may come from another device
            if "capturable" in group:
                group["capturable"] = self.student.device.type == "cuda"
        if self.step.ema is not None:
            self.step.ema.steps = state["ema_steps"]
        self.progress = {key: state[key] for key in self.progress}

    def state(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        ema = {} if self.step.ema is None else {"ema_steps": self.step.ema.steps}
        return {**self.progress, **parts, **ema, "scaler": self.step.scaler.state_dict()}

    def iter_epochs(
        self,
        train_batches: TrainingBatches,
        validation_batches: Iterable[Batch] | None,
        on_step: OnStep | None,
    ) -> Iterator[EpochResult]:
        classification = StudentOnly(self.config, [], None)
        hint_epochs = self.config.hint_epochs if self.method.has_hint_stage else 0
        for epoch in range(self.progress["epoch"] + 1, self.config.epochs + 1):
            batches = train_batches(epoch) if callable(train_batches) else train_batches
            started = time.perf_counter()  # building or waiting for arrays does not count
            seed_epoch(self.config, epoch)
            lr = learning_rate(self.config, epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.method.epoch = epoch
            train = train_epoch(self.step, batches, on_step)
            _require_finite_loss(epoch, "training", train["loss"])
            validation: dict[str, float] = {}
            if validation_batches is not None:
                validation = evaluate_epoch(
                    self.validated, None, classification, validation_batches
                )
                _require_finite_loss(epoch, "validation", validation["loss"])
            self.progress["epoch"] = epoch
            score = validation.get(self.config.metric)
            if score is not None and epoch <= hint_epochs:
                score = 0.0  # of a classifier that is not trained yet
            best = self.progress["best_validation_accuracy"]
            if score is None or best is None or score > best:
                weights = self.validated.model.state_dict()
                self.progress |= {"best_validation_accuracy": score, "best_epoch": epoch}
                self.progress["best_weights"] = {k: v.clone() for k, v in weights.items()}
            result = EpochResult(
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
                student=self.validated.model,
                state=self.state(),
            )
            yield result
            if result.is_last(self.config):
                return


def _require_finite_loss(epoch: int, name: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"epoch {epoch}: the {name} loss became {loss}")


def build_student(config: TrainConfig, num_classes: int) -> nn.Module:
    """Build the student, with initial weights that depend on `config.seed` and on no method.

    Args:
        config: gives model, image size, seed and pretrained weights.
        num_classes: K.
    """
    torch.manual_seed(derive_seed(config.seed, "student"))
    model = build_model(config.model, num_classes, config.image_size, rates=config.dropout_rates)
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
