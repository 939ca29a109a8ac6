"""One run from beginning to end: settings and data are checked, trained with, and tested.

`fit` gives the numbers, `RunFiles` keeps them. Test images are read once, at the end, with the
weights of the best validation epoch.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdtune.config.train import OF_A_RUNS_FILES, TrainConfig, file_stem
from kdtune.data.batches import Batch, TrainingBatches
from kdtune.data.loaders import Loader, Pairs, class_names
from kdtune.data.splits import ImageData
from kdtune.errors import UserError
from kdtune.methods import METHODS, check_method
from kdtune.models import check_model, count_classes
from kdtune.models.checkpoints import read_checkpoint
from kdtune.runtime.console import say
from kdtune.training.inputs import find_data, open_inputs
from kdtune.training.loop import evaluate, fit
from kdtune.training.maps import MOST_IMAGES
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
    check_method(config.method)
    check_model(config.model)
    resume = config.resume
    past = read_checkpoint(resume) if resume else None
    name = config.experiment_name or (past or {}).get("config", {}).get("experiment_name")
    config = config.model_copy(
        update={"experiment_name": name or _new_name(config), "resume": None}
    )
    data = _find(config) if train_loader is None else None
    classes = data.classes if data is not None else class_names(train_loader)
    _check_class_names(classes, val_loader=val_loader, test_loader=test_loader)
    teacher = None
    if config.teacher_model is not None:
        teacher = load_teacher(config.teacher_model, classes, config.image_size)
    if classes is None:
        classes = _number_classes(config, teacher, train_loader, val_loader)
    if past is not None:
        validated = data is not None or val_loader is not None
        _check_past(past, resume, config, classes, validated)
    train, validation, test = _batches(
        config, data, teacher, classes, train_loader, val_loader, test_loader
    )
    # First batches say early what is wrong with a loader; test accuracy is read at the end.
    first = train(1) if callable(train) else train
    seen = [_first_images(batches) for batches in (first, validation, test) if batches is not None]
    pictured = seen[0] if validation is None else seen[1]
    files = RunFiles(config, classes, past, teacher, pictured)
    if resume is not None:
        files.last_saved = Path(resume)
    epochs = fit(
        config,
        train,
        validation,
        num_classes=len(classes),
        teacher=teacher,
        resume=past["training"] if past is not None else None,
        on_step=files.step,
    )
    with files:
        if teacher is None and METHODS[config.method].uses_teacher:
            files.say("No teacher: the terms of alpha and beta are absent.")
        for result in epochs:
            files.keep(result)
        model = result.student
        model.load_state_dict(result.state["best_weights"])
        files.keep_best(model, result)
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
        files.finish(summary)
    return {"model": model.eval(), "teacher_model": teacher, **summary}


def _find(config: TrainConfig) -> ImageData:
    data, bad = find_data(config.source, config.skip_bad_images, config.cache_gb)
    if bad:
        listed = "; ".join(f"{image['file']} ({image['reason']})" for image in bad)
        say(f"left out, since they cannot be read: {listed}")
    return data


def _new_name(config: TrainConfig) -> str:
    """A name that no run in `log_dir` has."""
    name = first = file_stem(config.method, config.model, time.strftime("%Y%m%d-%H%M%S"))
    again = 1
    while (Path(config.log_dir) / name).exists():
        again += 1
        name = f"{first}-{again}"
    return name


def _check_class_names(classes: tuple[str, ...] | None, **loaders: Loader | None) -> None:
    """Refuse loaders that number other classes; where names are not known, nothing is compared."""
    for name, loader in loaders.items():
        names = class_names(loader)
        if None not in (names, classes) and names != classes:
            raise UserError(
                f"The classes of {name} are not those of the training images, in the same order; "
                "make both from folders with the same classes."
            )


def _number_classes(
    config: TrainConfig, teacher: nn.Module | None, *loaders: Loader | None
) -> tuple[str, ...]:
    """Names for classes without names: as many numbers as the teacher knows, or as are seen."""
    if teacher is not None:
        return tuple(map(str, range(count_classes(teacher, config.image_size))))
    labels = (
        int(labels.max())
        for name, loader in zip(("train_loader", "val_loader"), loaders, strict=True)
        if loader is not None
        for _, labels, _ in Pairs(loader, name)
    )
    return tuple(map(str, range(max(labels) + 1)))


def _batches(
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

    def own(loader: Loader | None, name: str, training: bool = False) -> Pairs | None:
        if loader is None:
            return None
        return Pairs(loader, name, config.image_size, len(classes), training)

    train: TrainingBatches | None = own(train_loader, "train_loader", training=True)
    validation: Iterable[Batch] | None = own(val_loader, "val_loader")
    test: Iterable[Batch] | None = own(test_loader, "test_loader")
    if data is not None:
        inputs = open_inputs(config, data, teacher, say)
        train = inputs.train
        if validation is None:
            validation = inputs.evaluation("validation")
        if test is None and data.test is not None:
            test = inputs.evaluation("test")
    assert train is not None
    return train, validation, test


def _first_images(batches: Iterable[Batch]) -> Tensor:
    for images, _, _ in batches:
        return images[:MOST_IMAGES].clone()  # not a view, which would keep the whole batch
    raise UserError("There are no images.")


MAY_DIFFER = OF_A_RUNS_FILES | {
    "epochs", "data_dir", "data_root", "teacher_model", "num_workers", "device",
}  # fmt: skip
"""Settings that a run may change when it goes on."""


def _check_past(
    past: dict[str, Any],
    path: str | None,
    config: TrainConfig,
    classes: tuple[str, ...],
    validated: bool,
) -> None:
    """Refuse to go on from another run's checkpoint."""
    if "training" not in past:
        raise UserError(f"{path} cannot be resumed: it holds a network, but no run.")
    for key, value in config.model_dump().items():
        if key not in MAY_DIFFER and past["config"].get(key) != value:
            raise UserError(
                f"{path} was trained with {key} {past['config'].get(key)!r}, not {value!r}; "
                "give the same settings to go on."
            )
    for what, then, now in (
        ("a teacher", past["config"]["teacher_model"] is not None, bool(config.teacher_model)),
        ("validation images", past["validation_accuracy"] is not None, validated),
    ):
        if then != now:
            way = ("with", "without") if then else ("without", "with")
            raise UserError(f"{path} was trained {way[0]} {what}, and cannot go on {way[1]}.")
    if past["classes"] != list(classes):
        raise UserError(
            f"{path} was trained for {len(past['classes'])} classes, which are not the "
            f"{len(classes)} of these data; give the same data to go on."
        )
    epoch = past["training"]["epoch"]
    if epoch >= config.epochs:
        raise UserError(
            f"{path} is at epoch {epoch} of {config.epochs}: nothing is left to train; raise "
            "epochs to go on."
        )
