"""One run with its files: checkpoints, log, summary, TensorBoard events.

`fit` gives the numbers; this file keeps them. Test images are read once, at the end, with the
weights of the best validation epoch.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from kdtune.checkpoints import read_checkpoint, save_model
from kdtune.config import OF_A_RUNS_FILES, TrainConfig, settings_hash
from kdtune.data.images import find_images
from kdtune.data.views import Batch, Batches, decode, decode_run
from kdtune.errors import UserError
from kdtune.files import read_yaml, write_text
from kdtune.methods import METHODS, check_method
from kdtune.teacher import load_teacher
from kdtune.training import EpochResult, evaluate, fit

Loader = Iterable[tuple[Tensor, Tensor]]


class _Pairs:
    """A loader of (images, labels) as the loop wants it: without targets."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self.loader:
            yield images, labels, None


def run_training(
    config: TrainConfig,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
) -> dict[str, Any]:
    """Train once and write the run's files.

    `save_dir` gets `<name>_best.pth`, `<name>_final.pth` and, every `save_freq` epochs,
    `<name>_epoch_<N>.pth`; `log_dir` gets `<name>.log`, `<name>_summary.json` and, in `<name>/`,
    TensorBoard events.

    Args:
        config: the run's settings.
        train_loader: batches (images [B, 3, H, W], labels [B]); `config.data_dir` if not given.
        val_loader: likewise; must come with `train_loader`.
        test_loader: likewise; with `train_loader` only, and optional.

    Returns:
        ``model`` (weights of the best validation epoch, eval mode), ``teacher_model`` or None,
        ``best_accuracy`` (share of 1), ``training_history`` (one dict an epoch), ``test_results``
        (``loss`` and ``accuracy``, or None), ``config`` (complete), ``experiment_name``.

    Raises:
        UserError: the settings, the data or the teacher are no good.
        DivergedError: the training loss is no longer finite.
    """
    check_method(config.method)
    state = _resumed_state(config) if config.resume else None
    started = time.strftime("%Y%m%d-%H%M%S")
    name = config.experiment_name or f"{config.method}-{config.model}-{started}"
    config = config.model_copy(update={"experiment_name": name})
    train, validation, test, classes = _batches(config, train_loader, val_loader, test_loader)
    teacher = None
    if config.teacher_model is not None:
        teacher = load_teacher(config.teacher_model, classes, config.image_size)
    if classes is None:
        classes = _count_classes(config, train)
    with _RunFiles(config, classes) as files:
        if teacher is None and METHODS[config.method].uses_teacher:
            files.say("No teacher: the terms of alpha and beta are absent.")
        history = []
        epochs = fit(
            config, train, validation, num_classes=len(classes), teacher=teacher, resume=state
        )
        for result in epochs:
            history.append(result.figures())
            files.keep(result)
        model = result.student
        model.load_state_dict(result.state["best_weights"])
        files.keep_best(model, result)
        test_results = None
        if test is not None:
            loss, accuracy = evaluate(model, test, config)
            test_results = {"loss": loss, "accuracy": accuracy}
            files.say(f"test {100 * accuracy:.2f} %, with the weights of the best epoch")
        summary = {
            "experiment_name": name,
            "best_accuracy": result.best_validation_accuracy,
            "test_results": test_results,
            "config": config.model_dump(),
            "training_history": history,
        }
        files.finish(summary)
    return {"model": model.eval(), "teacher_model": teacher, **summary}


def _batches(
    config: TrainConfig,
    train_loader: Loader | None,
    val_loader: Loader | None,
    test_loader: Loader | None,
) -> tuple[Iterable[Batch], Iterable[Batch], Iterable[Batch] | None, tuple[str, ...] | None]:
    """Training, validation and test batches, and class names; None where there are none."""
    if train_loader is not None:
        if val_loader is None:
            raise UserError("A val_loader is needed: the best epoch is chosen on it.")
        test = _Pairs(test_loader) if test_loader is not None else None
        names = getattr(getattr(train_loader, "dataset", None), "classes", None)
        classes = tuple(map(str, names)) if names is not None else None
        return _Pairs(train_loader), _Pairs(val_loader), test, classes
    if val_loader is not None or test_loader is not None:
        raise UserError("A val_loader or test_loader needs a train_loader beside it.")
    data = find_images(config.data_dir)
    decoded = decode_run(data, config.image_size)
    test_batches = None
    if data.test is not None:
        test_batches = Batches(decode(data.test, config.image_size), data.test.labels)
    return (
        decoded.train_batches(config),
        decoded.validation_batches(),
        test_batches,
        data.classes,
    )


def _count_classes(config: TrainConfig, batches: Iterable[Batch]) -> tuple[str, ...]:
    """Names for classes without names: the teacher's, or the numbers seen in one pass."""
    if config.teacher_model is not None:
        return tuple(read_checkpoint(config.teacher_model)["classes"])
    highest = max(int(labels.max()) for _, labels, _ in batches)
    return tuple(str(label) for label in range(highest + 1))


MAY_DIFFER = OF_A_RUNS_FILES | {"epochs", "data_dir", "teacher_model", "num_workers", "device"}
"""Settings that a run may change when it goes on."""


