"""Strengths of published recipes: what their weights are beside the classification loss.

`make bench-strengths DATA=/path TEACHERS="a.pth b.pth"`. For each teacher, at the size of its
images, it measures the terms of every method on untrained students, with batches of 64 images.
"""

import argparse
from pathlib import Path

from kdtune.config.train import TrainConfig
from kdtune.data.folders import find_images
from kdtune.training.loss_scales import LossScales
from kdtune.training.teacher import describe_teacher, load_teacher

STUDENTS, BATCH_SIZE = ("MultiBranchNet", "ResNet18"), 64

RECIPES = {
    "kd": [("SimKD", {"alpha": 1.0}), ("RepDistiller, mdistiller", {"alpha": 9.0})],
    "at": [("the authors' code", {"beta": 1e3})],
    "at_paper": [("the paper", {"beta": 0.1})],
    "fitnets": [("kdtune.fitnets", {"beta": 1e-3}), ("RepDistiller", {"beta": 100.0})],
    "vid": [("RepDistiller", {"beta": 1.0})],
    "sp": [("RepDistiller", {"beta": 3e3})],
    "rkd": [("RepDistiller", {"beta": 25.0})],
    "pkt": [("RepDistiller", {"beta": 3e4})],
    "dkd": [("mdistiller", {"alpha": 1.0, "beta": 8.0})],
    "dist": [
        ("the authors, CIFAR-100", {"beta": 2.0}),
        ("the authors, ImageNet", {"beta": 2.0, "temperature": 1.0}),
    ],
}
"""Sources and settings; T is 4 unless given."""


def measure_recipes(data_dir: str, teacher_path: Path) -> None:
    """Print the scales of all terms with a teacher, and the strengths of the recipes.

    Args:
        data_dir: an ImageFolder with the teacher's classes.
        teacher_path: checkpoint of the teacher.
    """
    data, summary = find_images(data_dir), describe_teacher(teacher_path)
    size = summary["image_size"]
    scales = LossScales(data, size, load_teacher(teacher_path, data.classes, size), seed=0)
    accuracy = 100 * summary["validation_accuracy"]
    print(f"\n{summary['model']} at {size} px, validation {accuracy:.1f} %\n")
    print(f"{'method':10}{'student':16}{'weight':8}{'scale':>10}{'recipe':>10}{'strength':>10}")
    for method, recipes in RECIPES.items():
        for student in STUDENTS:
            for source, settings in recipes:
                fixed = {"temperature": 4.0, "image_size": size, "batch_size": BATCH_SIZE}
                identity = {"method": method, "model": student}
                config = TrainConfig.parse({**fixed, **identity, **settings})
                measured = scales.measure(config)
                for weight in ("alpha", "beta"):
                    if weight in settings and weight in measured:
                        value, scale = settings[weight], measured[weight]
                        numbers = f"{scale:10.3g}{value:10g}{value * scale:10.3g}"
                        print(f"{method:10}{student:16}{weight:8}{numbers}  {source}", flush=True)


def main() -> None:
    """Measure with all teachers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("teachers", nargs="+", type=Path)
    arguments = parser.parse_args()
    for path in arguments.teachers:
        measure_recipes(arguments.data, path)


if __name__ == "__main__":
    main()
