"""Speed of training on a GPU, against the same step as a CUDA graph that has all it needs.

For each student, image size and batch size:

* eager: the step from Python, with ready tensors, channels last (nhwc) and channels first (nchw);
* graph: the same as a CUDA graph, at least 200 replays; the faster of both memory formats;
* ours: a whole epoch of `fit` that is not the first one, with gathering of batches, recording of
  the graph and sums of metrics, for arrays that are on the GPU.

All use bfloat16 where the GPU has it. Images are noise, the teacher (a ResNet18) has fresh
weights, and its targets are repeated: what a step costs does not depend on them.

Then several processes train the smallest case at once: how many trials does the GPU carry?
Last, without a GPU too: kernels of a step, counted as operations of PyTorch that are no views.

``--device cpu`` shows that the program runs, on a small case. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache

import torch
from kernel_counter import KernelCounter
from torch import Tensor, nn

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batches
from kdtune.models import build_model
from kdtune.models.on_device import DeviceModel
from kdtune.training.cuda_graph import CudaGraphRecorder, use_stream
from kdtune.training.loop import build_method_for_models, build_student, fit
from kdtune.training.optimizer import build_optimizer
from kdtune.training.step import TrainingStep

STUDENTS = ("MultiBranchNet", "ResNet18")
CASES = ((32, 64), (32, 256), (128, 64), (128, 256))
"""(image size in pixels, batch size)"""

CPU_CASES = ((32, 8),)

MEASURE_SECONDS = 1.0
"""Of each eager step and graph."""

NUM_CLASSES = 10
Batch = tuple[Tensor, Tensor, dict[str, Tensor]]


def make_config(device: torch.device, student: str, size: int, batch_size: int) -> TrainConfig:
    """Return the settings of an AT run in the device's fastest precision."""
    settings = {"alpha": 0.5, "beta": 1.0, "lr": 1e-3, "epochs": 10**6, "device": str(device)}
    shape = {"model": student, "image_size": size, "batch_size": batch_size}
    return TrainConfig.parse({"method": "at", **settings, **shape})


@cache
def build_teacher(size: int) -> nn.Module:
    """Return a ResNet18 with fresh weights, in eval mode."""
    torch.manual_seed(0)
    return build_model("ResNet18", NUM_CLASSES, size).eval().requires_grad_(False)


