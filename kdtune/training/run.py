"""A single run: checks of its settings and data, training, test, and its files."""

import time
from collections.abc import Callable, Iterable, Mapping
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdtune.config.names import file_stem
from kdtune.config.train import LOADED_DATA_FIELDS, TrainConfig
from kdtune.data.batches import Batch, SeededBatchSampler, TrainingBatches, describe_left_out
from kdtune.data.decoding import decode_images
from kdtune.data.loaders import CheckedLoader, Loader, class_names
from kdtune.data.splits import ImageData
from kdtune.data.transforms import normalise
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.models import count_classes, probe, require_model
from kdtune.models.checkpoints import read_checkpoint
from kdtune.models.on_device import pick_device
from kdtune.runtime.console import say, waiting
from kdtune.runtime.device import gpu_name
from kdtune.training.epoch import OnStep, evaluate
from kdtune.training.epoch_data import find_data, open_single_run
from kdtune.training.loop import EpochResult, fit
from kdtune.training.maps import MAX_IMAGES
from kdtune.training.resume import validate_resume
from kdtune.training.run_files import RunFiles
from kdtune.training.teacher import load_run_teacher
from kdtune.training.teacher_check import require_finite

PREPARING = "decoding images, and computing the teacher's targets if there is one"

Loaders = Mapping[str, Loader | None]

OnEpoch = Callable[[dict[str, Any]], object]
"""Takes the metrics of an epoch, once its files are written; its result does not matter."""


class RunWatch(NamedTuple):
    """Functions that follow a run.

    Attributes:
        say: takes lines about what is built, and about each epoch.
        on_step: called after each training step; None if not needed.
        on_epoch: called after each epoch, see `OnEpoch`.
    """

    say: Callable[[str], None] = say
    on_step: OnStep | None = None
    on_epoch: OnEpoch = lambda metrics: None


def run_training(
    config: TrainConfig,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
    watch: RunWatch | None = None,
) -> dict[str, Any]:
    """Train once and write the run's files.

    `save_dir` gets `<name>_best.pth`, `<name>_final.pth` and, every `save_freq` epochs,
    `<name>_epoch_<N>.pth`; `log_dir` gets `<name>.log`, `<name>_summary.json` and, in `<name>/`,
    TensorBoard events. With one of these checkpoints as `resume`, the run ends with the numbers of
    one that never stopped, on a CPU to the last bit, if loaders draw from global random states.

    Args:
        config: the run's settings.
        train_loader: batches (images, labels), a re-iterable; None uses `config.data_dir`.
        val_loader: likewise. With a `train_loader` alone the last epoch counts as the best.
        test_loader: likewise, optional, and read once, at the end.
        watch: follows the run; None writes its lines to stderr.

    Returns:
        ``model`` (weights of the best validation epoch, eval mode), ``teacher_model`` or None,
        ``best_accuracy`` (share of 1 by `config.metric`, None without validation images),
        ``training_history`` (one dict per epoch), ``test_results`` (``loss``, ``accuracy`` and
        ``balanced_accuracy``, or None without test images), ``config`` (complete),
        ``experiment_name``.
    """
    watch = watch or RunWatch()
    loaders = {"train_loader": train_loader, "val_loader": val_loader, "test_loader": test_loader}
    resumed_from = config.resume
    config, data, teacher, classes, checkpoint = _open_run(config, loaders, watch.say)
    with waiting(PREPARING, watch.say):
        batches = open_run_batches(config, data, teacher, classes, loaders, watch.say)
    sample_images = _check_first_batches(batches)
    _require_finite_teacher(config, teacher, sample_images)
    history = checkpoint["history"] if checkpoint is not None else []
    # A loader may not know its number of steps.
    num_steps = length_hint(train_loader) or None if data is None else _count_steps(config, data)
    files = RunFiles(
        config, classes, teacher, sample_images, resumed_from, history, num_steps, watch.say
    )

    def on_step(epoch: int, step: int, loss: Tensor) -> None:
        files.log_step(epoch, step, loss)
        if watch.on_step is not None:
            watch.on_step(epoch, step, loss)

    epochs = fit(
        config,
        batches.train,
        batches.validation,
        num_classes=len(classes),
        class_counts=batches.class_counts,
        teacher=teacher,
        resume=checkpoint["training"] if checkpoint is not None else None,
        on_step=on_step,
    )
    with files:
        if teacher is None and METHODS[config.method].uses_teacher:
            files.say("No teacher: the terms of alpha and beta are absent.")
        if data is not None:
            files.say(describe_start(config, data))
        for result in epochs:
            files.save_epoch(result)
            watch.on_epoch(files.history[-1])
        summary = _test_and_summarise(files, result, batches.test)
    return {"model": result.student.eval(), "teacher_model": teacher, **summary}


