"""Files of a single run: checkpoints, log, summary, TensorBoard events."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from kdtune.config.train import TrainConfig
from kdtune.models.checkpoints import read_checkpoint, save_model
from kdtune.runtime.console import in_notebook, say
from kdtune.runtime.device import gpu_software
from kdtune.storage.files import make_folder, write_text
from kdtune.training.loop import EpochResult
from kdtune.training.maps import draw_maps, spatial_attention_map
from kdtune.training.progress_bars import ProgressBars


@dataclass
class RunFiles:
    """The files of one run, written from `__enter__` on.

    Attributes:
        sample_images: images on which student and teacher are drawn, [B, 3, H, W].
        last_checkpoint: path of the newest, or of the one that is resumed.
        num_steps: of an epoch; None if it is not known.
        print_line: takes each line of the log.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    teacher: nn.Module | None
    sample_images: Tensor
    last_checkpoint: str | None
    history: list[dict[str, Any]]
    num_steps: int | None = None
    print_line: Callable[[str], None] = say

    def __post_init__(self) -> None:
        self.stem, self.log_dir = str(self.config.experiment_name), Path(self.config.log_dir)
        self._bars: ProgressBars | None = None

    def __enter__(self) -> Self:
        make_folder(Path(self.config.save_dir))
        make_folder(self.log_dir)
        # TensorBoard drops later steps that an earlier run of this name wrote.
        self.writer = SummaryWriter(self.log_dir / self.stem, purge_step=len(self.history) + 1)
        self._log(f"settings: {json.dumps(self.config.model_dump())}")
        if in_notebook():
            counts = len(self.history), self.config.epochs, self.num_steps
            self._bars = ProgressBars(self.stem, *counts)
        return self

    def __exit__(self, error_type: type | None, error: object, traceback: object) -> None:
        self.writer.close()
        if self._bars is not None:
            self._bars.close()
        if error_type is KeyboardInterrupt:
            if len(self.history) == self.config.epochs:
                best_path = self._checkpoint_path("best")
                hint = f"all epochs are trained: the best weights are in {best_path}"
            elif self.last_checkpoint is None:
                hint = "nothing is saved yet"
            else:
                hint = f"to resume, run it again with resume set to {self.last_checkpoint}"
            self.say(f"interrupted after epoch {len(self.history)}; {hint}")
            raise KeyboardInterrupt(hint) from None

    def say(self, text: str) -> None:
        """Print a line, and write it to the log."""
        self.print_line(text)
        self._log(text)

    def _say_progress(self, text: str) -> None:
        """Write a line to the log; print it where no bars show the same."""
        (self.say if self._bars is None else self._log)(text)

    def _log(self, text: str) -> None:
        with open(self.log_dir / f"{self.stem}.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def log_step(self, epoch: int, step: int, loss: Tensor) -> None:
        """Log the loss of every `print_freq`-th step.

        Args:
            epoch: from 1.
            step: in the epoch, from 1.
            loss: of its batch.
        """
        if self._bars is not None:
            self._bars.add_step()
        if step % self.config.print_freq == 0:
            place = f"epoch {epoch}/{self.config.epochs}, step {step}"
            self._say_progress(f"{place}: loss {loss.item():.4f}")

    def save_epoch(self, result: EpochResult) -> None:
        """Write the log lines, events and checkpoints of an epoch."""
        self._log_device(result)
        self._say_progress(result.describe(self.config))
        if self._bars is not None:
            self._bars.add_epoch(_figures(result, self.config))
        parts = {"lr": result.lr, **result.losses}
        self._log(", ".join(f"{name} {value:.6g}" for name, value in parts.items()))
        metrics = result.metrics()
        self.history.append(metrics)
        for key, value in metrics.items():
            if isinstance(value, float):
                self.writer.add_scalar(key, value, result.epoch)
        self.writer.flush()
        if result.is_best:
            self._save_checkpoint("best", result)
        if result.epoch % self.config.save_freq == 0:
            self._save_checkpoint(f"epoch_{result.epoch}", result)
            if self.teacher is not None:
                models = {"student": result.student, "teacher": self.teacher}
                figure = draw_maps(models, self.sample_images, spatial_attention_map)
                self.writer.add_figure("attention_maps", figure, result.epoch)
        if result.is_last(self.config):
            self._save_checkpoint("final", result)

    def _log_device(self, result: EpochResult) -> None:
        """Log on what the first epoch was trained, and a change since the last one."""
        if not self.history:
            versions = gpu_software() if result.device != "cpu" else {}
            details = {"threads": result.threads, **versions}
            self.say("; ".join([result.device, *(f"{name} {n}" for name, n in details.items())]))
        elif (earlier := self.history[-1]["device"]) != result.device:
            comparison = f"epochs trained on {earlier} before, and train on {result.device} now"
            self.say(f"{comparison}: their results may differ a little")

    def save_best_weights(self, result: EpochResult) -> None:
        """Write the best weights, which the student must have, unless their file has them."""
        path, epoch = self._checkpoint_path("best"), result.state["best_epoch"]
        if not path.exists() or read_checkpoint(path)["epoch"] != epoch:
            self._write_model("best", result.student, epoch, result.best_validation_accuracy)

    def _checkpoint_path(self, label: str) -> Path:
        return Path(self.config.save_dir) / f"{self.stem}_{label}.pth"

    def _save_checkpoint(self, label: str, result: EpochResult) -> None:
        state = {"training": result.state, "history": self.history}
        accuracy = result.validation_score(self.config)
        self._write_model(label, result.student, result.epoch, accuracy, **state)
        self.last_checkpoint = str(self._checkpoint_path(label))

    def _write_model(
        self, label: str, model: nn.Module, epoch: int, accuracy: float | None, **state: Any
    ) -> None:
        metadata: dict[str, Any] = {"config": self.config.model_dump(), "classes": [*self.classes]}
        metadata |= {"epoch": epoch, "validation_accuracy": accuracy}
        save_model(self._checkpoint_path(label), model, **metadata, **state)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary of the run as JSON."""
        write_text(self.log_dir / f"{self.stem}_summary.json", json.dumps(summary, indent=2))


def _figures(result: EpochResult, config: TrainConfig) -> dict[str, str]:
    """Return the figures beside a progress bar."""
    figures = {"loss": f"{result.train_loss:.4f}"}
    shown = {"validation": result.validation_score(config)}
    shown["best"] = result.best_validation_accuracy
    return figures | {k: f"{100 * v:.2f} %" for k, v in shown.items() if v is not None}
