"""Cost of an epoch with one thread and with all, alone and beside other work.

    make bench-threads

`kdtune train` of a student on few images, in a process of its own for each of these ways:

* one: ``--threads 1``;
* all: a thread per core, which sleep soon while they wait for each other, as kdtune sets it;
* spin: likewise, but they spin for long first, as OpenMP does it where nobody sets anything.

All ways take turns, in random order, alone and beside a busy loop per core. Figures are medians
over the rounds of the median epoch; the first epoch of a run warms up and is left out. Another
program that uses the machine makes the figures of "alone" those of "beside", so the load average
is printed, too. At the end, the microseconds of a ReLU with a thread per core say what it costs to
wake threads that spun 0, 1,000 and 300,000 times: the 5th percentile, which others disturb least.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import yaml

SPIN = {"GOMP_SPINCOUNT": "300000"}  # GNU's default


def train(model: str, epochs: int, threads: int, spin: bool) -> float:
    """Return the median seconds of an epoch of a run in another process."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "method": "student", "model": model, "data_dir": "digits", "train_images": 40,
            "validation_images": 20, "test_images": 20, "image_size": 64,
            "epochs": epochs + 1, "experiment_name": "x",
        }  # fmt: skip
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "kdtune", "train", file.name, "--threads", str(threads)]
        environment = {**os.environ, **(SPIN if spin else {})}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        summary = json.loads((Path(folder) / "logs" / "x_summary.json").read_text())
    return float(median(epoch["seconds"] for epoch in summary["training_history"][1:]))


TIME_RELU = """
import time, numpy, torch
values, seconds = torch.randn(32, 64, 16, 16), []
for _ in range(1500):
    started = time.perf_counter()
    values.relu()
    seconds.append(time.perf_counter() - started)
print(1e6 * numpy.percentile(seconds, 5))
"""


def time_relu(spins: int) -> float:
    """Return the microseconds of an operation whose threads spin so often before they sleep."""
    environment = {**os.environ, "GOMP_SPINCOUNT": str(spins)}
    command = [sys.executable, "-c", TIME_RELU]
    output = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    return round(float(output), 1)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep a number of cores busy."""
    code = "while True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    """Print a row for every student, and all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--models", default="MultiBranchNet,ResNet18")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = {"one": (1, False), "all": (cores, False), "spin": (cores, True)}
    order, rows = random.Random(0), []
    headings = [f"{way:>7}" for way in ways]
    print(f"{'student':<15} {'':<7}", *headings, " spin/all  load", flush=True)
    for model in arguments.models.split(","):
        turns = [(where, way) for where in ("alone", "beside") for way in ways]
        seconds: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        load_before = os.getloadavg()[0]
        for _ in range(arguments.rounds):
            order.shuffle(turns)
            for where, way in turns:
                with busy_loops(cores if where == "beside" else 0):
                    run = train(model, arguments.epochs, *ways[way])
                seconds[where, way].append(run)
        for where in ("alone", "beside"):
            medians = {way: round(median(seconds[where, way]), 3) for way in ways}
            ratio = round(medians["spin"] / medians["all"], 2)
            rows.append({"model": model, "where": where, **medians, "spin_over_all": ratio})
            print(f"{model:<15} {where:<7}", *(f"{value:7.3f}" for value in medians.values()),
                  f"{ratio:9.2f} {load_before:5.1f}", flush=True)  # fmt: skip
    relu = {spins: time_relu(spins) for spins in (0, 1000, 300_000)}
    print("ReLU, µs, by spins:", relu)
    run_info = {"benchmark": "threads", "cores": cores, **vars(arguments)}
    print(json.dumps({**run_info, "rows": rows, "relu_microseconds": relu}))


if __name__ == "__main__":
    main()
