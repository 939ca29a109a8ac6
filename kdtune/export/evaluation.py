"""Evaluation of a network in a file on labelled images, and its predictions for single ones."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdtune.config.train import TrainConfig
from kdtune.data.batches import EVALUATION_BATCH_SIZE
from kdtune.data.decoding import decode_images
from kdtune.data.image_files import list_images
from kdtune.data.splits import Split
from kdtune.data.transforms import normalise
from kdtune.errors import BadImagesError, UserError
from kdtune.export.formats import OpenedNetwork, open_network
from kdtune.models.costs import median_seconds
from kdtune.reports.page.rendering import render_file
from kdtune.reports.tables.statistics import wilson_interval
from kdtune.reports.text.render import render_table
from kdtune.runtime.console import printable_path, say
from kdtune.storage.files import atomic_write
from kdtune.training.epoch_data import find_data, open_decoded_dataset, require_room

MAX_PRINTED_CLASSES = 25
"""Largest number of classes whose confusion is printed as text, or named in a figure."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a network.

    Attributes:
        metrics: ``loss`` is the mean cross-entropy in nats, and ``images_per_second_<B>`` is in
            batches of B, without decoding.
        classes: a row per class: ``class``, ``images``, and as shares ``recall``, ``precision``.
        confusion: a row per true class, named and numbered, and a column per predicted class.
    """

    metrics: dict[str, float]
    classes: pd.DataFrame
    confusion: pd.DataFrame


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the expected calibration error: mean distance of confidence from accuracy.

    Guo et al. 2017, "On calibration of modern neural networks", equation 3.

    Args:
        probabilities: [N, K].
        labels: class indices [N].

    >>> round(calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 3)
    0.3
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.ceil(confidence * 15).astype(int)  # of equal width
    gaps = np.bincount(bins, confidence) - np.bincount(bins, correct)
    return float(np.abs(gaps).sum() / len(labels))


def evaluate_file(
    path: Path, data_dir: str, split: str = "test", trust: bool = False, **settings: Any
) -> Evaluation:
    """Measure a network on a split of a data set.

    Args:
        path: the network's file, see `open_network`.
        data_dir: a folder, or the name of a data set.
        split: ``train``, ``validation`` or ``test``, or ``all`` for all images.
        trust: open a file that may run code, too.
        settings: those of `DataConfig`.
    """
    network = open_network(path, trust)
    settings = {**network.description.rendering._asdict(), **settings}
    config = TrainConfig.parse({"data_dir": data_dir, **settings})
    data, unreadable = find_data(config)
    if unreadable:
        say(f"left out because they cannot be read: {len(unreadable)} images")
    classes, size = network.description.classes, network.description.image_size
    if data.classes != classes:
        mismatched = sorted(set(classes) ^ set(data.classes))
        problem = f"'{printable_path(mismatched[0])}' is in only one of them" if mismatched else ""
        raise UserError(
            f"{data_dir} does not have the classes of {printable_path(path)}: "
            f"{problem or 'they are in another order'}."
        )
    splits = [*data.splits] if split == "all" else [split]
    if split not in (*data.splits, "all"):
        raise UserError(f"{data_dir} has no {split} images; give another --split.")
    if split in data.cut_splits:
        say(f"the {split} images were split off from {data_dir}; --split all takes all")
    decoded = open_decoded_dataset(data, size, config.cache_gb)
    require_room(decoded, splits)
    labels = torch.cat([torch.tensor(data.splits[name].labels) for name in splits])
    return _build_evaluation(network, [decoded.pixels(name) for name in splits], labels)


def _normalise(network: OpenedNetwork, pixels: np.ndarray) -> Tensor:
    return normalise(torch.from_numpy(pixels), network.description.mean, network.description.std)


def _compute_logits(network: OpenedNetwork, pixels: np.ndarray, batch_size: int) -> Tensor:
    batches = (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))
    return torch.cat([network.logits(_normalise(network, batch)) for batch in batches])


def _build_evaluation(
    network: OpenedNetwork, splits: Sequence[np.ndarray], labels: Tensor
) -> Evaluation:
    parts = [_compute_logits(network, split, EVALUATION_BATCH_SIZE) for split in splits]
    logits, pixels = torch.cat(parts), splits[0]
    names, predicted = network.description.classes, logits.argmax(1)
    probabilities = logits.double().softmax(1).numpy()
    matrix = confusion_matrix(labels.numpy(), predicted.numpy(), labels=range(len(names)))
    hits, counts = np.diag(matrix), matrix.sum(1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        recall, precision = hits / counts, hits / matrix.sum(0)
    correct = int((predicted == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    metrics: dict[str, float] = {
        "images": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": float(np.nanmean(recall)),
        "loss": cross_entropy(logits.double(), labels).item(),
        "calibration_error": calibration_error(probabilities, labels.numpy()),
    }
    for size, passes in {1: 30, 64: 5}.items():
        images = _normalise(network, np.resize(pixels[:64], (size, *pixels.shape[1:])))
        seconds = median_seconds(partial(network.logits, images), 3, passes)
        metrics[f"images_per_second_{size}"] = size / seconds
    columns = {"class": names, "images": counts, "recall": recall, "precision": precision}
    confusion = pd.DataFrame(matrix, columns=[str(i) for i in range(len(names))])
    confusion.insert(0, "class", [f"{i} {name}" for i, name in enumerate(names)])
    return Evaluation(metrics, pd.DataFrame(columns), confusion)


def render_evaluation(evaluation: Evaluation, output_format: str) -> str:
    """Return an evaluation as text.

    Args:
        evaluation: the metrics.
        output_format: ``table``, ``markdown`` or, with all of it, ``json``.
    """
    if output_format == "json":
        tables = {"classes": evaluation.classes, "confusion": evaluation.confusion}
        records = {n: json.loads(table.to_json(orient="records")) for n, table in tables.items()}
        return json.dumps(evaluation.metrics | records, indent=2) + "\n"
    metrics = pd.DataFrame({"figure": evaluation.metrics.keys()})
    metrics["value"] = pd.Series([*evaluation.metrics.values()], dtype=object)  # counts stay whole
    texts = [render_table(metrics, output_format), render_table(evaluation.classes, output_format)]
    if (num_classes := len(evaluation.classes)) <= MAX_PRINTED_CLASSES:
        texts.append(render_table(evaluation.confusion, output_format))
        texts.append("Confusion: rows are true classes, columns predicted ones.\n")
    else:
        texts.append(f"The confusion of {num_classes} classes: --format json, --figure.\n")
    return "\n".join(texts)


def write_confusion_figure(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix as shares of each true class.

    Args:
        evaluation: the metrics.
        path: a `.png` or `.svg` file.
    """
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
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(render_file(figure, path.suffix[1:].lower()))
    except OSError as error:
        raise UserError(f"{printable_path(path)} cannot be written: {error.strerror}.") from None


