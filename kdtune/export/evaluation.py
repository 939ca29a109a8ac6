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
from kdtune.data.transforms import decode_images, normalise
from kdtune.errors import BadImagesError, UserError
from kdtune.export.formats import OpenedNetwork, open_network
from kdtune.models.costs import median_seconds
from kdtune.reports.page.figures import render_file
from kdtune.reports.tables.statistics import wilson_interval
from kdtune.reports.text.render import render_table
from kdtune.runtime.console import printable_path, say
from kdtune.storage.files import atomic_write
from kdtune.training.epoch_data import find_data, open_decoded_dataset

CALIBRATION_BINS = 15
"""Of the calibration error, as in the paper."""

TIMED_PASSES_BY_BATCH_SIZE = {1: 30, 64: 5}
"""Batch sizes whose speed is measured, and how many passes of each are timed."""

MAX_PRINTED_CLASSES = 25
"""Classes of which a confusion matrix is printed as text."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network.

    Attributes:
        figures: ``images``; ``accuracy`` with its 95 % interval ``accuracy_low`` and
            ``accuracy_high`` (see `wilson_interval`); ``loss``, mean cross-entropy in nats;
            ``calibration_error`` (see `calibration_error`); ``images_per_second_<B>``, without
            reading and preparing them.
        classes: one row a class: ``class``, ``images``, ``recall``, ``precision``, shares of 1;
            a share of nothing is NaN.
        confusion: one row a class, named and numbered, one column a class that was answered.
    """

    metrics: dict[str, float]
    classes: pd.DataFrame
    confusion: pd.DataFrame


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence from accuracy, in `BINS` bins.

    Guo et al. 2017, "On calibration of modern neural networks", equation 3: bins of equal width
    over the largest probability, each weighted with the images in it.

    Args:
        shares: probabilities [N, K].
        labels: class indices [N].

    >>> calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])).round(3)
    np.float64(0.3)
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int)
    gaps = np.bincount(bins, confidence) - np.bincount(bins, correct)
    return np.abs(gaps).sum() / len(labels)


def evaluate_file(
    path: Path,
    data_dir: str,
    split: str = "test",
    trust: bool = False,
    skip_bad_images: bool = False,
    cache_gb: float = 20,
    **source: Any,
) -> Evaluation:
    """Measure a network on a split of a data set.

    Args:
        path: see `kdtune.export.formats.open_network`, as `trust`.
        data_dir: see `kdtune.data.folders.find_images`.
        split: ``train``, ``validation`` or ``test``.
        skip_bad_images, cache_gb: see `kdtune.training.epoch_data.find_data`.
        which: the other fields of `DataSource`.

    Raises:
        UserError: the network or the data are no good, or have other classes.
    """
    network = open_network(path, trust)
    data, unreadable = find_data(DataSource(data_dir, **source), skip_bad_images, cache_gb)
    if unreadable:
        say(f"left out, since they cannot be read: {len(unreadable)} images")
    if data.classes != network.description.classes:
        mismatched = sorted(set(network.description.classes) ^ set(data.classes))
        problem = (
            f"'{printable_path(mismatched[0])}' is in one alone"
            if mismatched
            else "they are in another order"
        )
        raise UserError(
            f"{data_dir} does not have the classes of {printable_path(path)}: {problem}."
        )
    if getattr(data, split) is None:
        raise UserError(f"{data_dir} has no {split} images; give another --split.")
    decoded = open_decoded_dataset(data, network.description.image_size, cache_gb)
    labels = getattr(data, split).labels
    pixels = decoded.pixels(split)
    logits = torch.cat(
        [_compute_logits(network, images) for images, _, _ in Batches(pixels, labels)]
    )
    return _build_evaluation(network, logits, torch.tensor(labels), torch.from_numpy(pixels[:64]))


def _compute_logits(network: OpenedNetwork, images: Tensor) -> Tensor:
    return network.logits(_normalise_images(network, images))


def _normalise_images(network: OpenedNetwork, images: Tensor) -> Tensor:
    return normalise(images, network.description.mean, network.description.std)


