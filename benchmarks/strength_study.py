"""Do good strengths carry over from one student, teacher and data set to another?

    python benchmarks/fashion_mnist.py usr/share/datasets/fashion-mnist FASHION
    python benchmarks/strength_study.py run FASHION CIFAR OUT
    python benchmarks/strength_study.py report benchmarks/strengths/runs.jsonl

`run` trains a teacher for each set-up, and students with strengths from 0.01 to 100 of each method
and without a teacher; CIFAR is an image folder. `OUT/runs.jsonl` gets a line for each run, and a
second call trains what is missing. `report` compares good strengths with the weights that they
were, all in Markdown. Lost points are those with the best weight / strength of another cell.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdtune.config.data import DataSource
from kdtune.config.strengths import STRENGTHS as WEIGHT_NAMES
from kdtune.config.strengths import strengths_to_weights
from kdtune.config.train import TrainConfig
from kdtune.data.folders import find_images
from kdtune.data.splits import ImageData
from kdtune.errors import DivergedError
from kdtune.training.loop import fit
from kdtune.training.loss_scales import LossScales
from kdtune.training.run import open_run_batches
from kdtune.training.teacher import load_teacher


class Setup(NamedTuple):
    """Images of teacher and students, and the teacher; folders are relative to the data's."""

    image_size: int
    teacher_folder: str
    student_folder: str
    teacher_flags: str


SETUPS = {
    "fashion": Setup(
        14, "teacher", "student",
        "--model ResNet18 --epochs 8 --setting batch_size=64 --setting step_size=4"
        " --setting lr=0.02",
    ),
    "cifar": Setup(
        10, ".", ".",
        "--model MultiBranchNet --epochs 8 --setting batch_size=64 --setting step_size=6"
        " --setting lr=0.05 --train-images 10000 --validation-images 500 --test-images 500",
    ),
}  # fmt: skip

STUDENTS = ("MultiBranchNet", "ResNet18")
STRENGTH_NAMES = {m: "beta_strength" for m in ("at", "fitnets", "sp")} | {"kd": "alpha_strength"}
PLAIN = "student"
STRENGTHS = tuple(float(f"{10**exponent:.4g}") for exponent in np.linspace(-2, 2, 7))
SEEDS = (1, 2)
TRAIN_IMAGES, VALIDATION_IMAGES, EPOCHS = 320, 500, 6
SETTINGS = {
    "batch_size": 32, "epochs": EPOCHS, "lr": 0.02, "step_size": 4, "gamma": 0.2,
    "temperature": 4.0, "alpha": 0.0, "num_workers": 1, "cache_gb": 1,
}  # fmt: skip
"""Settings of all runs but the weight in question; lr is divided by 5 after four epochs."""

IDENTITY = ("seed", "model", "setup", "method", "strength")
"""Keys that tell runs apart."""


def list_runs() -> Iterator[dict[str, Any]]:
    """Yield what tells runs apart, all of a seed before the next."""
    methods = [(PLAIN, None), *itertools.product(STRENGTH_NAMES, STRENGTHS)]
    for *cell, (method, strength) in itertools.product(SEEDS, STUDENTS, SETUPS, methods):
        yield dict(zip(IDENTITY, (*cell, method, strength), strict=True))


def train_teacher(name: str, folder: Path, path: Path) -> None:
    """Train the teacher of a set-up, unless its file exists.

    Args:
        name: of the set-up.
        folder: its images.
        path: file of the teacher.
    """
    setup = SETUPS[name]
    if not path.exists():
        command = [sys.executable, "-m", "kdtune", "teacher", *setup.teacher_flags.split()]
        flags = ["--data", folder / setup.teacher_folder, "--image-size", setup.image_size]
        subprocess.run([*command, *map(str, flags), "--out", path], check=True)


@lru_cache
def open_setup(name: str, folder: Path, teacher_path: Path) -> tuple[ImageData, Any, LossScales]:
    """Return the students' images, the teacher, and what measures scales.

    Args:
        name: of the set-up.
        folder: its images.
        teacher_path: file of the teacher.
    """
    setup = SETUPS[name]
    source = DataSource(str(folder / setup.student_folder), None, TRAIN_IMAGES, VALIDATION_IMAGES)
    data = find_images(source).without_test()
    teacher = load_teacher(teacher_path, data.classes, setup.image_size)
    return data, teacher, LossScales(data, setup.image_size, teacher, seed=0)


