"""Steps of a run for a loop over epochs of one's own, with the training loop's numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from kdtune.config.train import LOADED_DATA_FIELDS, OUTPUT_FIELDS, TrainConfig
from kdtune.data.loaders import CheckedLoader, Loader
from kdtune.data.transforms import normalise
from kdtune.errors import UserError
from kdtune.methods.method import Method, TensorsByName
from kdtune.models import count_classes, probe, require_model
from kdtune.models.feature_maps import with_feature_maps
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.runtime.console import say
from kdtune.runtime.device import visible_gpus
from kdtune.training import epoch, loop
from kdtune.training.optimizer import match_memory_format
from kdtune.training.step import TrainingStep, compute_parts
from kdtune.training.teacher import load_teacher

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class StudentProgress:
    """Values that `train_epoch` and `compute_loss` keep of a student from call to call.

    Attributes:
        epoch: last epoch that `train_epoch` trained, from 1; 0 before the first.
        method: the method with its layers, such as a regressor; None before a teacher was used.
    """

    epoch: int = 0
    method: Method | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    teacher: ref[nn.Module] | None = None


_PROGRESS: WeakKeyDictionary[nn.Module, StudentProgress] = WeakKeyDictionary()


def student_progress(student_model: nn.Module) -> StudentProgress:
    """Return the progress of a student; set its `epoch` to continue after another epoch."""
    return _PROGRESS.setdefault(student_model, StudentProgress())


def dump_settings(config: TrainConfig) -> dict[str, Any]:
    """Return complete settings as a dict, after a check that there is their student."""
    require_model(config.model)
    return config.model_dump()


def parse_settings(
    method: str, defaults: Mapping[str, Any], settings: Mapping[str, Any]
) -> TrainConfig:
    """Return the settings of a run; those that are not given are a user's defaults.

    Args:
        method: name of its method.
        defaults: `DEFAULT_CONFIG` of its module, in which a user may have changed values.
        settings: settings that differ from the defaults.
    """
    return TrainConfig.for_method(method, {**_changed(method, defaults), **settings})


def _changed(method: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    original = TrainConfig.for_method(method, {}).model_dump()
    return {k: v for k, v in defaults.items() if k not in original or original[k] != v}


def with_defaults(
    step: Callable[P, T], method: str, defaults: Mapping[str, Any]
) -> Callable[P, T]:
    """Return a function whose ``config`` may leave out the method, and what a user's defaults say.

    Args:
        step: takes ``config``, settings as a mapping.
        method: of a config that names none.
        defaults: see `parse_settings`; they are those of this method alone.
    """

    @wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        call = signature(step).bind(*args, **kwargs)
        config = {"method": method, **call.arguments["config"]}
        if config["method"] == method:
            config = {**_changed(method, defaults), **config}
        call.arguments["config"] = config
        return step(*call.args, **call.kwargs)

    return run


def load_teacher_model(
    teacher_path: str | Path | nn.Module,
    num_classes: int | None = None,
    device: str | torch.device = "auto",
    layers: Sequence[str] = (),
) -> nn.Module:
    """Load a teacher in eval mode, without gradients.

    Args:
        teacher_path: a checkpoint, a `state_dict` of a torchvision ResNet, or that of another
            network as ``NAME=FILE``; or a network of your own, which is changed.
        num_classes: K; None accepts the teacher's.
        device: where it goes.
        layers: names of the modules that return its feature maps, see `with_feature_maps`;
            without names, those that the network returns.
    """
    if isinstance(teacher_path, nn.Module):
        teacher = with_feature_maps(teacher_path, layers) if layers else teacher_path
        teacher = teacher.eval().requires_grad_(False)
    else:
        teacher = load_teacher(teacher_path, num_classes=num_classes, layers=layers, say=say)
    return teacher.to(pick_device(str(device)))


def method_parameters(
    student_model: nn.Module, teacher_model: nn.Module, config: TrainConfig
) -> list[nn.Parameter]:
    """Return the parameters of the layers that a method adds.

    Args:
        student_model: returns logits and features.
        teacher_model: likewise.
        config: the run's settings.
    """
    return list(_prepare_step(student_model, teacher_model, config)[2].parameters())


def compute_loss(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    x: Tensor,
    y: Tensor,
    config: TrainConfig,
) -> TensorsByName:
    """Compute the loss of one batch, with gradients for the student.

    Args:
        student_model: returns logits and features; it stays in its mode.
        teacher_model: likewise, put into eval mode; None gives the classification loss alone.
        x: images [B, 3, H, W], uint8 or normalised.
        y: class indices [B].
        config: the run's settings.
    """
    student, teacher, method = _prepare_step(student_model, teacher_model, config)
    method.train(student_model.training)
    [(images, labels, _)] = _wrap_loader([(x, y)], "(x, y)", student_model, config)
    images, labels = images.to(student.device), labels.to(student.device)
    return compute_parts(student, teacher, method, images, labels, None)[1]


def train_epoch(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    train_loader: Loader,
    optimizer: torch.optim.Optimizer,
    device: str | torch.device,
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Train for one epoch.

    The epoch follows the student's last one, see `student_progress`; its number and
    `config["seed"]` determine its random states, as in `train_at`. Parameters that the method adds
    join an optimizer that lacks them, with the settings of its first group; a scheduler that
    counts groups needs them from the start, see `kdtune.fitnets.regressor_parameters`.

    Args:
        student_model: returns logits and features; moved to the device and put into train mode.
        teacher_model: likewise, in eval mode; None trains on the labels alone.
        train_loader: batches (images [B, 3, H, W], labels [B]).
        optimizer: of the student's parameters; the caller changes its learning rate.
        device: where to train, whatever the config says.
        config: settings that differ from `DEFAULT_CONFIG`; they may name any method.

    Returns:
        ``epoch``, its number from 1; and means over the images: ``loss``, its parts
        (``classification``, ``kd``, ``kd_weighted``, ...) and ``accuracy`` (share of 1).
    """
    settings = TrainConfig.parse({**config, "device": str(device)})
    settings.require_defaults({*LOADED_DATA_FIELDS, "ema_decay"}, "a loop of your own")
    student, teacher, method = _prepare_step(student_model, teacher_model, settings)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := [p for p in method.parameters() if id(p) not in optimized]:
        optimizer.add_param_group({**optimizer.param_groups[0], "params": missing})
    match_memory_format(optimizer)
    progress = student_progress(student_model)
    method.epoch = progress.epoch + 1
    loop.seed_epoch(settings, method.epoch)
    batches = _wrap_loader(train_loader, "train_loader", student_model, settings, training=True)
    metrics = epoch.train_epoch(TrainingStep(student, teacher, method, optimizer), batches)
    progress.epoch = method.epoch
    return {"epoch": progress.epoch, **metrics}


