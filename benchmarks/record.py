"""Record learning curves: random settings of every cell, some again with other seeds, some slower.

    python benchmarks/fashion_mnist.py usr/share/datasets/fashion-mnist DATA
    python benchmarks/record.py DATA OUT > benchmarks/curves/fashion-mnist.jsonl

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
from kdtune.tuning.planning.recorded_curves import condense, read_runs

RANKS = (0, 2, 4, 7, 11, 17, 40, 60)
"""Which of the settings, from the best, are repeated."""

SEEDS = (101, 102, 103)
SLOWER = 0.2
DECAY, LATE_DECAY = 6, 14
"""Epochs after which the learning rate is divided by 5."""

AGAIN = '''"""Settings that were tried before."""

from search_spaces.{method} import METHOD, SPACE

START = {points}
'''


def kdtune(*words: object) -> None:
    """Run a command, whose words go to the error output, as the curves have the other one."""
    command = [sys.executable, "-m", "kdtune", *map(str, words)]
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
    kdtune(
        "teacher", "--data", arguments.data / "teacher", "--model", "ResNet18",
        "--image-size", 14, "--epochs", 8, "--setting", "batch_size=64",
        "--setting", "step_size=4", "--setting", "lr=0.02", "--out", teacher,
    )  # fmt: skip

    def sweep(name: str, *more: object, step_size: int = DECAY) -> list[str]:
        """Train all trials of a sweep to their end; gives their curves."""
        kdtune(
            "sweep", "--name", name, "--data", arguments.data / "student", "--teacher", teacher,
            "--methods", "at,fitnets", "--models", "MultiBranchNet", "--epochs", arguments.epochs,
            "--sampler", "random", "--scheduler", "none", "--setting", "batch_size=64",
            "--setting", f"step_size={step_size}", "--setting", "gamma=0.2", *more,
        )  # fmt: skip
        return [json.dumps(row) for row in condense(SweepFolder(Path("results") / name))]

    def spaces(name: str, points: dict[str, list[dict[str, float]]]) -> list[object]:
        """Write spaces with these points as start points; gives their flags."""
        flags: list[object] = []
        for method, own in points.items():
            path = arguments.out / f"{name}_{method}.py"
            path.write_text(AGAIN.format(method=method, points=own))
            flags += ["--space", path]
        return [*flags, "--trials", max(map(len, points.values()))]

    name = arguments.out.name
    lines = sweep(name, "--trials", arguments.trials)
    first = arguments.out / "first.jsonl"
    first.write_text("\n".join(lines))
    ranked = {
        method: sorted(runs, key=lambda run: max(run.accuracies), reverse=True)
        for (method, _), runs in read_runs(first).items()
    }
    again = {
        method: [runs[rank].settings for rank in RANKS if rank < len(runs)]
        for method, runs in ranked.items()
    }
    slower = {
        method: [{**r.settings, "lr": max(1e-3, r.settings["lr"] * SLOWER)} for r in runs[:4]]
        for method, runs in ranked.items()
    }
    for seed in SEEDS:
        lines += sweep(f"{name}-{seed}", *spaces("again", again), "--seed", seed)
    late = spaces("slow", slower)
    lines += sweep(f"{name}-slow", *late, "--seed", SEEDS[-1] + 1, step_size=LATE_DECAY)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
