"""What a network in a file is worth on labelled images, and what it says to single ones.

All of it on the CPU in float32, whatever the format: a network that was trained in bfloat16, or on
a GPU, may give a few images another class than it did there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdtune.config.train import DataSource
from kdtune.data.batches import Batches
from kdtune.data.splits import Split
from kdtune.data.transforms import decode, normalise
from kdtune.errors import BadImagesError, UserError
from kdtune.export.formats import OpenNetwork, open_network
from kdtune.models.costs import median_seconds
from kdtune.reports.page.figures import to_file
from kdtune.reports.tables.statistics import share_interval
from kdtune.reports.text.render import render_table
from kdtune.runtime.console import say, shown
from kdtune.storage.files import replacing
from kdtune.training.inputs import find_data, open_views

BINS = 15
"""Of the calibration error, as in the paper."""

SPEEDS = {1: 30, 64: 5}
"""Batch sizes whose speed is measured, and how many passes of each are timed."""

MOST = 25
"""Classes of which a confusion matrix is printed as text."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network.

    Attributes:
        figures: ``images``; ``accuracy`` with its 95 % interval ``accuracy_low`` and
            ``accuracy_high`` (see `share_interval`); ``loss``, mean cross-entropy in nats;
            ``calibration_error`` (see `calibration_error`); ``images_per_second_<B>``, without
            reading and preparing them.
        classes: one row a class: ``class``, ``images``, ``recall``, ``precision``, shares of 1;
            a share of nothing is NaN.
        confusion: one row a class, named and numbered, one column a class that was answered.
    """

    figures: dict[str, float]
    classes: pd.DataFrame
    confusion: pd.DataFrame


def calibration_error(shares: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence from accuracy, in `BINS` bins.

    Guo et al. 2017, "On calibration of modern neural networks", equation 3: bins of equal width
    over the largest probability, each weighted with the images in it.

    Args:
        shares: probabilities [N, K].
        labels: class indices [N].

    >>> calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])).round(3)
    np.float64(0.3)
    """
    confidence, right = shares.max(1), shares.argmax(1) == labels
    bins = np.ceil(confidence * BINS).astype(int)
    gaps = np.bincount(bins, confidence) - np.bincount(bins, right)
    return np.abs(gaps).sum() / len(labels)


def evaluate_file(
    path: Path,
    data_dir: str,
    split: str = "test",
    trust: bool = False,
    skip_bad_images: bool = False,
    cache_gb: float = 20,
    **which: Any,
) -> Evaluation:
    """Measure a network on a split of a data set.

    Args:
        path: see `kdtune.export.formats.open_network`, as `trust`.
        data_dir: see `kdtune.data.folders.find_images`.
        split: ``train``, ``validation`` or ``test``.
        skip_bad_images, cache_gb: see `kdtune.training.inputs.find_data`.
        which: the other fields of `DataSource`.

    Raises:
        UserError: the network or the data are no good, or have other classes.
    """
    network = open_network(path, trust)
    data, bad = find_data(DataSource(data_dir, **which), skip_bad_images, cache_gb)
    if bad:
        say(f"left out, since they cannot be read: {len(bad)} images")
    if data.classes != network.about.classes:
        lacking = sorted(set(network.about.classes) ^ set(data.classes))
        what = f"'{shown(lacking[0])}' is in one alone" if lacking else "they are in another order"
        raise UserError(f"{data_dir} does not have the classes of {shown(path)}: {what}.")
    if getattr(data, split) is None:
        raise UserError(f"{data_dir} has no {split} images; give another --split.")
    views = open_views(data, network.about.image_size, cache_gb)
    labels = getattr(data, split).labels
    pixels = views.pixels(split)
    logits = torch.cat([_logits(network, images) for images, _, _ in Batches(pixels, labels)])
    return _evaluation(network, logits, torch.tensor(labels), torch.from_numpy(pixels[:64]))


def _logits(network: OpenNetwork, images: Tensor) -> Tensor:
    return network.logits(_prepared(network, images))


def _prepared(network: OpenNetwork, images: Tensor) -> Tensor:
    return normalise(images, network.about.mean, network.about.std)