def _resumed_state(config: TrainConfig) -> dict[str, Any]:
    """Read what a run needs to go on, and refuse another run's checkpoint."""
    content = read_checkpoint(str(config.resume))
    if "training" not in content:
        raise UserError(f"{config.resume} cannot be resumed: it holds a network, but no run.")
    for key, value in config.model_dump().items():
        if key not in MAY_DIFFER and content["config"].get(key) != value:
            raise UserError(
                f"{config.resume} was trained with {key} {content['config'].get(key)!r}, not "
                f"{value!r}; give the same settings to go on."
            )
    state = content["training"]
    if state["epoch"] >= config.epochs:
        raise UserError(
            f"{config.resume} is at epoch {state['epoch']} of {config.epochs}: nothing is left to "
            "train; raise epochs to go on."
        )
    return state


class _RunFiles:
    """The files of one run."""

    def __init__(self, config: TrainConfig, classes: tuple[str, ...]):
        self.config, self.classes = config, classes
        self.stem = str(config.experiment_name)
        self.logs = Path(config.log_dir)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.events = SummaryWriter(self.logs / self.stem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.events.close()

    def say(self, text: str) -> None:
        """Say a line to the person who waits, and keep it in the log."""
        print(text, file=sys.stderr, flush=True)
        with open(self.logs / f"{self.stem}.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def keep(self, result: EpochResult) -> None:
        """Write all that an epoch leaves behind."""
        self.say(epoch_line(result, self.config.epochs))
        for key, value in result.figures().items():
            if isinstance(value, float):
                self.events.add_scalar(key, value, result.epoch)
        self.events.flush()
        if result.epoch % self.config.save_freq == 0:
            self._save(f"epoch_{result.epoch}", result)
        if result.is_best:
            self._save("best", result)
        if result.epoch == self.config.epochs:
            self._save("final", result)

    def keep_best(self, model: nn.Module, result: EpochResult) -> None:
        """Write the best weights if no epoch here was the best one, as can be after a resume."""
        if not self._path("best").exists():
            accuracy, epoch = result.best_validation_accuracy, result.state["best_epoch"]
            self._write("best", model, epoch=epoch, validation_accuracy=accuracy)

    def _path(self, which: str) -> Path:
        return Path(self.config.save_dir) / f"{self.stem}_{which}.pth"

    def _save(self, which: str, result: EpochResult) -> None:
        self._write(
            which,
            result.student,
            epoch=result.epoch,
            validation_accuracy=result.validation_accuracy,
            training=result.state,
        )

    def _write(self, which: str, model: nn.Module, **figures: Any) -> None:
        config, classes = self.config.model_dump(), list(self.classes)
        save_model(self._path(which), model, config=config, classes=classes, **figures)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        write_text(self.logs / f"{self.stem}_summary.json", json.dumps(summary, indent=2))


def epoch_line(result: EpochResult, epochs: int) -> str:
    """One epoch in one line, for a person."""
    mark = " *" if result.is_best else ""
    return (
        f"epoch {result.epoch}/{epochs}: loss {result.train_loss:.4f}, "
        f"validation {100 * result.validation_accuracy:.2f} %{mark}, {result.seconds:.1f} s"
    )


def train_teacher(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Train a network with the method ``student`` and keep only its best weights, in one file.

    Args:
        config: the run's settings.
        out: the checkpoint to write at the end; it must not exist. Until then the best weights
            so far are in ``<out>.partial.pth`` beside it.

    Returns:
        ``validation_accuracy`` and ``test_accuracy`` (None without test images), shares of 1.

    Raises:
        UserError: `out` exists, or the settings or the data are no good.
    """
    if out.exists():
        raise UserError(f"{out} exists already; remove it, or give another --out.")
    train, validation, test, names = _batches(config, None, None, None)
    classes = list(names or ())
    about: dict[str, Any] = {"config": config.model_dump(), "classes": classes}
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    try:
        for result in fit(config, train, validation, num_classes=len(classes)):
            print(epoch_line(result, config.epochs), file=sys.stderr, flush=True)
            if result.is_best:
                save_model(partial, result.student, **about, epoch=result.epoch)
    except KeyboardInterrupt:
        if partial.exists():
            raise KeyboardInterrupt(f"the best weights so far are in {partial}") from None
        raise
    model = result.student
    model.load_state_dict(result.state["best_weights"])
    accuracies: dict[str, Any] = {
        "validation_accuracy": result.best_validation_accuracy,
        "test_accuracy": evaluate(model, test, config)[1] if test is not None else None,
    }
    save_model(out, model, **about, epoch=result.state["best_epoch"], **accuracies)
    partial.unlink()
    return accuracies


def run_file(path: Path) -> dict[str, Any]:
    """Train once with the settings of a YAML file.

    A file that a sweep wrote also says, under ``provenance``, what its trial reached and with how
    many CPU threads; the run uses as many, and compares.

    Args:
        path: a mapping of `TrainConfig` settings, with or without ``provenance``.

    Returns:
        As `run_training`, and ``recorded_accuracy``: the file's, or None if it has none or if its
        settings were edited since.

    Raises:
        UserError: the file or its settings are no good.
    """
    settings = read_yaml(path)
    provenance = settings.pop("provenance", None) or {}
    if not isinstance(provenance, dict):
        raise UserError(f"{path}: provenance must hold 'key: value' lines, or be left out.")
    config = TrainConfig.check(settings)
    if "threads" in provenance:
        torch.set_num_threads(provenance["threads"])
    recorded = provenance.get("best_validation_accuracy")
    if provenance.get("settings_sha256") != settings_hash(settings):
        recorded = None  # the file was edited: what it records is another run's
    return {**run_training(config), "recorded_accuracy": recorded}
