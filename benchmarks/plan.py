"""Errors of plans: three sweeps of different kinds, each planned and then run.

    make bench-plan                   # with JPEGs made of the digits
    make bench-plan DATA=/path        # or an ImageFolder, such as CIFAR-10 as JPEG

Each is one command, `kdtune sweep --plan`, in a process of its own, and the table is what
`kdtune table NAME plan` says: wall time from the first proposal until all is written, device
seconds of epochs, epochs, trials. Learning curves are synthetic, so a wrong number of epochs is
theirs; *a trial's epoch* is device seconds over epochs, and *the rest* what the same epochs
leave of the wall time. What other programs do meanwhile counts, too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trial import write_jpegs

from kdtune.log.folder import SweepFolder
from kdtune.runtime.environment import describe_environment

MAX_RELATIVE_ERROR = 0.25
"""By how much a plan may be wrong, as a share."""

TEACHER = "teacher --model ResNet18 --quiet"
SWEEPS = {
    "digits, MultiBranchNet": (
        "",
        "--data digits --image-size 8 --methods student --no-baselines --models MultiBranchNet "
        "--trials 12 --epochs 10 --setting batch_size=32",
    ),
    "digits, two students, baselines": (
        f"{TEACHER} --data digits --image-size 8 --epochs 2 --out teacher.pth",
        "--data digits --teacher teacher.pth --methods at --models MultiBranchNet,ResNet18 "
        "--trials 4 --epochs 4 --setting batch_size=64",
    ),
    "JPEGs, teacher, augmented": (
        f"{TEACHER} --data jpegs --image-size 32 --epochs 1 --out jpegs.pth",
        "--data jpegs --teacher jpegs.pth --methods at,fitnets --models MultiBranchNet "
        "--no-baselines --trials 5 --epochs 4 --setting augment=true --setting batch_size=64",
    ),
}
"""By name, how the teacher is made, if there is one, and the flags of the sweep."""


def link_images(folder: Path, source: Path, per_class: int) -> None:
    """Make an ImageFolder of links to the first images of each class."""
    root = source / "train" if (source / "train").is_dir() else source
    for class_folder in (path for path in sorted(root.iterdir()) if path.is_dir()):
        (folder / class_folder.name).mkdir(parents=True)
        for image in sorted(class_folder.iterdir())[:per_class]:
            (folder / class_folder.name / image.name).symlink_to(image.resolve())


def run_kdtune(*arguments: str) -> str:
    """Run a command and return its output."""
    command = [sys.executable, "-m", "kdtune", *arguments]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{completed.stderr}")
    return completed.stdout


def measure_plan_error(number: int, teacher: str, flags: str) -> dict[str, Any]:
    """Plan and run a sweep; return its table of plan against actual, and the plan's duration."""
    if teacher:
        run_kdtune(*teacher.split())
    name = f"sweep-{number}"
    started_at = time.perf_counter()
    run_kdtune("sweep", *flags.split(), "--name", name, "--plan", "--quiet")
    command_seconds = time.perf_counter() - started_at
    table = json.loads(run_kdtune("table", f"results/{name}", "plan", "--format", "json"))
    plan = json.loads(SweepFolder(Path("results") / name).plan_path.read_text())
    rows = {row["what"]: (row["planned"], row["actual"]) for row in table}
    (planned, actual), (planned_epochs, actual_epochs) = rows["device seconds"], rows["epochs"]
    rows["a trial's epoch"] = planned / planned_epochs, actual / actual_epochs
    return {"rows": rows, "plan_seconds": plan["seconds"], "command_seconds": command_seconds}


def main() -> None:
    """Plan and run all of `SWEEPS`, and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("--data", type=Path, help="an ImageFolder; its first images are used")
    arguments = parser.parse_args()
    data = arguments.data.resolve() if arguments.data else None
    results = {}
    print("| sweep | what | planned | actual | actual / planned |\n" + "|---" * 5 + "|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["KDTUNE_CACHE"] = str(Path(folder) / "cache")
        root = str(Path(__file__).parent.parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        source = data or write_jpegs(Path("digits"), 1000)
        link_images(Path("jpegs"), source, 80)
        for number, (name, (teacher, flags)) in enumerate(SWEEPS.items(), start=1):
            results[name] = result = measure_plan_error(number, teacher, flags)
            for figure, (planned, actual) in result["rows"].items():
                ratio = actual / planned
                print(
                    f"| {name} | {figure} | {planned:.4g} | {actual:.4g} | {ratio:.2f} |",
                    flush=True,
                )
    walls = {name: result["rows"]["wall seconds"] for name, result in results.items()}
    errors = {name: abs(actual / planned - 1) for name, (planned, actual) in walls.items()}
    worst = max(errors.values())
    verdict = "reached" if worst <= MAX_RELATIVE_ERROR else "missed"
    goal = f"the goal, {MAX_RELATIVE_ERROR:.0%}, is {verdict}"
    print(f"\nwall time: wrong by {100 * worst:.0f} % at worst; {goal}")
    print(json.dumps({"worst_wall_error": round(worst, 3), "errors": errors, "sweeps": results,
                      "environment": describe_environment()}))  # fmt: skip


if __name__ == "__main__":
    main()
