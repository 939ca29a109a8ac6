"""What an epoch of each method costs against one of the bare student, the teacher running live.

All methods train side by side in one process, an epoch each in turn, and each epoch is divided by
the student's of the same round, so a noisy machine disturbs all of them alike. The data are the
built-in digits; the teacher is a ResNet18 with fresh weights, since what it costs does not depend
on what it knows. The first round warms up and is left out.
"""

import argparse
import json
import platform
import statistics

import torch

from kdtune.config import TrainConfig
from kdtune.data.images import find_images
from kdtune.data.views import Views
from kdtune.inputs import Inputs
from kdtune.methods import METHODS
from kdtune.models import MODELS, build_model
from kdtune.training import fit


def measure(model: str, image_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of an epoch by method, `rounds` of them each, in the order of the rounds."""
    views = Views(find_images("digits"), image_size, cache=None, workers=2)
    runs = {}
    for method in METHODS:
        config = TrainConfig.check(
            {
                "method": method,
                "model": model,
                "image_size": image_size,
                "batch_size": 64,
                "epochs": rounds + 1,
                "alpha": 0.5,
                "beta": 1.0,
            }
        )
        inputs = Inputs(config, views, None, {}, print)  # no targets: the teacher runs live
        runs[method] = fit(
            config,
            inputs.train,
            inputs.evaluation("validation"),
            num_classes=10,
            teacher=build_model("ResNet18", 10, image_size),
        )
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(rounds + 1):
        for method, run in runs.items():
            seconds[method].append(next(run).seconds)
    return {method: times[1:] for method, times in seconds.items()}


def main() -> None:
    """Print a row for every student and method, and all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="MultiBranchNet,ResNet18", help=", ".join(MODELS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    print(f"{'model':<15} {'method':<8} {'s / epoch':>9} {'ratio to student':>17}  lowest-highest")
    for model in given.models.split(","):
        seconds = measure(model, given.image_size, given.rounds)
        for method, times in seconds.items():
            ratios = [a / b for a, b in zip(times, seconds["student"], strict=True)]
            row = {
                "model": model,
                "method": method,
                "seconds": round(statistics.median(times), 3),
                "ratio": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
            }
            rows.append(row)
            print(
                f"{model:<15} {method:<8} {row['seconds']:>9.2f} {row['ratio']:>17.2f}"
                f"  {row['lowest']:.2f}-{row['highest']:.2f}",
                flush=True,
            )
    about = {**vars(given), "machine": platform.processor() or platform.machine()}
    print(json.dumps({"benchmark": "epoch-cost", **about, "rows": rows}))


if __name__ == "__main__":
    main()