def train_student(task: tuple[dict[str, Any], Path, Path]) -> dict[str, Any]:
    """Train a student; returns what is recorded of the run.

    Args:
        task: what tells the run apart, folder of the images, and file of the teacher.
    """
    identity, folder, teacher_path = task
    method, strength = identity["method"], identity["strength"]
    data, teacher, scales = open_setup(identity["setup"], folder, teacher_path)
    image_size = SETUPS[identity["setup"]].image_size
    own = {key: identity[key] for key in ("method", "model", "seed")}
    config = TrainConfig.parse({**SETTINGS, **own, "image_size": image_size})
    recorded = dict(identity)
    if method == PLAIN:
        teacher = None
    else:
        name = STRENGTH_NAMES[method]
        measured = scales.measure(config)
        config = config.model_copy(update=strengths_to_weights({name: strength}, measured))
        weight = WEIGHT_NAMES[name]
        recorded |= {"scale": measured[weight], "weight": getattr(config, weight)}
    train, validation, *_ = open_run_batches(config, data, teacher, data.classes, {})
    accuracies = []
    with suppress(DivergedError):
        for result in fit(
            config, train, validation, num_classes=len(data.classes), teacher=teacher
        ):
            accuracies.append(result.validation_accuracy)
    return {**recorded, "validation_accuracy": accuracies}


def load_runs(path: Path) -> list[dict[str, Any]]:
    """Return recorded runs; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_study(folders: dict[str, Path], out: Path) -> None:
    """Train teachers, and the students that were not recorded yet.

    Args:
        folders: images by set-up.
        out: folder of teachers and of the recorded runs.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        train_teacher(name, folder, out / f"{name}.pth")
    done = [{key: run[key] for key in IDENTITY} for run in load_runs(out / "runs.jsonl")]
    tasks = [
        (run, folders[run["setup"]], out / f"{run['setup']}.pth")
        for run in list_runs()
        if run not in done
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        multiprocessing.get_context("spawn").Pool(2) as pool,
        (out / "runs.jsonl").open("a") as file,
    ):
        for recorded in pool.imap(train_student, tasks):
            print(json.dumps(recorded), file=file, flush=True)


CELL = ["method", "model", "setup"]
LOG_STRENGTHS = np.log10(STRENGTHS)

Optimum = dict[str, Any]
"""The best of a cell: log10 of ``weight``, ``strength`` and ``scale``; the curve's ``means``."""


def final_accuracy(accuracies: list[float]) -> float:
    """Return the mean of the last two epochs in percent; chance if a loss became infinite."""
    return 100 * float(np.mean(accuracies[-2:])) if len(accuracies) == EPOCHS else 10.0


def standard_error(curves: list[pd.DataFrame]) -> float:
    """Return that of a difference of two strengths' means, from how seeds differ.

    What a seed gains with all strengths does not count.

    Args:
        curves: accuracies of a student and set-up, [strengths, seeds], for each method.
    """
    gaps = np.stack([curve.diff(axis=1).to_numpy()[:, 1] for curve in curves])
    return float(np.sqrt(gaps.var(axis=1, ddof=1).mean() / 2))


def find_best(accuracies: np.ndarray, tolerance: float) -> float:
    """Return log10 of the middle of the strengths within `tolerance` points of the best.

    Args:
        accuracies: of all strengths.
        tolerance: in points.
    """
    return float(LOG_STRENGTHS[accuracies >= accuracies.max() - tolerance].mean())


def find_optima(runs: pd.DataFrame) -> list[Optimum]:
    """Return the best of each cell, and print them.

    Args:
        runs: as recorded, with the final accuracy.
    """
    optima = []
    columns = "student,set-up,method,scale,plain %,best %,strength,weight,seeds".split(",")
    print_row(*columns)
    print_row(*["---"] * len(columns))
    for (model, setup), group in runs.groupby(CELL[1:]):
        table = group.pivot(index="strength", columns=["method", "seed"], values="accuracy")
        curves = {method: table[method].dropna() for method in STRENGTH_NAMES}
        error = standard_error(list(curves.values()))
        plain = group[group.method == PLAIN].accuracy.mean()
        for method, curve in curves.items():
            means = curve.mean(axis=1).to_numpy()
            log_scale = np.log10(group[group.method == method].scale.iloc[0])
            best = {"strength": find_best(means, error), "scale": log_scale, "means": means}
            best["weight"] = best["strength"] - best["scale"]
            by_seed = [find_best(curve[seed].to_numpy(), error * 2**0.5) for seed in SEEDS]
            best |= dict(zip(CELL, (method, model, setup), strict=True), seed_gap=np.ptp(by_seed))
            optima.append(best)
            log_values = (best[name] for name in ("scale", "strength", "weight"))
            scale, *chosen = (f"{float(f'{10**value:.2g}'):g}" for value in log_values)
            numbers = scale, f"{plain:.1f}", f"{means.max():.1f}", *chosen
            print_row(model, setup, method, *numbers, f"{best['seed_gap']:.1f}")
    gap = np.mean([best["seed_gap"] for best in optima])
    print(f"\nThe best of one seed and of the other are {gap:.2f} decades apart in the mean.")
    return optima


