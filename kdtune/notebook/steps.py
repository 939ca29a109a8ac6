"""What the notebook faces of the methods share: one step, one epoch, one evaluation.

`train_at` and `train_fitnets` need none of it. It is for those who write the loop over the epochs
themselves; each function is a piece of THE loop, so a loop made of them gives its numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from kdtune.config.train import OUTPUT_FIELDS, TrainConfig
from kdtune.data.loaders import CheckedLoader, Loader
from kdtune.data.transforms import normalise
from kdtune.errors import UserError
from kdtune.methods import Method
from kdtune.methods.method import TensorsByName
from kdtune.models import count_classes, require_model
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.runtime.device import visible_gpus
from kdtune.training.loop import (
    build_method_for_models,
    compute_batch_loss,
    evaluate,
    match_memory_format,
    place_teacher,
    run_epoch,
    seed_epoch,
)
from kdtune.training.teacher import load_teacher


@dataclass
class _MethodState:
    """A student's method, with the layers that it adds, and for what it was built."""

    method: Method
    settings: dict[str, Any]
    teacher_ref: ref[nn.Module]


_METHOD_STATES: WeakKeyDictionary[nn.Module, _MethodState] = WeakKeyDictionary()
_EPOCH_COUNTS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""What a student keeps from call to call, for as long as it lives: its lesson, its epochs."""


def create_method_config(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Complete settings of a run of `method`; see `create_at_config`."""
    config = TrainConfig.for_method(method, settings)
    require_model(config.model)
    return config.model_dump()


def load_teacher_model(
    teacher_path: str | Path, num_classes: int | None = None, device: str | torch.device = "auto"
) -> nn.Module:
    """Load a teacher in eval mode, without gradients.

    Args:
        teacher_path: a checkpoint of kdtune's, or a `state_dict` of a ResNet of torchvision's;
            see `load_model`.
        num_classes: K; None accepts what the teacher knows.
        device: where it goes.

    Raises:
        UserError: the file holds no network that can be a teacher, or one for other classes.
    """
    return load_teacher(teacher_path, num_classes=num_classes).to(pick_device(str(device)))


def method_parameters(
    student_model: nn.Module, teacher_model: nn.Module, config: TrainConfig
) -> list[nn.Parameter]:
    """Parameters of the layers that the method adds; see `regressor_parameters`."""
    return list(_prepare_step(student_model, teacher_model, config)[2].parameters())


def compute_loss(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
) -> TensorsByName:
    """The loss of one batch, with gradients for the student; see `compute_at_loss`."""
    student, teacher, method = _prepare_step(student_model, teacher_model, config)
    method.train(student_model.training)
    [(images, labels, _)] = _wrap_loader([(x, y)], "(x, y)", student_model, config)
    images, labels = normalise(images.to(student.device)), labels.to(student.device)
    return compute_batch_loss(student, teacher, method, images, labels)[1]


