"""Evaluation of a network in a file, against the training loop and numbers by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import IMAGE_SIZE, small_config, write_digits

from kdtune.data.batches import Batches
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.data.splits import Rendering, Split
from kdtune.data.transforms import normalise
from kdtune.errors import UserError
from kdtune.export.evaluation import (
    calibration_error,
    evaluate_file,
    predict_images,
    render_evaluation,
    write_confusion_figure,
)
from kdtune.models import build_model
from kdtune.models.checkpoints import load_model, save_model
from kdtune.training.epoch import evaluate


def test_metrics_agree_with_the_training_loop(folder, teacher_file):
    found = evaluate_file(teacher_file, str(folder), "validation")
    split = find_images(str(folder)).validation
    config = small_config(folder, precision="float32")
    loop = evaluate(
        load_model(teacher_file)["model"],
        Batches(decode_images(split, IMAGE_SIZE), split.labels),
        config,
    )
    figures = found.metrics
    assert figures["accuracy"] == loop["accuracy"]
    assert figures["loss"] == pytest.approx(loop["loss"], rel=1e-5)
    assert figures["balanced_accuracy"] == pytest.approx(loop["balanced_accuracy"])
    n, p, z = figures["images"], figures["accuracy"], 1.959964
    middle, width = p + z * z / 2 / n, z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    ends = figures["accuracy_low"], figures["accuracy_high"]
    assert ends == pytest.approx([(middle - width) / (1 + z * z / n),
                                  (middle + width) / (1 + z * z / n)], abs=1e-5)  # fmt: skip
    assert figures["images_per_second_1"] > 0 < figures["images_per_second_64"]
    matrix = found.confusion.drop(columns="class").to_numpy()
    assert matrix.sum() == n == found.classes["images"].sum()
    assert np.trace(matrix) / n == figures["accuracy"]
    recall = np.diag(matrix) / matrix.sum(1)
    assert np.allclose(found.classes["recall"], recall)
    with np.errstate(invalid="ignore"):
        precision = np.diag(matrix) / matrix.sum(0)
    assert np.allclose(found.classes["precision"], precision, equal_nan=True)


def test_calibration_is_the_distance_of_confidence_from_accuracy():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibration_error(sure, np.array([0, 1])) == 0
    assert calibration_error(sure, np.array([1, 0])) == 1
    # Two bins: 0.9 is right in one of two, 0.6 in two of two; weights are a half each.
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert calibration_error(shares, np.array([0, 1, 0, 0])) == pytest.approx((0.4 + 0.4) / 2)


def test_an_evaluation_is_rendered_as_table_and_as_json(folder, teacher_file):
    found = evaluate_file(teacher_file, str(folder))
    assert "Confusion: rows are true classes" in render_evaluation(found, "table")
    whole = json.loads(render_evaluation(found, "json"))
    assert whole["accuracy"] == found.metrics["accuracy"]
    assert [row["class"] for row in whole["classes"]] == [f"digit-{i}" for i in range(10)]


def test_data_with_other_classes_or_without_the_split_are_refused(folder, teacher_file, tmp_path):
    other = write_digits(tmp_path / "few" / "train", 4)
    (other / "digit-9").rename(other / "nine")
    with pytest.raises(
        UserError, match=r"does not have the classes of .*: 'digit-9' is in only one"
    ):
        evaluate_file(teacher_file, str(tmp_path / "few"))
    (other / "nine").rename(other / "digit-9")
    with pytest.raises(UserError, match="has no test images; give another --split"):
        evaluate_file(teacher_file, str(tmp_path / "few"))


HOSTILE = ("[red]a\x1b[31m", "$\\frac{$", "<script>")


@pytest.fixture
def hostile(tmp_path):
    """A network and data whose class names are markup, escape codes or formulas."""
    digits = write_digits(tmp_path / "digits", 9)
    (tmp_path / "data").mkdir()
    for number, name in enumerate(HOSTILE):
        (digits / f"digit-{number}").rename(tmp_path / "data" / name)
    config = small_config(tmp_path / "data").model_dump()
    model = build_model("MultiBranchNet", 3, IMAGE_SIZE)
    save_model(tmp_path / "x.pth", model, config=config, classes=sorted(HOSTILE))
    return tmp_path


def test_names_of_classes_are_shown_as_they_are(hostile):
    found = evaluate_file(hostile / "x.pth", str(hostile / "data"))
    text = render_evaluation(found, "table")
    assert "\x1b" not in text and "[red]a\\x1b[31m" in text
    for form in ("png", "svg"):
        write_confusion_figure(found, hostile / f"c.{form}")
    assert (hostile / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "<script>" not in (hostile / "c.svg").read_text()


def test_images_get_their_likeliest_classes(folder, teacher_file, tmp_path):
    split = find_images(str(folder)).validation
    table = predict_images(teacher_file, split.images, top=10)
    assert (table.groupby("image", sort=False)["probability"].sum().sub(1).abs() < 1e-5).all()
    first = table.drop_duplicates("image")["class"].tolist()
    right = np.mean([c == f"digit-{n}" for c, n in zip(first, split.labels, strict=True)])
    found = evaluate_file(teacher_file, str(folder), "validation")
    assert right == found.metrics["accuracy"]
    (tmp_path / "bad.png").write_text("x")
    with pytest.raises(
        UserError, match=r"These images cannot be read: .*bad\.png \(cannot identify"
    ):
        predict_images(teacher_file, [tmp_path / "bad.png"])
    with pytest.raises(UserError, match=r"There is no file .*none\.png"):
        predict_images(teacher_file, [tmp_path / "none.png"])


def test_images_are_treated_as_those_that_the_network_was_trained_on(tmp_path):
    network = build_model("MultiBranchNet", 2, 16).eval()
    for name in ("white", "black"):
        config = {"model": "MultiBranchNet", "image_size": 16, "background": name, "bit_depth": 12}
        save_model(tmp_path / f"{name}.pth", network, config=config, classes=["a", "b"])
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 16, 4)).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / f"{i}.png")
    grey = random.integers(0, 2**12, (16, 16)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    images = [tmp_path / "data" / "train" / "a" / "0.png", tmp_path / "grey.png"]
    for name in ("white", "black"):
        rendering = Rendering(name, 12)
        expected = normalise(torch.from_numpy(decode_images(Split(images, [0, 0], rendering), 16)))
        shares = network(expected)[0].softmax(1).sort(1, descending=True).values.flatten()
        found = predict_images(tmp_path / f"{name}.pth", images)["probability"]
        assert found.to_numpy() == pytest.approx(shares.detach().numpy(), abs=1e-5)
        loss = evaluate_file(tmp_path / f"{name}.pth", str(tmp_path / "data"), "train")
        logits = network(expected[:1])[0].double().log_softmax(1)
        assert loss.metrics["loss"] == pytest.approx(-logits.mean().item(), abs=1e-5)