@cache
def make_noise(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return images and labels."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, NUM_CLASSES, (count,), generator=generator)


def make_data(config: TrainConfig, teacher: nn.Module, count: int) -> Batch:
    """Return noise with labels and the teacher's targets of its first 64 images, repeated."""
    images, labels = make_noise(count, config.image_size)
    method = build_method_for_models(config, build_student(config, NUM_CLASSES), teacher)
    with torch.no_grad():
        targets = method.targets(*teacher(images[:64].float() / 255))
    repeats = {name: value[torch.arange(count) % len(value)] for name, value in targets.items()}
    return images, labels, repeats


def make_step(
    config: TrainConfig,
    teacher: nn.Module,
    device: torch.device,
    memory_format: torch.memory_format,
) -> TrainingStep:
    """Return the step of a fresh student in a memory format."""
    student = DeviceModel(build_student(config, NUM_CLASSES), device, config)
    student.memory_format = memory_format
    student.model.to(memory_format=memory_format)
    method = build_method_for_models(config, student.model, teacher).to(device)
    optimizer = build_optimizer(config, [*student.model.parameters(), *method.parameters()])
    return TrainingStep(student, None, method, optimizer)


def measure_rate(
    run: Callable[[], object], images: int, device: torch.device, least: int = 3
) -> tuple[float, float]:
    """Return images per second, and the milliseconds for which a call keeps the host."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(least):
        run()
    synchronize()
    count, started_at, host_seconds = 0, time.perf_counter(), 0.0
    while count < least or time.perf_counter() - started_at < MEASURE_SECONDS:
        before = time.perf_counter()
        run()
        host_seconds += time.perf_counter() - before
        count += 1
        if count % 50 == 0:
            synchronize()  # else the host is hundreds of steps ahead when the time is over
    synchronize()
    rate = count * images / (time.perf_counter() - started_at)
    return rate, 1e3 * host_seconds / count


def measure_case(config: TrainConfig, device: torch.device, num_images: int) -> dict[str, float]:
    """Return images per second of each way, and the host's milliseconds of an eager step."""
    teacher = build_teacher(config.image_size)
    images, labels, targets = make_data(config, teacher, config.batch_size)
    batch = images.to(device), labels.to(device), {k: v.to(device) for k, v in targets.items()}
    row: dict[str, float] = {}
    for name, memory_format in (("nhwc", torch.channels_last), ("nchw", torch.contiguous_format)):
        step = make_step(config, teacher, device, memory_format)
        step.start_epoch()
        run = lambda step=step: step(*batch)  # noqa: E731
        rate = measure_rate(run, config.batch_size, device)
        row[f"eager {name}"], row[f"host ms {name}"] = rate
        if device.type == "cuda":
            recorder = CudaGraphRecorder(device)
            with use_stream(recorder.stream):
                for _ in range(3):
                    step(*batch)
                replay, _ = recorder.record(run)
                row[f"graph {name}"], _ = measure_rate(
                    replay, config.batch_size, device, least=200
                )
    row["ours"], row["ours host ms"] = measure_ours(config, device, num_images)
    return row


def make_batches(
    config: TrainConfig, teacher: nn.Module, device: torch.device, num_images: int
) -> Batches:
    """Return shuffled batches of noise and targets, on the GPU if there is one."""
    images, labels, targets = make_data(config, teacher, num_images)
    arrays = {name: value.numpy() for name, value in targets.items()}
    pixels, size = images.numpy(), config.batch_size
    return Batches(pixels, labels.tolist(), size, True, targets=arrays, device=device)


def measure_ours(
    config: TrainConfig, device: torch.device, num_images: int, epochs: int = 2
) -> tuple[float, float]:
    """Return images per second of whole epochs after the first, and milliseconds a step."""
    teacher = build_teacher(config.image_size)
    batches = make_batches(config, teacher, device, num_images)
    results = fit(config, batches, None, num_classes=NUM_CLASSES, teacher=teacher)
    next(results)
    seconds = [next(results).seconds for _ in range(epochs)]
    return num_images * epochs / sum(seconds), 1e3 * sum(seconds) / (epochs * len(batches))


def train_until_killed(config: TrainConfig, device: torch.device, num_images: int) -> None:
    """Train epochs, and print the seconds of each."""
    teacher = build_teacher(config.image_size)
    batches = make_batches(config, teacher, device, num_images)
    for result in fit(config, batches, None, num_classes=NUM_CLASSES, teacher=teacher):
        print(result.seconds, flush=True)


def measure_together(processes: int, device: str, num_images: int, epochs: int = 2) -> float:
    """Return images per second, in all, of processes that train on one GPU at once."""
    command = [sys.executable, __file__, "--device", device, "--images", str(num_images)]
    workers = [
        subprocess.Popen([*command, "--train"], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]

    def read_seconds(worker: subprocess.Popen[str]) -> float:
        assert worker.stdout is not None
        return float(worker.stdout.readline() or "inf")  # inf: it died, such as of lack of memory

    try:
        for worker in workers:
            read_seconds(worker)  # the first epoch, which warms up
        rates = []
        for worker in workers:  # all train until the last one is measured
            seconds = [read_seconds(worker) for _ in range(epochs)]
            rates.append(num_images * epochs / sum(seconds))
        return sum(rates)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def count_kernels(student: str) -> dict[str, int]:
    """Return the kernels of a step at 32 px by method, counted on a CPU in float32."""
    cpu, counts = torch.device("cpu"), {}
    for method in BUILTIN_METHODS:
        settings = {"alpha": 0.5, "beta": 0.0 if method == "student" else 1.0, "batch_size": 4}
        shape = {"model": student, "image_size": 32, "precision": "float32"}
        config = TrainConfig.parse({"method": method, **settings, **shape})
        teacher = build_teacher(32)
        step = make_step(config, teacher, cpu, torch.contiguous_format)
        batches = iter(make_batches(config, teacher, cpu, 12))
        step.start_epoch()
        step(*next(batches))
        with KernelCounter() as counter:
            step(*next(batches))
        counts[method] = counter.count
    return counts


def main() -> None:
    """Print a table, and JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu shows that the program runs")
    parser.add_argument("--images", type=int, default=50_000, help="in an epoch")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if arguments.device == "cuda" else arguments.device)
    on_gpu = device.type == "cuda"
    cases = CASES if on_gpu else CPU_CASES
    if arguments.train:
        config = make_config(device, STUDENTS[0], *cases[0])
        train_until_killed(config, device, arguments.images)
        return
    if on_gpu and not torch.cuda.is_available():
        sys.exit("There is no GPU; --device cpu shows that the program runs.")
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    print(f"{name}, torch {torch.__version__}, {arguments.images:,} images an epoch")
    ratios, rows, limit = [], [], "graph" if on_gpu else "eager"
    for student in STUDENTS:
        for size, batch_size in cases:
            config = make_config(device, student, size, batch_size)
            row = measure_case(config, device, arguments.images)
            rows.append(row)
            best = max(value for key, value in row.items() if key.startswith(limit))
            ratios.append(row["ours"] / best)
            values = ", ".join(f"{key} {value:,.4g}" for key, value in row.items())
            case = f"{student} {size} px x {batch_size}"
            print(f"{case}: {values}; ours / {limit} {ratios[-1]:.2f}", flush=True)
    together = {
        n: measure_together(n, arguments.device, arguments.images)
        for n in ((1, 2, 4, 8) if on_gpu else (1, 2))
    }
    print("images per second of processes together:", {n: round(r) for n, r in together.items()})
    for student in STUDENTS:
        print(f"kernels of a step, {student}, 32 px:", count_kernels(student))
    summary = {
        "gpu": name,
        f"ours_over_{limit}": round(min(ratios), 3),
        "images_per_second": round(rows[0]["ours"]),
        "host_ms_per_step": round(rows[0]["ours host ms"], 3),
        "trials_per_gpu": max(together, key=lambda n: together[n]),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
