"""File formats of networks: the same logits, and no code that is run without trust."""

import io
import json
import sys
import zipfile

import pytest
import torch
from harmful import Harmful

from kdtune.errors import RunError, UserError
from kdtune.export.formats import (
    FORMATS,
    MAX_LOGIT_DIFFERENCE,
    describe_network,
    measure_logit_difference,
    open_network,
    require_formats,
)
from kdtune.models import build_model
from kdtune.models.checkpoints import load_model

CLASSES = ["<b>x</b>", "a\nb", "`|$y$", "é"]
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def loaded_of(name="MultiBranchNet", classes=CLASSES, image_size=8):
    torch.manual_seed(0)
    return {
        "model": build_model(name, len(classes), image_size).eval(),
        "config": {"model": name, "image_size": image_size},
        "classes": classes, "epoch": 1, "validation_accuracy": 0.5, "trial_id": "t",
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function that writes a MultiBranchNet in a format and returns its file."""
    place = tmp_path_factory.mktemp("formats")

    def write(name):
        if not (place / f"x.{name}").exists():
            FORMATS[name].write(place / f"x.{name}", loaded_of())
        return place / f"x.{name}"

    return write


@pytest.mark.parametrize("form", FORMATS)
def test_a_written_network_is_opened_with_its_description(written, form):
    loaded = loaded_of()
    assert measure_logit_difference(loaded, written(form), IMAGES) <= (
        1e-5 if form == "onnx" else 0
    )
    network = open_network(written(form), trust=form == "pt2")
    assert network.description == describe_network(loaded)
    assert list(network.description.classes) == CLASSES
    assert b"kdtune/models" not in written(form).read_bytes()  # paths of this machine


@pytest.mark.parametrize(
    ("name", "size", "form"),
    [
        ("ResNet18", 8, "pt2"),
        ("ResNet18", 8, "onnx"),
        ("torchvision:mobilenet_v3_small", 8, "safetensors"),
        ("timm:test_vit", 32, "pt2"),
        ("timm:test_vit", 32, "onnx"),
        ("timm:levit_128s", 32, "onnx"),
    ],
)
def test_other_networks_are_written_and_opened_again(tmp_path, name, size, form):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    loaded, path = loaded_of(name, image_size=size), tmp_path / f"x.{form}"
    images = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(0))
    FORMATS[form].write(path, loaded)
    assert measure_logit_difference(loaded, path, images) <= MAX_LOGIT_DIFFERENCE
    assert open_network(path, trust=form == "pt2").description.model == name


@pytest.mark.parametrize("form", FORMATS)
def test_another_networks_logits_are_refused(written, form):
    loaded = loaded_of()
    with torch.no_grad():
        loaded["model"].classifier.bias += 1
    with pytest.raises(RunError, match=r"its logits differ by .* where 1e-04 is allowed"):
        measure_logit_difference(loaded, written(form), IMAGES)


def test_safetensors_are_loaded_like_a_checkpoint(written):
    both = [load_model(written(form)) for form in ("pth", "safetensors")]
    for loaded in both:
        weights = loaded.pop("model").state_dict()
        assert all(
            torch.equal(weights[k], v) for k, v in loaded_of()["model"].state_dict().items()
        )
    assert both[0] == both[1] and both[0]["classes"] == CLASSES


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_file_is_an_error_in_one_sentence(written, tmp_path, form, damage):
    content = written(form).read_bytes()
    torn = {"empty": b"", "cut": content[: len(content) // 2], "text": b"not a network"}[damage]
    path = tmp_path / f"x.{form}"
    path.write_bytes(torn)
    with pytest.raises(UserError, match=rf"x\.{form} (is|cannot)"):
        open_network(path, trust=form == "pt2")


def test_a_program_is_opened_only_with_trust(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(written("pt2")) as whole, zipfile.ZipFile("y.pt2", "w") as other:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("data/sample_inputs/model.pt"):
                pickled = io.BytesIO()
                torch.save(Harmful(tmp_path / "harmed"), pickled)
                content = pickled.getvalue()
            other.writestr(name, content)
    for path in (tmp_path / "y.pt2", written("pt2")):
        with pytest.raises(UserError, match="may run any code; if you trust it, give --trust"):
            open_network(path)
    assert not (tmp_path / "harmed").exists()
    assert open_network(written("pt2"), trust=True).logits(IMAGES).shape == (64, 4)


def test_a_missing_description_is_read_from_the_json_file_beside_it(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save(build_model("ResNet18", 4, 8).state_dict(), path)
    with pytest.raises(UserError, match=r"does not say what classes .* no .*theirs\.json that do"):
        open_network(path)
    about = {"model": "ResNet18", "image_size": 8, "classes": CLASSES}
    (tmp_path / "theirs.json").write_text(json.dumps(about))
    assert list(open_network(path).description.classes) == CLASSES
    for change, sentence in (
        ({"classes": ["a", "b"]}, r"gives \[2, 4\] for two images, but 2 classes are named"),
        ({"image_size": "x"}, r"does not describe a network: image_size: "),
        ({"extra": 1}, r"does not describe a network: extra: "),
    ):
        (tmp_path / "theirs.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(UserError, match=sentence):
            open_network(path)
    (tmp_path / "theirs.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        open_network(path)


def test_a_missing_package_is_named_with_the_command_that_adds_it(tmp_path, monkeypatch):
    (tmp_path / "x.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: open_network(tmp_path / "x.onnx"), lambda: require_formats(["onnx"])):
        with pytest.raises(UserError, match=r"needs onnxruntime, .*pip install '.\[onnx\]'"):
            call()