def _test_and_summarise(
    files: RunFiles, result: EpochResult, test: Iterable[Batch] | None
) -> dict[str, Any]:
    """Give the student of the last epoch the best weights, test it, and write the summary."""
    config, test_results = files.config, None
    result.student.load_state_dict(result.state["best_weights"])
    files.save_best_weights(result)
    if test is not None:
        test_results = evaluate(result.student, test, config)
        accuracy = 100 * test_results[config.metric]
        files.say(f"test {accuracy:.2f} %, with the weights of the best epoch")
    summary = {
        "experiment_name": config.experiment_name,
        "best_accuracy": result.best_validation_accuracy,
        "test_results": test_results,
        "config": config.model_dump(),
        "training_history": files.history,
    }
    files.write_summary(summary)
    return summary


def check_run(config: TrainConfig) -> None:
    """Check a run as `run_training` does, on a few images; nothing is trained or written."""
    config, data, teacher, classes, _ = _open_run(config, {}, say)
    assert data is not None  # there is no loader
    few = data.validation.select(range(min(MAX_IMAGES, len(data.validation))))
    pixels = torch.from_numpy(decode_images(few, config.image_size))
    _require_finite_teacher(config, teacher, pixels)
    counts = data.train.class_counts(len(classes))
    fit(config, (), None, num_classes=len(classes), class_counts=counts, teacher=teacher)


class _OpenedRun(NamedTuple):
    config: TrainConfig  # complete
    data: ImageData | None  # None if there is a training loader
    teacher: nn.Module | None
    classes: tuple[str, ...]
    checkpoint: dict[str, Any] | None  # of the run that is resumed


def _open_run(config: TrainConfig, loaders: Loaders, say: Callable[[str], None]) -> _OpenedRun:
    """Check the settings of a run, and find its data, its teacher and the run that it resumes."""
    METHODS.require(config.method)
    require_model(config.model)
    if (train_loader := loaders.get("train_loader")) is not None:
        config.require_defaults(LOADED_DATA_FIELDS, "a train_loader of your own")
    path, data = config.resume, None
    checkpoint = read_checkpoint(path) if path else None
    config = _name_run(config, checkpoint)
    if train_loader is None:
        config, data = find_run_data(config, say)
    classes = data.classes if data is not None else class_names(train_loader)
    _require_same_classes(classes, loaders)
    teacher = load_run_teacher(config, classes, say)
    if classes is None:
        classes = _numbered_classes(config, teacher, loaders)
    if checkpoint is not None:
        has_validation = data is not None or loaders.get("val_loader") is not None
        validate_resume(checkpoint, path, config, classes, has_validation)
    return _OpenedRun(config, data, teacher, classes, checkpoint)


def _require_finite_teacher(
    config: TrainConfig, teacher: nn.Module | None, images: Tensor
) -> None:
    if teacher is not None:
        logits, _ = probe(teacher, normalise(images))
        require_finite(config, {"logits": logits.cpu().numpy()})


def _name_run(config: TrainConfig, checkpoint: dict[str, Any] | None) -> TrainConfig:
    """Return the settings with a name: the user's, the resumed run's, or an unused one."""
    name = config.experiment_name or (checkpoint or {}).get("config", {}).get("experiment_name")
    if not name:
        name = base_name = file_stem(config.method, config.model, time.strftime("%Y%m%d-%H%M%S"))
        suffix = 1
        while (Path(config.log_dir) / name).exists():
            suffix += 1
            name = f"{base_name}-{suffix}"
    return config.model_copy(update={"experiment_name": name, "resume": None})


