"""Cost of an epoch of a trial, compared with the limit, the bare student and other ways.

For each teacher, student and method, side by side in one process, with one thread of torch's:

* bare: the student alone on tensors in memory: forward, cross-entropy, backward, step (a0);
* limit: the same with the method's loss, on targets in memory (a);
* ours: a warm trial as a sweep runs it, validation left out (b);
* live: our loop with DataLoader workers and the teacher running beside the student (c);
* stock: the plain recipe of a tutorial: ImageFolder, DataLoader, live teacher, float32 (d).

An epoch of each is timed in every round, in random order, and ratios are taken within a round, so
a noisy machine disturbs all alike. The first epoch of each warms up and is left out; workers stay
alive between epochs. Teachers have fresh weights, with batch-norm statistics of these images: what
one costs does not depend on what it knows. Without --data, JPEGs are made of the built-in digits.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder

from kdtune.config.train import TrainConfig
from kdtune.data.batches import SeededBatchSampler
from kdtune.data.decoded import DecodedDataset
from kdtune.data.folders import find_images
from kdtune.data.loaders import CheckedLoader, SeededSampler, SplitDataset
from kdtune.data.splits import ImageData, Split
from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from kdtune.models import build_model, probe_stage_shapes
from kdtune.models.on_device import DeviceModel
from kdtune.runtime.process import keep_freed_memory
from kdtune.storage.array_cache import ArrayCache
from kdtune.training.epoch_data import open_epoch_data
from kdtune.training.loop import build_method_for_models, build_student, fit
from kdtune.training.optimizer import build_optimizer
from kdtune.training.teacher_targets import TeacherTargets

WAYS = ("bare", "limit", "ours", "live", "stock")
TEACHERS, STUDENTS = ("ResNet50", "ResNet18"), ("MultiBranchNet", "ResNet18")
NUM_IMAGES, IMAGE_SIZE, ROUNDS, WORKERS = 640, 64, 3, 2
Epochs = Iterator[object]
"""Each `next` trains one epoch."""


def write_jpegs(root: Path, count: int) -> Path:
    """Write digits as colour JPEGs of 32 px, as an ImageFolder with ``train/`` and ``test/``."""
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / ("test" if i % 9 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 15).astype("uint8")).convert("RGB").resize((32, 32))
        image.save(folder / f"{i:04d}.jpg")
        if i >= 2 * count:
            break
    return root


def select_images(data_dir: str, count: int) -> ImageData:
    """Return the first images of every class, `count` in all."""
    data = find_images(data_dir)
    classes = range(len(data.classes))
    indices_by_class = {
        c: [i for i, label in enumerate(data.train.labels) if label == c] for c in classes
    }
    chosen = [i for c in classes for i in indices_by_class[c][: count // len(classes)]]
    train = Split([data.train.images[i] for i in chosen], [data.train.labels[i] for i in chosen])
    return replace(data, train=train, test=None)


def build_teacher(name: str, data: ImageData, image_size: int) -> nn.Module:
    """Return a teacher with fresh weights and the batch-norm statistics of some images."""
    torch.manual_seed(0)
    teacher = build_model(name, len(data.classes), image_size).train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
    sample = SplitDataset(Split(data.train.images[:256], data.train.labels[:256]), data.classes,
                    image_size, augment="none")  # fmt: skip
    with torch.no_grad():
        for indices in torch.split(torch.arange(len(sample)), 64):
            teacher(default_collate(sample.__getitems__(indices.tolist()))[0])
    return teacher.eval().requires_grad_(False)


def train_in_memory(
    config: TrainConfig, data: ImageData, teacher: nn.Module, bare: bool
) -> Epochs:
    """Ways a0 and a: a loop that has all it needs before it begins."""
    student = DeviceModel(build_student(config, len(data.classes)), torch.device("cpu"), config)
    method = build_method_for_models(config, student.model, teacher)
    parameters = [*student.model.parameters(), *([] if bare else method.parameters())]
    optimizer = build_optimizer(config, parameters)
    images = SplitDataset(data.train, data.classes, config.image_size, augment="none")
    batches = []
    torch.manual_seed(0)
    for chosen, _ in SeededBatchSampler(len(data.train), config.batch_size, shuffle=True):
        pixels, labels = default_collate(images.__getitems__(chosen.tolist()))
        pixels = pixels.contiguous(memory_format=student.memory_format)
        with torch.no_grad():
            targets = method.targets(*teacher(pixels))
        batches.append((pixels, labels, targets))
    while True:
        student.model.train()
        for pixels, labels, targets in batches:
            logits, features = student(pixels)
            if bare:
                loss = F.cross_entropy(logits.float(), labels)
            else:
                loss = method(logits, features, targets, labels)["loss"]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        yield None


def train_as_trial(
    config: TrainConfig, data: ImageData, teacher: nn.Module, cache: ArrayCache
) -> Epochs:
    """Way b: what a trial of a sweep does, once its views are there."""
    views = DecodedDataset(data, config.image_size, cache, WORKERS)
    teacher_targets = TeacherTargets(teacher, config.image_size)
    epoch_data = open_epoch_data(config, views, teacher_targets)
    return fit(
        config, epoch_data.train_batches, None, num_classes=len(data.classes), teacher=teacher
    )


def train_with_live_teacher(config: TrainConfig, data: ImageData, teacher: nn.Module) -> Epochs:
    """Way c: the loaders of `prepare_dataloaders`, and the teacher beside the student."""
    loader = DataLoader(
        SplitDataset(data.train, data.classes, config.image_size, augment="none"),
        batch_size=config.batch_size,
        sampler=SeededSampler(SeededBatchSampler(len(data.train), config.batch_size, True)),
        num_workers=WORKERS,
        persistent_workers=True,
        generator=torch.Generator(),
    )
    pairs = CheckedLoader(loader, "train_loader", training=True)
    return fit(config, pairs, None, num_classes=len(data.classes), teacher=teacher)


def train_as_tutorial(
    config: TrainConfig, data: ImageData, teacher: nn.Module, data_dir: str
) -> Epochs:
    """Way d: as a tutorial would write it."""
    size = (config.image_size, config.image_size)
    steps = [
        transforms.Resize(size),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    full_dataset = ImageFolder(str(Path(data_dir) / "train"), transforms.Compose(steps))
    index = {path: i for i, (path, _) in enumerate(full_dataset.samples)}
    subset = Subset(full_dataset, [index[str(path)] for path in data.train.images])
    loader = DataLoader(subset, config.batch_size, shuffle=True, num_workers=WORKERS,
                        persistent_workers=True)  # fmt: skip
    student = build_student(config, len(data.classes))
    student_channels, teacher_channels = (
        probe_stage_shapes(m, config.image_size)[-1][0] for m in (student, teacher)
    )
    regressor = nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
        nn.BatchNorm2d(teacher_channels),
    )
    parameters = [
        *student.parameters(),
        *(regressor.parameters() if config.method == "fitnets" else []),
    ]
    optimizer = torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum,
                                weight_decay=config.weight_decay)  # fmt: skip

    def attention(features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features.pow(2).mean(1).flatten(1))

    while True:
        student.train()
        running = 0.0
        for images, labels in loader:
            with torch.no_grad():
                teacher_logits, teacher_features = teacher(images)
            logits, features = student(images)
            loss = F.cross_entropy(logits, labels)
            soft = F.log_softmax(logits / config.temperature, 1)
            soft_teacher = F.softmax(teacher_logits / config.temperature, 1)
            kd = F.kl_div(soft, soft_teacher, reduction="batchmean")
            loss = loss + config.alpha * config.temperature**2 * kd
            if config.method == "fitnets":
                loss = loss + config.beta * F.mse_loss(
                    regressor(features[-1]), teacher_features[-1]
                )
            else:
                for student_map, teacher_map in zip(features, teacher_features, strict=True):
                    loss = (
                        loss
                        + config.beta
                        * (attention(student_map) - attention(teacher_map)).pow(2).mean()
                    )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            running += loss.item()
        yield running


Seconds = dict[str, list[float]]
"""Seconds of an epoch, by way and round."""


def time_epochs(ways: dict[str, Epochs], rounds: int, order: random.Random) -> Seconds:
    """Seconds of an epoch each way, by round."""
    seconds: Seconds = {way: [] for way in ways}
    for _ in range(rounds + 1):
        shuffled_ways = list(ways)
        order.shuffle(shuffled_ways)
        for way in shuffled_ways:
            started = time.perf_counter()
            next(ways[way])
            seconds[way].append(time.perf_counter() - started)
    return {way: times[1:] for way, times in seconds.items()}


def median_ratio(seconds: Seconds, over: str, under: str) -> float:
    """Median over the rounds."""
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def main() -> None:
    """Print a row for every teacher, student and method, and all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="an ImageFolder with train/, e.g. CIFAR-10 as JPEG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    order = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as work_folder:
        data_dir = arguments.data or str(write_jpegs(Path(work_folder) / "digits", NUM_IMAGES))
        data = select_images(data_dir, NUM_IMAGES)
        cache = ArrayCache(Path(work_folder) / "cache")
        pairs = list(product(TEACHERS, STUDENTS, ("at", "fitnets")))
        order.shuffle(pairs)
        print(f"{'teacher':<9} {'model':<15} {'method':<8}", *(f"{w:>6}" for w in WAYS),
              " limit/bare ours/limit live/ours stock/ours", flush=True)  # fmt: skip
        for name, model, method in pairs:
            teacher = build_teacher(name, data, IMAGE_SIZE)
            settings = {
                "method": method, "model": model, "image_size": IMAGE_SIZE,
                "batch_size": 64, "epochs": ROUNDS + 1, "alpha": 0.5, "beta": 1.0,
                "lr": 0.001,
            }  # fmt: skip
            config = TrainConfig.parse(settings)
            ways: dict[str, Epochs] = {
                "bare": train_in_memory(config, data, teacher, bare=True),
                "limit": train_in_memory(config, data, teacher, bare=False),
                "ours": train_as_trial(config, data, teacher, cache),
                "live": train_with_live_teacher(config, data, teacher),
                "stock": train_as_tutorial(config, data, teacher, data_dir),
            }
            seconds = time_epochs(ways, ROUNDS, order)
            row: dict[str, Any] = {
                "teacher": name,
                "model": model,
                "method": method,
                "seconds": {w: round(statistics.median(t), 3) for w, t in seconds.items()},
                "limit_over_bare": round(median_ratio(seconds, "limit", "bare"), 3),
                "ours_over_limit": round(median_ratio(seconds, "ours", "limit"), 3),
                "live_over_ours": round(median_ratio(seconds, "live", "ours"), 3),
                "stock_over_ours": round(median_ratio(seconds, "stock", "ours"), 3),
            }
            rows.append(row)
            print(f"{name:<9} {model:<15} {method:<8}",
                  *(f"{row['seconds'][w]:6.2f}" for w in WAYS),
                  f"{row['limit_over_bare']:11.3f} {row['ours_over_limit']:10.3f}"
                  f" {row['live_over_ours']:9.2f} {row['stock_over_ours']:10.2f}",
                  flush=True)  # fmt: skip
    headline_rows = [
        r for r in rows if (r["teacher"], r["model"]) == ("ResNet50", "MultiBranchNet")
    ]
    run_info = {"data": arguments.data, "machine": platform.processor() or platform.machine()}
    print(json.dumps({
        "benchmark": "trial", **run_info,
        "ours_over_limit": max(r["ours_over_limit"] for r in rows),
        "limit_over_bare": max(r["limit_over_bare"] for r in rows),
        "stock_over_ours": min((r["stock_over_ours"] for r in headline_rows), default=None),
        "live_over_ours": min((r["live_over_ours"] for r in headline_rows), default=None),
        "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