def _evaluation(network: OpenNetwork, logits: Tensor, labels: Tensor, some: Tensor) -> Evaluation:
    names, shares = network.about.classes, logits.double().softmax(1).numpy()
    right = int((logits.argmax(1) == labels).sum())
    low, high = share_interval(right, len(labels))
    figures: dict[str, float] = {
        "images": len(labels),
        "accuracy": right / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": cross_entropy(logits.double(), labels).item(),
        "calibration_error": float(calibration_error(shares, labels.numpy())),
    }
    for size, passes in SPEEDS.items():
        images = _prepared(network, some.repeat(-(-size // len(some)), 1, 1, 1)[:size])
        seconds = median_seconds(partial(network.logits, images), 3, passes)
        figures[f"images_per_second_{size}"] = size / seconds
    truth, answers = labels.numpy(), logits.argmax(1).numpy()
    numbers = range(len(names))
    precision, recall, _, counts = precision_recall_fscore_support(
        truth, answers, labels=numbers, zero_division=np.nan
    )
    classes = pd.DataFrame(
        {"class": names, "images": counts, "recall": recall, "precision": precision}
    )
    matrix = confusion_matrix(truth, answers, labels=numbers)
    confusion = pd.DataFrame(matrix, columns=[str(i) for i in numbers])
    confusion.insert(0, "class", [f"{i} {name}" for i, name in enumerate(names)])
    return Evaluation(figures, classes, confusion)


def evaluation_text(found: Evaluation, form: str) -> str:
    """An evaluation for people: ``table`` or ``markdown``; or all of it as ``json``."""
    if form == "json":
        tables = {"classes": found.classes, "confusion": found.confusion}
        records: dict[str, Any] = {
            name: json.loads(table.to_json(orient="records")) for name, table in tables.items()
        }
        return json.dumps({**found.figures, **records}, indent=2) + "\n"
    figures = pd.DataFrame({"figure": found.figures.keys()})
    figures["value"] = pd.Series([*found.figures.values()], dtype=object)  # counts stay whole
    texts = [render_table(figures, form), render_table(found.classes, form)]
    if len(found.classes) <= MOST:
        texts.append(render_table(found.confusion, form))
        texts.append("Confusion: rows are true classes, columns what was answered.\n")
    else:
        texts.append(f"The confusion of {len(found.classes)} classes: --format json, --figure.\n")
    return "\n".join(texts)


def write_confusion(found: Evaluation, path: Path) -> None:
    """Draw the confusion matrix, shares of each true class, into a `.png` or `.svg` file.

    Raises:
        UserError: the file has another ending, or cannot be written.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in ("png", "svg"):
        raise UserError(f"{shown(path)} is no picture's name; end it with .png or .svg.")
    counts = found.confusion.drop(columns="class").to_numpy(float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(2 + 0.35 * len(counts), 12)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= MOST:
        names = [shown(name)[:24] for name in found.confusion["class"]]
        axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=8)
        axes.set_xticks(range(len(names)), [str(i) for i in range(len(names))], fontsize=8)
    axes.set_xlabel("answered")
    axes.set_ylabel("true class")
    figure.colorbar(picture, label="share of the true class", shrink=0.8)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(to_file(figure, form))
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be written: {error.strerror}.") from None


def predict_images(
    path: Path, images: Sequence[Path], top: int = 3, trust: bool = False
) -> pd.DataFrame:
    """What a network says to images.

    Args:
        path: see `kdtune.export.formats.open_network`, as `trust`.
        images: files.
        top: classes of each, the likeliest first.

    Returns:
        One row an image and class: ``image``, ``class``, ``probability`` (share of 1).

    Raises:
        UserError: the network is no good, or an image cannot be read.
    """
    network = open_network(path, trust)
    for image in images:
        if not image.is_file():
            raise UserError(f"There is no file {shown(image)}.")
    try:
        pixels = decode(Split(images, [0] * len(images)), network.about.image_size)
    except BadImagesError as error:
        listed = "; ".join(f"{file} ({reason})" for file, reason in error.bad)
        raise UserError(f"What is no readable image: {listed}.") from None
    shares = torch.cat([_logits(network, batch) for batch in torch.from_numpy(pixels).split(64)])
    best = shares.softmax(1).topk(min(top, len(network.about.classes)))
    return pd.DataFrame(
        [
            {"image": str(image), "class": network.about.classes[number], "probability": share}
            for image, numbers, found in zip(
                images, best.indices.tolist(), best.values.tolist(), strict=True
            )
            for number, share in zip(numbers, found, strict=True)
        ]
    )
