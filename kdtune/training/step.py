"""A training step, and the sums of its metrics, which no step waits for."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdtune.errors import UserError
from kdtune.methods.method import Method, TensorsByName, class_indices
from kdtune.models.on_device import DeviceModel
from kdtune.training.ema import ModelEma

RunNetwork = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""Returns logits [B, K] and feature maps of images, such as a `DeviceModel`."""


class MetricSums:
    """Sums over images of the parts of a loss and of correct answers, on the device."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, parts: TensorsByName, logits: Tensor, labels: Tensor) -> None:
        """Add a batch, to tensors that the first batch makes.

        Args:
            parts: the loss and its parts, scalars; the same names in every batch.
            logits: [B, K].
            labels: class indices [B], or shares of the classes [B, K].
        """
        values = torch.stack([value.detach() for value in parts.values()]) * len(labels)
        correct = (logits.argmax(1) == class_indices(labels)).sum()
        if self._sums is None:
            self._names = list(parts)
            self._sums = torch.zeros_like(values), torch.zeros_like(correct)
        if self._names != list(parts):
            raise UserError(
                "The parts of a loss must be the same in every batch; they were "
                f"{', '.join(self._names)}, and are now {', '.join(parts)}."
            )
        for total, value in zip(self._sums, (values, correct), strict=True):
            total.add_(value)

    def means(self, count: int) -> dict[str, float]:
        """Wait for the sums of `count` images; return the means of the parts, and ``accuracy``."""
        assert self._sums is not None
        sums, correct = self._sums
        means = [total / count for total in sums.tolist()]
        return {**dict(zip(self._names, means, strict=True)), "accuracy": correct.item() / count}


def compute_parts(
    student: DeviceModel,
    teacher: RunNetwork | None,
    method: Method,
    images: Tensor,
    labels: Tensor,
    targets: TensorsByName | None,
) -> tuple[Tensor, TensorsByName]:
    """Return the student's logits [B, K], and the loss of a batch with its parts.

    Args:
        student: in train or eval mode.
        teacher: computes the targets if there are none; None without one.
        method: computes the loss.
        images: uint8 [B, 3, H, W], or normalised floats.
        labels: class indices [B], or shares of the classes [B, K].
        targets: the teacher's, by name.
    """
    if targets is not None:
        targets = {name: value.float() for name, value in targets.items()}
    elif teacher is not None:
        with torch.no_grad():
            targets = method.targets(*teacher(images))
    logits, features = student(images)
    return logits, method(logits, features, targets, labels)


def make_scaler(student: DeviceModel) -> torch.amp.GradScaler:
    """Return a gradient scaler, which is on if the student computes in float16."""
    return torch.amp.GradScaler(student.device.type, enabled=student.needs_grad_scaler)


@dataclass(eq=False)
class TrainingStep:
    """A step of training on a batch.

    After the first batch of an epoch it reads and changes only tensors that exist already, and no
    state of Python. `GraphedStep` can therefore record and repeat it.

    Attributes:
        student: in train mode when called.
        teacher: computes the targets of batches without any; None without one.
        optimizer: of the parameters of student and method.
        scaler: keeps the gradients of float16 from vanishing; does nothing in other precisions.
        stream: CUDA stream on which the steps of an epoch run; None is the usual one.
        ema: follows the student's weights after each step; None keeps no average.
        sums: metrics of the epoch.
    """

    student: DeviceModel
    teacher: RunNetwork | None
    method: Method
    optimizer: torch.optim.Optimizer
    stream: torch.cuda.Stream | None = field(default=None, init=False)
    ema: ModelEma | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.scaler, self.sums = make_scaler(self.student), MetricSums()

    def start_epoch(self) -> None:
        """Put student and method into train mode, and start new sums."""
        self.student.model.train()
        self.method.train()
        if self.ema is not None:
            self.ema.start_epoch()
        self.sums = MetricSums()

    def __call__(self, images: Tensor, labels: Tensor, targets: TensorsByName | None) -> Tensor:
        """Train on a batch on the student's device, and return its loss."""
        models = self.student, self.teacher, self.method
        logits, parts = compute_parts(*models, images, labels, targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(parts["loss"]))
        if max_norm := self.method.config.gradient_clip_val:
            self.scaler.unscale_(self.optimizer)
            groups = self.optimizer.param_groups
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()
        self.sums.add(parts, logits, labels)
        return parts["loss"].detach()