def _build_evaluation(
    network: OpenedNetwork, logits: Tensor, labels: Tensor, sample_images: Tensor
) -> Evaluation:
    names, probabilities = network.description.classes, logits.double().softmax(1).numpy()
    correct = int((logits.argmax(1) == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    metrics: dict[str, float] = {
        "images": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": cross_entropy(logits.double(), labels).item(),
        "calibration_error": float(calibration_error(probabilities, labels.numpy())),
    }
    for size, passes in TIMED_PASSES_BY_BATCH_SIZE.items():
        images = _normalise_images(
            network, sample_images.repeat(-(-size // len(sample_images)), 1, 1, 1)[:size]
        )
        seconds = median_seconds(partial(network.logits, images), 3, passes)
        metrics[f"images_per_second_{size}"] = size / seconds
    true_classes, predicted_classes = labels.numpy(), logits.argmax(1).numpy()
    class_indices = range(len(names))
    precision, recall, _, counts = precision_recall_fscore_support(
        true_classes, predicted_classes, labels=class_indices, zero_division=np.nan
    )
    classes = pd.DataFrame(
        {"class": names, "images": counts, "recall": recall, "precision": precision}
    )
    matrix = confusion_matrix(true_classes, predicted_classes, labels=class_indices)
    confusion = pd.DataFrame(matrix, columns=[str(i) for i in class_indices])
    confusion.insert(0, "class", [f"{i} {name}" for i, name in enumerate(names)])
    return Evaluation(metrics, classes, confusion)


def render_evaluation(evaluation: Evaluation, output_format: str) -> str:
    """An evaluation for people: ``table`` or ``markdown``; or all of it as ``json``."""
    if output_format == "json":
        tables = {"classes": evaluation.classes, "confusion": evaluation.confusion}
        records: dict[str, Any] = {
            name: json.loads(table.to_json(orient="records")) for name, table in tables.items()
        }
        return json.dumps({**evaluation.metrics, **records}, indent=2) + "\n"
    metrics = pd.DataFrame({"figure": evaluation.metrics.keys()})
    metrics["value"] = pd.Series([*evaluation.metrics.values()], dtype=object)  # counts stay whole
    texts = [render_table(metrics, output_format), render_table(evaluation.classes, output_format)]
    if len(evaluation.classes) <= MAX_PRINTED_CLASSES:
        texts.append(render_table(evaluation.confusion, output_format))
        texts.append("Confusion: rows are true classes, columns what was answered.\n")
    else:
        texts.append(
            f"The confusion of {len(evaluation.classes)} classes: --format json, --figure.\n"
        )
    return "\n".join(texts)


def write_confusion_figure(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix, shares of each true class, into a `.png` or `.svg` file.

    Raises:
        UserError: the file has another ending, or cannot be written.
    """
    file_format = path.suffix.removeprefix(".").lower()
    if file_format not in ("png", "svg"):
        raise UserError(f"{printable_path(path)} is no picture's name; end it with .png or .svg.")
    counts = evaluation.confusion.drop(columns="class").to_numpy(float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(2 + 0.35 * len(counts), 12)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= MAX_PRINTED_CLASSES:
        names = [printable_path(name)[:24] for name in evaluation.confusion["class"]]
        axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=8)
        axes.set_xticks(range(len(names)), [str(i) for i in range(len(names))], fontsize=8)
    axes.set_xlabel("answered")
    axes.set_ylabel("true class")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(render_file(figure, file_format))
    except OSError as error:
        raise UserError(f"{printable_path(path)} cannot be written: {error.strerror}.") from None


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
            raise UserError(f"There is no file {printable_path(image)}.")
    try:
        pixels = decode_images(Split(images, [0] * len(images)), network.description.image_size)
    except BadImagesError as error:
        descriptions = "; ".join(f"{file} ({reason})" for file, reason in error.failures)
        raise UserError(f"What is no readable image: {descriptions}.") from None
    logits = torch.cat(
        [_compute_logits(network, batch) for batch in torch.from_numpy(pixels).split(64)]
    )
    top_classes = logits.softmax(1).topk(min(top, len(network.description.classes)))
    return pd.DataFrame(
        [
            {
                "image": str(image),
                "class": network.description.classes[class_index],
                "probability": probability,
            }
            for image, class_indices, probabilities in zip(
                images, top_classes.indices.tolist(), top_classes.values.tolist(), strict=True
            )
            for class_index, probability in zip(class_indices, probabilities, strict=True)
        ]
    )
