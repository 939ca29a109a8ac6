"""Cost of checkpoints for a trial, and their number.

    make bench-checkpoints

Trials of the method student on the 1,259 digits, each in a process that has trained another one
before, as in a sweep: seconds of an epoch, of a checkpoint (in the page cache, as trials write
them, and on the disk, which they do not wait for), of how many epochs there is one, and what part
of the time all of them took. The goal is 2 % at most.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdtune.config.train import TrainConfig
from kdtune.runtime.process import keep_freed_memory
from kdtune.tuning.trials.results import EpochReported
from kdtune.tuning.trials.trial_checkpoints import TrialCheckpoints, list_checkpoints
from kdtune.tuning.trials.trial_process import ProcessMemory, run_trial

RUNS = [("MultiBranchNet", 8, 30), ("MultiBranchNet", 32, 10), ("ResNet18", 8, 30),
        ("ResNet18", 32, 8)]  # fmt: skip
"""Student, image size, epochs."""


def time_writes(write: Callable[..., Any], write_seconds: list[float]) -> Callable[..., Any]:
    """Return the function, which then records its times where something was written."""

    def wrapped(checkpoints: TrialCheckpoints, result: Any, history: Any) -> None:
        saved_before, started_at = checkpoints._saved_epoch, time.perf_counter()
        write(checkpoints, result, history)
        if checkpoints._saved_epoch != saved_before:
            write_seconds.append(time.perf_counter() - started_at)

    return wrapped


def measure_checkpoints(
    model: str, image_size: int, epochs: int, work_folder: Path
) -> dict[str, Any]:
    """Train two trials; figures are those of the second."""
    original_write, memory = TrialCheckpoints.save, ProcessMemory()
    for seed, num_epochs in ((0, 1), (1, epochs)):
        write_seconds: list[float] = []
        TrialCheckpoints.save = time_writes(original_write, write_seconds)  # type: ignore[method-assign]
        settings = {
            "method": "student", "model": model, "data_dir": "digits", "image_size": image_size,
            "batch_size": 64, "epochs": num_epochs, "seed": seed,
        }  # fmt: skip
        config, folder = TrainConfig.parse(settings), work_folder / f"{model}-{image_size}-{seed}"
        results = list(run_trial(config.model_dump(), memory, folder))
    TrialCheckpoints.save = original_write  # type: ignore[method-assign]
    epoch_seconds = [r.metrics.seconds for r in results if isinstance(r, EpochReported)]
    [*_, path] = list_checkpoints(folder)
    content, started_at = path.read_bytes(), time.perf_counter()
    with open(work_folder / "synced", "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return {
        "student": f"{model}, {image_size} px",
        "megabytes": len(content) / 1e6,
        "epoch_seconds": median(epoch_seconds),
        "checkpoint_seconds": median(write_seconds),
        "synced_seconds": time.perf_counter() - started_at,
        "checkpoints": len(write_seconds),
        "epochs": epochs,
        "share_percent": 100 * sum(write_seconds) / sum(epoch_seconds),
    }


def main() -> None:
    """Measure, and print a table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    columns = (
        "student",
        "MB",
        "epoch s",
        "checkpoint s",
        "on the disk s",
        "checkpoints",
        "share %",
    )
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as work_folder:
        for run in RUNS:
            rows.append(row := measure_checkpoints(*run, Path(work_folder)))
            print(
                f"| {row['student']} | {row['megabytes']:.1f} | {row['epoch_seconds']:.2f} "
                f"| {row['checkpoint_seconds']:.3f} | {row['synced_seconds']:.3f} "
                f"| {row['checkpoints']} of {row['epochs']} | {row['share_percent']:.1f} |",
                flush=True,
            )
    print(json.dumps({"most_percent": max(row["share_percent"] for row in rows), "rows": rows}))


if __name__ == "__main__":
    main()
