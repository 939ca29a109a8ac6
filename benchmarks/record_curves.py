"""Record learning curves: random settings of every cell, some again with other seeds, some slower.

    python benchmarks/fashion_mnist.py usr/share/datasets/fashion-mnist DATA
    python benchmarks/record_curves.py DATA OUT > benchmarks/curves/fashion-mnist.jsonl

Trains a ResNet18 teacher on DATA/teacher, and students on DATA/student at 14 px, in four cells:

* 80 random settings each, none stopped;
* 8 of these, good ones and bad ones, with 3 further seeds, so that the noise of a run is known;
* the 4 best with a fifth of the learning rate and a late decay: slow, but sound.

About three hours on two cores. ``--trials`` and ``--epochs`` make it shorter, to try it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from kdtune.log.folder import SweepFolder
from kdtune.tuning.planning.recorded_curves import load_finished_trials, load_recorded_runs

REPEATED_RANKS = (0, 2, 4, 7, 11, 17, 40, 60)
"""Ranks of the settings that are repeated, from the best."""

SEEDS = (101, 102, 103)
SLOW_LR_FACTOR = 0.2
DECAY_EPOCHS, LATE_DECAY_EPOCHS = 6, 14
"""Epochs after which the learning rate is divided by 5."""

SPACE_TEMPLATE = '''"""Settings that were tried before."""

from search_spaces.{method} import METHOD, SPACE

START = {points}
'''


def run_kdtune(*arguments: object) -> None:
    """Run a command, whose words go to the error output, as the curves have the other one."""
    command = [sys.executable, "-m", "kdtune", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def main() -> None:
    """Record all, and print the curves."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("data", type=Path, help="what fashion_mnist.py wrote")
    parser.add_argument("out", type=Path, help="folder of teacher and spaces")
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=16)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    teacher = arguments.out / "teacher.pth"
    run_kdtune(
        "teacher", "--data", arguments.data / "teacher", "--model", "ResNet18",
        "--image-size", 14, "--epochs", 8, "--setting", "batch_size=64",
        "--setting", "step_size=4", "--setting", "lr=0.02", "--out", teacher,
    )  # fmt: skip

    def record_sweep(name: str, *extra_flags: object, step_size: int = DECAY_EPOCHS) -> list[str]:
        """Train all trials of a sweep to their end; gives their curves."""
        run_kdtune(
            "sweep", "--name", name, "--data", arguments.data / "student", "--teacher", teacher,
            "--methods", "at,fitnets", "--models", "MultiBranchNet", "--epochs", arguments.epochs,
            "--sampler", "random", "--scheduler", "none", "--repeat-share", 0,
            "--setting", "batch_size=64", "--setting", f"step_size={step_size}",
            "--setting", "gamma=0.2", *extra_flags,
        )  # fmt: skip
        return [
            json.dumps(row) for row in load_finished_trials(SweepFolder(Path("results") / name))
        ]

    def write_spaces(name: str, points: dict[str, list[dict[str, float]]]) -> list[object]:
        """Write spaces with these points as start points; gives their flags."""
        flags: list[object] = []
        for method, method_points in points.items():
            path = arguments.out / f"{name}_{method}.py"
            path.write_text(SPACE_TEMPLATE.format(method=method, points=method_points))
            flags += ["--space", path]
        return [*flags, "--trials", max(map(len, points.values()))]

    name = arguments.out.name
    lines = record_sweep(name, "--trials", arguments.trials)
    first_curves = arguments.out / "first.jsonl"
    first_curves.write_text("\n".join(lines))
    ranked = {
        method: sorted(runs, key=lambda run: max(run.accuracies), reverse=True)
        for (method, _), runs in load_recorded_runs(first_curves).items()
    }
    repeated_points = {
        method: [runs[rank].params for rank in REPEATED_RANKS if rank < len(runs)]
        for method, runs in ranked.items()
    }
    slow_points = {
        method: [{**r.params, "lr": max(1e-3, r.params["lr"] * SLOW_LR_FACTOR)} for r in runs[:4]]
        for method, runs in ranked.items()
    }
    for seed in SEEDS:
        lines += record_sweep(
            f"{name}-{seed}", *write_spaces("again", repeated_points), "--seed", seed
        )
    slow_flags = write_spaces("slow", slow_points)
    lines += record_sweep(
        f"{name}-slow", *slow_flags, "--seed", SEEDS[-1] + 1, step_size=LATE_DECAY_EPOCHS
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
