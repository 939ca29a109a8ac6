"""What an epoch of a sweep's trial costs, against the limit, the bare student and other ways.

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
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Order
from kdtune.data.decoded import Views
from kdtune.data.folders import find_images
from kdtune.data.loaders import Images, Pairs
from kdtune.data.splits import ImageData, Split
from kdtune.data.transforms import MEAN, STD
from kdtune.models import build_model, feature_shapes
from kdtune.models.on_device import Network
from kdtune.runtime.process import keep_freed_memory
from kdtune.storage.array_cache import Cache
from kdtune.training.inputs import Inputs
from kdtune.training.loop import build_optimizer, build_student, fit, method_for
from kdtune.training.teacher_targets import Lesson

WAYS = ("bare", "limit", "ours", "live", "stock")
WORKERS = 2
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


def some_images(data_dir: str, count: int) -> ImageData:
    """The first images of every class, `count` in all."""
    data = find_images(data_dir)
    classes = range(len(data.classes))
    of = {c: [i for i, label in enumerate(data.train.labels) if label == c] for c in classes}
    chosen = [i for c in classes for i in of[c][: count // len(classes)]]
    train = Split([data.train.images[i] for i in chosen], [data.train.labels[i] for i in chosen])
    return replace(data, train=train, test=None)


def build_teacher(name: str, data: ImageData, image_size: int) -> nn.Module:
    """A teacher with fresh weights and the batch-norm statistics of some images."""
    torch.manual_seed(0)
    teacher = build_model(name, len(data.classes), image_size).train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees
    sample = Images(Split(data.train.images[:256], data.train.labels[:256]), data.classes,
                    image_size, augmented=False)  # fmt: skip
    with torch.no_grad():
        for part in torch.arange(len(sample)).split(64):
            teacher(sample[part, 0][0])
    return teacher.eval().requires_grad_(False)


def in_memory(config: TrainConfig, data: ImageData, teacher: nn.Module, bare: bool) -> Epochs:
    """Ways a0 and a: a loop that has all it needs before it begins."""
    student = Network(build_student(config, len(data.classes)), torch.device("cpu"), config)
    method = method_for(config, student.model, teacher)
    parameters = [*student.model.parameters(), *([] if bare else method.parameters())]
    optimizer = build_optimizer(config, parameters)
    images = Images(data.train, data.classes, config.image_size, augmented=False)
    batches = []
    torch.manual_seed(0)
    for chosen, _ in Order(len(data.train), config.batch_size, shuffle=True):
        pixels, labels = images[chosen, 0]
        pixels = pixels.contiguous(memory_format=student.format)
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
            loss.backward()
            optimizer.step()
        yield None


def ours(config: TrainConfig, data: ImageData, teacher: nn.Module, cache: Cache) -> Epochs:
    """Way b: what a trial of a sweep does, once its views are there."""
    views = Views(data, config.image_size, cache, WORKERS)
    lesson = Lesson(teacher, config.image_size)
    student = build_model(config.model, len(data.classes), config.image_size)
    own = lesson.ask(config, feature_shapes(student, config.image_size))
    inputs = Inputs(config, views, lesson, own, lambda event: None)
    return fit(config, inputs.train, None, num_classes=len(data.classes), teacher=teacher)


def live(config: TrainConfig, data: ImageData, teacher: nn.Module) -> Epochs:
    """Way c: the loaders of `prepare_dataloaders`, and the teacher beside the student."""
    loader = DataLoader(
        Images(data.train, data.classes, config.image_size, augmented=False),
        batch_size=None,
        sampler=Order(len(data.train), config.batch_size, shuffle=True),
        num_workers=WORKERS,
        persistent_workers=True,
        generator=torch.Generator(),
    )
    pairs = Pairs(loader, "train_loader", training=True)
    return fit(config, pairs, None, num_classes=len(data.classes), teacher=teacher)


def stock(config: TrainConfig, data: ImageData, teacher: nn.Module, data_dir: str) -> Epochs:
    """Way d: as a tutorial would write it."""
    size = (config.image_size, config.image_size)
    steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    everything = ImageFolder(str(Path(data_dir) / "train"), transforms.Compose(steps))
    index = {path: i for i, (path, _) in enumerate(everything.samples)}
    chosen = Subset(everything, [index[str(path)] for path in data.train.images])
    loader = DataLoader(chosen, config.batch_size, shuffle=True, num_workers=WORKERS,
                        persistent_workers=True)  # fmt: skip
    student = build_student(config, len(data.classes))
    cs, ct = (feature_shapes(m, config.image_size)[-1][0] for m in (student, teacher))
    regressor = nn.Sequential(nn.Conv2d(cs, ct, 1, bias=False), nn.BatchNorm2d(ct))
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
                for own, other in zip(features, teacher_features, strict=True):
                    loss = loss + config.beta * (attention(own) - attention(other)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()
        yield running


Seconds = dict[str, list[float]]
"""Seconds of an epoch, by way and round."""


def measure(ways: dict[str, Epochs], rounds: int, order: random.Random) -> Seconds:
    """Seconds of an epoch each way, by round."""
    seconds: Seconds = {way: [] for way in ways}
    for _ in range(rounds + 1):
        turn = list(ways)
        order.shuffle(turn)
        for way in turn:
            started = time.perf_counter()
            next(ways[way])
            seconds[way].append(time.perf_counter() - started)
    return {way: times[1:] for way, times in seconds.items()}


def ratio(seconds: Seconds, over: str, under: str) -> float:
    """Median over the rounds."""
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def main() -> None:
    """Print a row for every teacher, student and method, and all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="an ImageFolder with train/, e.g. CIFAR-10 as JPEG")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teachers", default="ResNet50,ResNet18")
    parser.add_argument("--models", default="MultiBranchNet,ResNet18")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    order = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        data_dir = given.data or str(write_jpegs(Path(place) / "digits", given.images))
        data = some_images(data_dir, given.images)
        cache = Cache(Path(place) / "cache")
        pairs = [
            (teacher, model, method)
            for teacher in given.teachers.split(",")
            for model in given.models.split(",")
            for method in ("at", "fitnets")
        ]
        order.shuffle(pairs)
        print(f"{'teacher':<9} {'model':<15} {'method':<8}", *(f"{w:>6}" for w in WAYS),
              " limit/bare ours/limit live/ours stock/ours", flush=True)  # fmt: skip
        for name, model, method in pairs:
            teacher = build_teacher(name, data, given.image_size)
            settings = {"method": method, "model": model, "image_size": given.image_size,
                        "batch_size": 64, "epochs": given.rounds + 1, "alpha": 0.5, "beta": 1.0,
                        "lr": 0.001}  # fmt: skip
            config = TrainConfig.check(settings)
            ways: dict[str, Epochs] = {
                "bare": in_memory(config, data, teacher, bare=True),
                "limit": in_memory(config, data, teacher, bare=False),
                "ours": ours(config, data, teacher, cache),
                "live": live(config, data, teacher),
                "stock": stock(config, data, teacher, data_dir),
            }
            seconds = measure(ways, given.rounds, order)
            row = {
                "teacher": name,
                "model": model,
                "method": method,
                "seconds": {w: round(statistics.median(t), 3) for w, t in seconds.items()},
                "limit_over_bare": round(ratio(seconds, "limit", "bare"), 3),
                "ours_over_limit": round(ratio(seconds, "ours", "limit"), 3),
                "live_over_ours": round(ratio(seconds, "live", "ours"), 3),
                "stock_over_ours": round(ratio(seconds, "stock", "ours"), 3),
            }
            rows.append(row)
            print(f"{name:<9} {model:<15} {method:<8}",
                  *(f"{row['seconds'][w]:6.2f}" for w in WAYS),
                  f"{row['limit_over_bare']:11.3f} {row['ours_over_limit']:10.3f}"
                  f" {row['live_over_ours']:9.2f} {row['stock_over_ours']:10.2f}",
                  flush=True)  # fmt: skip
    small = [r for r in rows if (r["teacher"], r["model"]) == ("ResNet50", "MultiBranchNet")]
    about = {**vars(given), "machine": platform.processor() or platform.machine()}
    print(json.dumps({
        "benchmark": "trial", **about,
        "ours_over_limit": max(r["ours_over_limit"] for r in rows),
        "limit_over_bare": max(r["limit_over_bare"] for r in rows),
        "stock_over_ours": min((r["stock_over_ours"] for r in small), default=None),
        "live_over_ours": min((r["live_over_ours"] for r in small), default=None),
        "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