def find_images_to_classify(paths: Sequence[Path]) -> list[Path]:
    """Return files, and in place of each folder the images in it, at any depth."""
    images = []
    for path in paths:
        if path.is_dir():
            if not (found := list_images(path, Counter())):
                raise UserError(f"There are no images in {printable_path(path)}.")
            images += found
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(f"There is no file {printable_path(path)}.")
    return images


def predict_images(
    path: Path, images: Sequence[Path], top: int = 3, trust: bool = False
) -> pd.DataFrame:
    """Return a row per image and likely class: ``image``, ``class``, ``probability``.

    Args:
        path: the network's file, see `open_network`.
        images: files, and folders whose images are taken at any depth.
        top: number of classes per image, the likeliest first.
        trust: open a file that may run code, too.
    """
    network = open_network(path, trust)
    classes, size = network.description.classes, network.description.image_size
    images = find_images_to_classify(images)
    try:
        split = Split(images, [0] * len(images), network.description.rendering)
        pixels = decode_images(split, size)
    except BadImagesError as error:
        descriptions = "; ".join(f"{file} ({reason})" for file, reason in error.failures)
        raise UserError(f"These images cannot be read: {descriptions}.") from None
    shares = _compute_logits(network, pixels, 64).softmax(1)
    probabilities, indices = shares.topk(min(top, len(classes)))
    names = [str(image) for image in images for _ in range(indices.shape[1])]
    likeliest = [classes[index] for index in indices.flatten().tolist()]
    columns = {"image": names, "class": likeliest, "probability": probabilities.flatten().tolist()}
    return pd.DataFrame(columns)
