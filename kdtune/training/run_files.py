"""What a single run leaves behind: checkpoints, log, summary, TensorBoard events."""

import json
import time
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from kdtune.config.train import TrainConfig
from kdtune.models.checkpoints import read_checkpoint, save_model
from kdtune.runtime.console import say
from kdtune.storage.files import make_folder, write_text
from kdtune.training.loop import EpochResult
from kdtune.training.maps import attention_picture, draw_maps


class RunFiles:
    """The files of one run.

    Nothing is written before the run begins.

    Args:
        config: the run's settings, with its name.
        classes: class names.
        past: the checkpoint from which the run goes on; None if it begins.
        teacher: pictured beside the student; None without one.
        pictured: the images on which both are pictured, [B, 3, H, W].
    """

    def __init__(
        self,
        config: TrainConfig,
        classes: tuple[str, ...],
        past: dict[str, Any] | None,
        teacher: nn.Module | None,
        pictured: Tensor,
    ):
        self.config, self.classes = config, classes
        self.teacher, self.pictured = teacher, pictured
        self.stem = str(config.experiment_name)
        self.logs = Path(config.log_dir)
        self.history: list[dict[str, Any]] = past["history"] if past is not None else []
        """Figures of the epochs so far."""
        self.last_saved: Path | None = None

    def __enter__(self) -> Self:
        make_folder(Path(self.config.save_dir))
        make_folder(self.logs)
        # Steps that an earlier run of this name wrote are TensorBoard's to drop.
        self.events = SummaryWriter(self.logs / self.stem, purge_step=len(self.history) + 1)
        return self

    def __exit__(self, kind: type | None, error: object, traceback: object) -> None:
        self.events.close()
        if kind is KeyboardInterrupt:
            if len(self.history) == self.config.epochs:
                way = f"all epochs are trained: the best weights are in {self._path('best')}"
            elif self.last_saved is None:
                way = "nothing is saved yet"
            else:
                way = f"to go on, run it again with resume set to {self.last_saved}"
            self.say(f"interrupted after epoch {len(self.history)}; {way}")
            raise KeyboardInterrupt(way) from None

    def say(self, text: str) -> None:
        """Say a line to the person who waits, and keep it in the log."""
        say(text)
        with open(self.logs / f"{self.stem}.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def step(self, epoch: int, step: int, loss: Tensor) -> None:
        """Say how an epoch goes, every `print_freq` steps."""
        if step % self.config.print_freq == 0:
            self.say(f"epoch {epoch}/{self.config.epochs}, step {step}: loss {loss.item():.4f}")

    def keep(self, result: EpochResult) -> None:
        """Write all that an epoch leaves behind."""
        self.say(epoch_line(result, self.config.epochs))
        self.history.append(result.figures())
        for key, value in result.figures().items():
            if isinstance(value, float):
                self.events.add_scalar(key, value, result.epoch)
        self.events.flush()
        if result.is_best:
            self._save("best", result)
        if result.epoch % self.config.save_freq == 0:
            self._save(f"epoch_{result.epoch}", result)
            if self.teacher is not None:
                models = {"student": result.student, "teacher": self.teacher}
                figure = draw_maps(models, self.pictured, attention_picture)
                self.events.add_figure("attention_maps", figure, result.epoch)
        if result.epoch == self.config.epochs:
            self._save("final", result)

    def keep_best(self, model: nn.Module, result: EpochResult) -> None:
        """Write the best weights if the file of that name has others, as after a resume it may."""
        path, epoch = self._path("best"), result.state["best_epoch"]
        if not path.exists() or read_checkpoint(path)["epoch"] != epoch:
            accuracy = result.best_validation_accuracy
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
            history=self.history,
        )
        self.last_saved = self._path(which)

    def _write(self, which: str, model: nn.Module, **figures: Any) -> None:
        config, classes = self.config.model_dump(), list(self.classes)
        save_model(self._path(which), model, config=config, classes=classes, **figures)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary."""
        write_text(self.logs / f"{self.stem}_summary.json", json.dumps(summary, indent=2))


def epoch_line(result: EpochResult, epochs: int) -> str:
    """One epoch in one line, for a person."""
    mark = " *" if result.is_best else ""
    validated = ""
    if result.validation_accuracy is not None:
        validated = f"validation {100 * result.validation_accuracy:.2f} %{mark}, "
    return (
        f"epoch {result.epoch}/{epochs}: loss {result.train_loss:.4f}, {validated}"
        f"{result.seconds:.1f} s"
    )