def train_epoch(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    train_loader: Loader,
    optimizer: torch.optim.Optimizer,
    device: str | torch.device,
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Train for one epoch.

    Layers that the method adds (FitNets' regressor) belong to the student, live as long as it,
    and are trained along: their parameters are added to the optimizer, with the settings of its
    first group, where they are missing. A scheduler that counts groups wants them there from the
    start: see `kdtune.fitnets.regressor_parameters`. The epochs of a student are counted from its
    first one here; `config["seed"]` and that number fix the epoch's random states, as in
    `train_at`.

    Args:
        student_model: returns logits and features; moved to the device and put into train mode.
        teacher_model: likewise, in eval mode; None trains on the labels alone.
        train_loader: batches (images [B, 3, H, W], labels [B]).
        optimizer: of the student's parameters; its learning rate is the caller's to change.
        device: where to train; it counts, not the config's.
        config: complete settings, as `create_at_config` and `create_fitnets_config` make them.

    Returns:
        Means over the images: ``loss``, its parts (``classification``, ``kd``, ``kd_weighted``,
        ...) and ``accuracy`` (share of 1).

    Raises:
        UserError: the settings, the loader or the networks are no good.
    """
    settings = _parse_config(config, device)
    student, teacher, method = _prepare_step(student_model, teacher_model, settings)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := [p for p in method.parameters() if id(p) not in optimized]:
        optimizer.add_param_group({**optimizer.param_groups[0], "params": missing})
    match_memory_format(optimizer)
    method.epoch = _EPOCH_COUNTS.get(student_model, 0) + 1
    seed_epoch(settings, method.epoch)
    batches = _wrap_loader(train_loader, "train_loader", student_model, settings, training=True)
    metrics = run_epoch(student, teacher, method, batches, optimizer)
    _EPOCH_COUNTS[student_model] = method.epoch
    return metrics


def validate(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    val_loader: Loader,
    device: str | torch.device,
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Measure what `train_epoch` minimises on images that are not learned from.

    Args:
        student_model: see `train_epoch`; put into eval mode.
        teacher_model: see `train_epoch`; None measures the classification alone.
        val_loader: batches (images [B, 3, H, W], labels [B]).
        device: where to compute; it counts, not the config's.
        config: see `train_epoch`.

    Returns:
        As `train_epoch`; ``classification`` is what a run calls its validation loss.

    Raises:
        UserError: the settings, the loader or the networks are no good.
    """
    settings = _parse_config(config, device)
    student, teacher, method = _prepare_step(student_model, teacher_model, settings)
    batches = _wrap_loader(val_loader, "val_loader", student_model, settings)
    return run_epoch(student, teacher, method, batches)


def evaluate_model(
    model: nn.Module,
    test_loader: Loader,
    device: str | torch.device | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Measure a network on labelled images.

    Args:
        model: returns logits and features; moved to the device and put into eval mode.
        test_loader: batches (images [B, 3, H, W], labels [B]).
        device: where to compute; if not given, the config's.
        config: settings of the run that the model comes from, for device and precision.

    Returns:
        ``loss`` (mean cross-entropy) and ``accuracy`` (share of 1).

    Raises:
        UserError: the settings or the loader are no good.
    """
    settings = TrainConfig.parse({**(config or {}), **({"device": str(device)} if device else {})})
    num_classes = count_classes(model, settings.image_size)
    return evaluate(
        model, CheckedLoader(test_loader, "test_loader", num_classes=num_classes), settings
    )


def _parse_config(config: Mapping[str, Any], device: str | torch.device) -> TrainConfig:
    if "method" not in config:
        raise UserError(
            "The config does not name its method; make it with create_at_config or "
            "create_fitnets_config."
        )
    return TrainConfig.parse({**config, "device": str(device)})


def _wrap_loader(
    loader: Loader, name: str, student: nn.Module, config: TrainConfig, training: bool = False
) -> CheckedLoader:
    num_classes = count_classes(student, config.image_size)
    return CheckedLoader(loader, name, config.image_size, num_classes, training)


def _prepare_step(
    student: nn.Module, teacher: nn.Module | None, config: TrainConfig
) -> tuple[DeviceModel, DeviceModel | None, Method]:
    """Put networks where they run, and find the method that belongs to them."""
    if teacher is student:
        raise UserError("The student cannot be its own teacher: give two networks.")
    device = pick_device(config.device)
    method = _find_or_build_method(student, teacher, config).to(device)
    teacher_on_device = place_teacher(method, teacher, device, config)
    return DeviceModel(student, device, config), teacher_on_device, method


def _find_or_build_method(
    student: nn.Module, teacher: nn.Module | None, config: TrainConfig
) -> Method:
    """The student's method, at its last epoch: kept while teacher and settings are the same.

    With other settings a new one takes over the layers of the old one, as long as they fit.
    Without a teacher there are no layers, and nothing is kept.
    """
    settings = config.model_dump(exclude=OUTPUT_FIELDS | {"device"})
    state = _METHOD_STATES.get(student) if teacher is not None else None
    if state is not None and state.teacher_ref() is not teacher:
        state = None
    if state is not None and state.settings == settings:
        method = state.method
    else:
        with torch.random.fork_rng(devices=visible_gpus()):
            method = build_method_for_models(config, student, teacher)
        if state is not None and _have_same_layers(method, state.method):
            for name, layer in state.method.named_children():
                setattr(method, name, layer)
        if teacher is not None:
            _METHOD_STATES[student] = _MethodState(method, settings, ref(teacher))
    method.epoch = max(1, _EPOCH_COUNTS.get(student, 0))
    return method


def _have_same_layers(a: Method, b: Method) -> bool:
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (a, b)]
    return type(a) is type(b) and shapes[0] == shapes[1]