def carry_over_loss(source: Optimum, target: Optimum, name: str) -> float:
    """Return the points that a cell loses with the best of another one.

    Between trained strengths, accuracies are interpolated; beyond them, the outermost one counts.

    Args:
        source: cell of the best.
        target: cell that gets it.
        name: ``weight`` or ``strength``, which is carried over.
    """
    carried = source[name] + (target["scale"] if name == "weight" else 0)
    own, other = np.interp([target["strength"], carried], LOG_STRENGTHS, target["means"])
    return float(own - other)


def print_spread(optima: list[Optimum]) -> None:
    """Print how far apart the best weights and strengths are: range and sd in decades.

    Args:
        optima: of all cells.
    """
    print_row("\nmethod", "weights, range", "sd", "strengths, range", "sd")
    print_row(*["---"] * 5)
    variances = []
    for method in (*STRENGTH_NAMES, "all as one"):
        own = [best for best in optima if method in (best["method"], "all as one")]
        values = np.array([[best["weight"], best["strength"]] for best in own])
        variances.append(values.var(axis=0, ddof=1))
        ranges = np.ptp(values, axis=0)
        pairs = zip(ranges, variances[-1] ** 0.5, strict=True)
        print_row(method, *(f"{number:.2f}" for pair in pairs for number in pair))
    pooled = np.mean(variances[:-1], axis=0) ** 0.5
    print_row("within methods", "", f"{pooled[0]:.2f}", "", f"{pooled[1]:.2f}")


def print_losses(optima: list[Optimum]) -> None:
    """Print the points that are lost with the best weight, or strength, of another cell.

    Args:
        optima: of all cells.
    """
    rows = [
        {
            "method": a["method"],
            "differs": " and ".join(key for key in CELL if a[key] != b[key]),
            **{name: carry_over_loss(a, b, name) for name in ("weight", "strength")},
        }
        for a, b in itertools.permutations(optima, 2)
    ]
    losses = pd.DataFrame(rows)
    kinds = ["model", "setup", "model and setup"]
    print_row("\nmethod", *kinds, "all")
    print_row(*["---"] * (len(kinds) + 2))
    same_method = losses[losses.differs.isin(kinds)]
    for method in (*STRENGTH_NAMES, "all"):
        own = same_method[(same_method.method == method) | (method == "all")]
        print_row(
            method, *(mean_losses(own[own.differs == kind]) for kind in kinds), mean_losses(own)
        )
    print_row("from another method", "", "", "", mean_losses(losses[losses.differs == "method"]))


def mean_losses(losses: pd.DataFrame) -> str:
    """Return the mean points that are lost by weights / by strengths."""
    return f"{losses.weight.mean():.2f} / {losses.strength.mean():.2f}"


def print_row(*values: str) -> None:
    """Print a row of a Markdown table."""
    first, *rest = values
    print("\n" * first.count("\n") + "| " + " | ".join([first.strip(), *rest]) + " |")


def print_report(path: Path) -> None:
    """Print tables: the best of each cell, their spread, and what carrying over loses.

    Args:
        path: recorded runs.
    """
    runs = pd.DataFrame(load_runs(path))
    runs["accuracy"] = runs.validation_accuracy.map(final_accuracy)
    optima = find_optima(runs)
    print_spread(optima)
    print_losses(optima)


def main() -> None:
    """Record or report."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("fashion", type=Path, help="what fashion_mnist.py wrote")
    run.add_argument("cifar", type=Path, help="CIFAR-10 as an image folder")
    run.add_argument("out", type=Path, help="folder of teachers and runs.jsonl")
    report = commands.add_parser("report")
    report.add_argument("runs", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        folders = {"fashion": arguments.fashion, "cifar": arguments.cifar}
        run_study(folders, arguments.out)
    else:
        print_report(arguments.runs)


if __name__ == "__main__":
    main()