def validate(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    val_loader: Loader,
    device: str | torch.device,
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Return the means of `train_epoch` on images that are not trained on.

    Args:
        student_model: see `train_epoch`; put into eval mode.
        teacher_model: see `train_epoch`; None computes the classification loss alone.
        val_loader: batches (images [B, 3, H, W], labels [B]).
        device: where to compute, whatever the config says.
        config: see `train_epoch`.
    """
    settings = TrainConfig.parse({**config, "device": str(device)})
    student, teacher, method = _prepare_step(student_model, teacher_model, settings)
    batches = _wrap_loader(val_loader, "val_loader", student_model, settings)
    return epoch.evaluate_epoch(student, teacher, method, batches)


def evaluate_model(
    model: nn.Module,
    test_loader: Loader,
    device: str | torch.device | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Return ``loss`` (mean cross-entropy) and ``accuracy`` (share of 1) on labelled images.

    Args:
        model: returns logits and features; moved to the device and put into eval mode.
        test_loader: batches (images [B, 3, H, W], labels [B]).
        device: where to compute; None uses the config's.
        config: settings of the model's run, for device and precision.
    """
    settings = TrainConfig.parse({**(config or {}), **({"device": str(device)} if device else {})})
    batches = CheckedLoader(test_loader, "test_loader")
    images, _, _ = next(iter(batches))  # the model may take images of their size alone
    num_classes = probe(model, normalise(images[:1]))[0].shape[1]
    return epoch.evaluate(model, replace(batches, num_classes=num_classes), settings)


def _wrap_loader(
    loader: Loader, name: str, student: nn.Module, config: TrainConfig, training: bool = False
) -> CheckedLoader:
    num_classes = count_classes(student, config.image_size)
    return CheckedLoader(loader, name, config.image_size, num_classes, training)


def _prepare_step(
    student: nn.Module, teacher: nn.Module | None, config: TrainConfig
) -> tuple[DeviceModel, DeviceModel | None, Method]:
    if teacher is student:
        raise UserError("The student cannot be its own teacher: give two networks.")
    device = pick_device(config.device)
    method = _find_or_build_method(student, teacher, config).to(device)
    placed_teacher = None
    if teacher is not None and method.uses_teacher:
        placed_teacher = DeviceModel(teacher.eval(), device, config)
    return DeviceModel(student, device, config), placed_teacher, method


def _find_or_build_method(
    student: nn.Module, teacher: nn.Module | None, config: TrainConfig
) -> Method:
    """Return the student's method, or a new one for other settings, with its fitting layers."""
    progress = student_progress(student)
    settings = config.model_dump(exclude=OUTPUT_FIELDS | {"device"})
    kept = None
    if teacher is not None and progress.teacher is not None and progress.teacher() is teacher:
        kept = progress.method
    if kept is not None and progress.settings == settings:
        method = kept
    else:
        with torch.random.fork_rng(devices=visible_gpus()):
            method = loop.build_method_for_models(config, student, teacher)
        if kept is not None and _have_same_layers(method, kept):
            for name, layer in kept.named_children():
                setattr(method, name, layer)
        if teacher is not None:
            progress.method, progress.settings, progress.teacher = method, settings, ref(teacher)
    method.epoch = max(1, progress.epoch)
    return method


def _have_same_layers(a: Method, b: Method) -> bool:
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (a, b)]
    return type(a) is type(b) and shapes[0] == shapes[1]
