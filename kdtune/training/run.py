"""One run from beginning to end: settings and data are checked, trained with, and tested.

`fit` gives the numbers, `RunFiles` keeps them. Test images are read once, at the end, with the
weights of the best validation epoch.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdtune.config.train import OUTPUT_FIELDS, TrainConfig, file_stem
from kdtune.data.batches import Batch, TrainingBatches
from kdtune.data.loaders import CheckedLoader, Loader, class_names
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.models import count_classes, require_model
from kdtune.models.checkpoints import read_checkpoint
from kdtune.runtime.console import say
from kdtune.training.epoch_data import find_data, open_epoch_data
from kdtune.training.loop import evaluate, fit
from kdtune.training.maps import MAX_IMAGES
from kdtune.training.run_files import RunFiles
from kdtune.training.teacher import load_teacher


def run_training(
    config: TrainConfig,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
) -> dict[str, Any]:
    """Train once and write the run's files.

    `save_dir` gets `<name>_best.pth`, `<name>_final.pth` and, every `save_freq` epochs,
    `<name>_epoch_<N>.pth`; `log_dir` gets `<name>.log`, `<name>_summary.json` and, in `<name>/`,
    TensorBoard events: every figure of every epoch and, with a teacher, every `save_freq` epochs
    a picture of both networks' attention maps.

    A run that is given one of these checkpoints as `resume` goes on under the same name, and ends
    with the numbers of a run that never stopped, on a CPU to the last bit. That holds for loaders
    that draw order and augmentation from torch's, numpy's or Python's global random state, as
    DataLoaders do unless they have a generator of their own or persistent workers.

    Args:
        config: the run's settings.
        train_loader: batches (images [B, 3, H, W], labels [B]), any iterable that can be gone
            through again and again; `config.data_dir` if not given.
        val_loader: likewise. With a `train_loader` alone the last epoch counts as the best.
        test_loader: likewise, and optional.

    Returns:
        ``model`` (weights of the best validation epoch, eval mode), ``teacher_model`` or None,
        ``best_accuracy`` (share of 1, None without validation images), ``training_history`` (one
        dict an epoch), ``test_results`` (``loss`` and ``accuracy``, or None without test images),
        ``config`` (complete), ``experiment_name``.

    Raises:
        UserError: the settings, the data or the teacher are no good.
        DivergedError: the training loss is no longer finite.
        KeyboardInterrupt: the run was interrupted; the text names the checkpoint to go on from.
    """
    METHODS.require(config.method)
    require_model(config.model)
    resume = config.resume
    checkpoint = read_checkpoint(resume) if resume else None
    name = config.experiment_name or (checkpoint or {}).get("config", {}).get("experiment_name")
    config = config.model_copy(
        update={"experiment_name": name or _unused_run_name(config), "resume": None}
    )
    data = _find_data(config) if train_loader is None else None
    classes = data.classes if data is not None else class_names(train_loader)
    _require_same_classes(classes, val_loader=val_loader, test_loader=test_loader)
    teacher = None
    if config.teacher_model is not None:
        teacher = load_teacher(config.teacher_model, classes, config.image_size)
    if classes is None:
        classes = _numbered_classes(config, teacher, train_loader, val_loader)
    if checkpoint is not None:
        has_validation = data is not None or val_loader is not None
        _validate_resume(checkpoint, resume, config, classes, has_validation)
    train, validation, test = _open_batches(
        config, data, teacher, classes, train_loader, val_loader, test_loader
    )
    # First batches say early what is wrong with a loader; test accuracy is read at the end.
    first_epoch = train(1) if callable(train) else train
    first_images = [
        _first_images(batches)
        for batches in (first_epoch, validation, test)
        if batches is not None
    ]
    sample_images = first_images[0] if validation is None else first_images[1]
    files = RunFiles(config, classes, checkpoint, teacher, sample_images)
    if resume is not None:
        files.last_checkpoint = Path(resume)
    epochs = fit(
        config,
        train,
        validation,
        num_classes=len(classes),
        teacher=teacher,
        resume=checkpoint["training"] if checkpoint is not None else None,
        on_step=files.log_step,
    )
    with files:
        if teacher is None and METHODS[config.method].uses_teacher:
            files.say("No teacher: the terms of alpha and beta are absent.")
        for result in epochs:
            files.save_epoch(result)
        model = result.student
        model.load_state_dict(result.state["best_weights"])
        files.save_best_weights(model, result)
        test_results = None
        if test is not None:
            test_results = evaluate(model, test, config)
            accuracy = 100 * test_results["accuracy"]
            files.say(f"test {accuracy:.2f} %, with the weights of the best epoch")
        summary = {
            "experiment_name": config.experiment_name,
            "best_accuracy": result.best_validation_accuracy,
            "test_results": test_results,
            "config": config.model_dump(),
            "training_history": files.history,
        }
        files.write_summary(summary)
    return {"model": model.eval(), "teacher_model": teacher, **summary}


def _find_data(config: TrainConfig) -> ImageData:
    data, unreadable = find_data(config.data_source, config.skip_bad_images, config.cache_gb)
    if unreadable:
        descriptions = "; ".join(f"{image['file']} ({image['reason']})" for image in unreadable)
        say(f"left out, since they cannot be read: {descriptions}")
    return data


def _unused_run_name(config: TrainConfig) -> str:
    """A name that no run in `log_dir` has."""
    name = base_name = file_stem(config.method, config.model, time.strftime("%Y%m%d-%H%M%S"))
    suffix = 1
    while (Path(config.log_dir) / name).exists():
        suffix += 1
        name = f"{base_name}-{suffix}"
    return name


def _require_same_classes(classes: tuple[str, ...] | None, **loaders: Loader | None) -> None:
    """Refuse loaders that number other classes; where names are not known, nothing is compared."""
    for name, loader in loaders.items():
        names = class_names(loader)
        if None not in (names, classes) and names != classes:
            raise UserError(
                f"The classes of {name} are not those of the training images, in the same order; "
                "make both from folders with the same classes."
            )


def _numbered_classes(
    config: TrainConfig, teacher: nn.Module | None, *loaders: Loader | None
) -> tuple[str, ...]:
    """Names for classes without names: as many numbers as the teacher knows, or as are seen."""
    if teacher is not None:
        return tuple(map(str, range(count_classes(teacher, config.image_size))))
    labels = (
        int(labels.max())
        for name, loader in zip(("train_loader", "val_loader"), loaders, strict=True)
        if loader is not None
        for _, labels, _ in CheckedLoader(loader, name)
    )
    return tuple(map(str, range(max(labels) + 1)))


def _open_batches(
    config: TrainConfig,
    data: ImageData | None,
    teacher: nn.Module | None,
    classes: tuple[str, ...],
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
    say: Callable[[str], None] = say,
) -> tuple[TrainingBatches, Iterable[Batch] | None, Iterable[Batch] | None]:
    """Training, validation and test batches: from loaders where given, else from the data."""

    def wrap_loader(
        loader: Loader | None, name: str, training: bool = False
    ) -> CheckedLoader | None:
        if loader is None:
            return None
        return CheckedLoader(loader, name, config.image_size, len(classes), training)

    train: TrainingBatches | None = wrap_loader(train_loader, "train_loader", training=True)
    validation: Iterable[Batch] | None = wrap_loader(val_loader, "val_loader")
    test: Iterable[Batch] | None = wrap_loader(test_loader, "test_loader")
    if data is not None:
        epoch_data = open_epoch_data(config, data, teacher, say)
        train = epoch_data.train_batches
        if validation is None:
            validation = epoch_data.evaluation_batches("validation")
        if test is None and data.test is not None:
            test = epoch_data.evaluation_batches("test")
    assert train is not None
    return train, validation, test


def _first_images(batches: Iterable[Batch]) -> Tensor:
    for images, _, _ in batches:
        return images[:MAX_IMAGES].clone()  # not a view, which would keep the whole batch
    raise UserError("There are no images.")


CHANGEABLE_ON_RESUME = OUTPUT_FIELDS | {
    "epochs", "data_dir", "data_root", "teacher_model", "num_workers", "device",
}  # fmt: skip
"""Settings that a run may change when it goes on."""


def _validate_resume(
    checkpoint: dict[str, Any],
    path: str | None,
    config: TrainConfig,
    classes: tuple[str, ...],
    has_validation: bool,
) -> None:
    """Refuse to go on from another run's checkpoint."""
    if "training" not in checkpoint:
        raise UserError(f"{path} cannot be resumed: it holds a network, but no run.")
    for key, value in config.model_dump().items():
        if key not in CHANGEABLE_ON_RESUME and checkpoint["config"].get(key) != value:
            raise UserError(
                f"{path} was trained with {key} {checkpoint['config'].get(key)!r}, not {value!r}; "
                "give the same settings to go on."
            )
    for label, was_used, is_used in (
        (
            "a teacher",
            checkpoint["config"]["teacher_model"] is not None,
            bool(config.teacher_model),
        ),
        ("validation images", checkpoint["validation_accuracy"] is not None, has_validation),
    ):
        if was_used != is_used:
            words = ("with", "without") if was_used else ("without", "with")
            raise UserError(f"{path} was trained {words[0]} {label}, and cannot go on {words[1]}.")
    if checkpoint["classes"] != list(classes):
        raise UserError(
            f"{path} was trained for {len(checkpoint['classes'])} classes, which are not the "
            f"{len(classes)} of these data; give the same data to go on."
        )
    epoch = checkpoint["training"]["epoch"]
    if epoch >= config.epochs:
        raise UserError(
            f"{path} is at epoch {epoch} of {config.epochs}: nothing is left to train; raise "
            "epochs to go on."
        )