def find_run_data(
    config: TrainConfig, say: Callable[[str], None]
) -> tuple[TrainConfig, ImageData]:
    """Find and describe the images of a run; return its settings with their bit depth, and them.

    Args:
        config: the run's settings.
        say: takes lines about the images, and about those that are left out.
    """
    data, unreadable = find_data(config, check_room=True)
    if unreadable:
        descriptions = "; ".join(f"{image['file']} ({image['reason']})" for image in unreadable)
        say(f"left out because they cannot be read: {descriptions}")
    for line in data.describe():
        say(line)
    return config.model_copy(update={"bit_depth": data.rendering.bit_depth}), data


def _require_same_classes(classes: tuple[str, ...] | None, loaders: Loaders) -> None:
    """Refuse loaders with other class names than the training images, if both have names."""
    for name, loader in loaders.items():
        names = class_names(loader)
        if None not in (names, classes) and names != classes:
            raise UserError(
                f"The classes of {name} are not those of the training images, in the same order; "
                "make both from folders with the same classes."
            )


def _numbered_classes(
    config: TrainConfig, teacher: nn.Module | None, loaders: Loaders
) -> tuple[str, ...]:
    """Return numbers as class names: as many as the teacher knows, or as the labels need."""
    if teacher is not None:
        return tuple(map(str, range(count_classes(teacher, config.image_size))))
    labels = (
        int(labels.max())
        for name in ("train_loader", "val_loader")
        if (loader := loaders[name]) is not None
        for _, labels, _ in CheckedLoader(loader, name)
    )
    return tuple(map(str, range(max(labels) + 1)))


def _count_steps(config: TrainConfig, data: ImageData) -> int:
    """Return the number of training steps of an epoch."""
    return len(SeededBatchSampler(len(data.train), config.batch_size, shuffle=True))


def describe_start(config: TrainConfig, data: ImageData) -> str:
    """Return what is going to be trained, and on what device.

    Args:
        config: the run's settings.
        data: its images.
    """
    device = pick_device(config.device)
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    return (
        f"{config.model} on {gpu_name(device) or device.type}{threads}: at most {config.epochs} "
        f"epochs of {_count_steps(config, data)} steps; * marks the best epoch so far"
    )


class RunBatches(NamedTuple):
    """Batches of a run by split; None for a split without images.

    Attributes:
        class_counts: training images by class; None from a loader.
    """

    train: TrainingBatches
    validation: Iterable[Batch] | None
    test: Iterable[Batch] | None
    class_counts: list[int] | None = None


def open_run_batches(
    config: TrainConfig,
    data: ImageData | None,
    teacher: nn.Module | None,
    classes: tuple[str, ...],
    loaders: Loaders,
    say: Callable[[str], None] = say,
) -> RunBatches:
    """Open the batches of a run: from loaders if given, else from the data.

    Args:
        config: the run's settings.
        data: its images; None if there is a training loader.
        teacher: None without one.
        classes: class names.
        loaders: those of `run_training`, by the names of its parameters.
        say: takes lines about what is built.
    """
    checked: dict[str, Iterable[Batch]] = {
        name: CheckedLoader(loader, name, config.image_size, len(classes), name == "train_loader")
        for name, loader in loaders.items()
        if loader is not None
    }
    validation, test = checked.get("val_loader"), checked.get("test_loader")
    if data is None:
        return RunBatches(checked["train_loader"], validation, test)
    for line in describe_left_out(len(data.train), [config.batch_size]):
        say(line)
    epoch_data = open_single_run(config, data, teacher, say)
    if validation is None:
        validation = epoch_data.evaluation_batches("validation")
    if test is None and data.test is not None:
        test = epoch_data.evaluation_batches("test")
    return RunBatches(epoch_data.train_batches, validation, test, epoch_data.class_counts)


def _check_first_batches(batches: RunBatches) -> Tensor:
    """Return some images to draw; loaders that cannot be used are refused before training."""
    first_epoch = batches.train(1) if callable(batches.train) else batches.train
    splits = (first_epoch, batches.validation, batches.test)
    first_batches = [next(iter(split), None) for split in splits if split is not None]
    shown = first_batches[0] if batches.validation is None else first_batches[1]
    if shown is None or None in first_batches:
        raise UserError("There are no images.")
    return shown[0][:MAX_IMAGES].clone()  # not a view, which would keep the whole batch
