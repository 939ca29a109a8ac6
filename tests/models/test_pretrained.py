"""Weights to begin with."""

import io
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from harmful import Harmful
from small_runs import small_config

from kdtune.errors import UserError
from kdtune.models import build_model
from kdtune.models.checkpoints import load_model
from kdtune.models.pretrained import load_pretrained
from kdtune.training.train_teacher import train_teacher

NAME = "torchvision:mobilenet_v3_small"
HEAD = ("classifier.3.weight", "classifier.3.bias")


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


def save_weights(
    path: Path, name: str = "mobilenet_v3_small", classes: int = 7, wrap=None
) -> dict:
    """A state_dict as torchvision's own networks have it."""
    torch.manual_seed(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = torchvision.models.get_model(name, weights=None, num_classes=classes).state_dict()
    torch.save(wrap(weights) if wrap else weights, path)
    return weights


def same(model, weights) -> set[str]:
    return {
        key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])
    }


@pytest.mark.parametrize(
    "wrap", [None, lambda weights: {"model": {f"module.{key}": v for key, v in weights.items()}}]
)
def test_a_head_for_other_classes_stays_fresh_and_all_else_is_loaded(tmp_path, wrap):
    weights = save_weights(tmp_path / "w.pth", wrap=wrap)
    model = build_model(NAME, 10, 32)
    before = {key: model.state_dict()[key].clone() for key in HEAD}
    said = load_pretrained(model, NAME, str(tmp_path / "w.pth"), 10)
    assert said.endswith("but with a fresh head: 7 classes there, 10 here")
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in HEAD)
    assert not [
        key for key in weights if key not in HEAD and not torch.equal(after[key], weights[key])
    ]


def test_a_head_for_as_many_classes_is_loaded(tmp_path):
    weights = save_weights(tmp_path / "w.pth", "resnet18")
    model = build_model("ResNet18", 7, 64)
    assert "begins with all the weights of" in load_pretrained(
        model, "ResNet18", str(tmp_path / "w.pth"), 7
    )
    assert same(model, weights) == set()


@pytest.mark.parametrize(
    ("name", "size", "file", "sentence"),
    [
        (NAME, 32, "resnet18", "holds no weights of .*: there is no features.0.0.weight"),
        (NAME, 32, "mobilenet_v2", "the weights of another network than .*: it lacks classif"),
        ("ResNet18", 32, "resnet18", r"not \[64, 3, 3, 3\]; they fit with --image-size 128"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, name, size, file, sentence):
    save_weights(tmp_path / "w.pth", file)
    model = build_model(name, 10, size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=sentence):
        load_pretrained(model, name, str(tmp_path / "w.pth"), 10)
    assert same(model, before) == set()


def test_torchvisions_own_are_found_where_torch_keeps_them(tmp_path):
    weights = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT
    place = tmp_path / "torch" / "hub" / "checkpoints" / Path(weights.url).name
    saved = save_weights(place, classes=1000)
    model = build_model(NAME, 10, 32)
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        assert "1000 classes there" in load_pretrained(model, NAME, name, 10)
    assert same(model, {**saved, **{k: model.state_dict()[k] for k in HEAD}}) == set()


def test_what_cannot_be_downloaded_is_a_sentence(tmp_path):
    with pytest.raises(UserError) as caught:
        load_pretrained(build_model("ResNet50", 3, 64), "ResNet50", "DEFAULT", 3)
    place = tmp_path / "torch" / "hub" / "checkpoints"
    assert str(caught.value).startswith(
        "The weights IMAGENET1K_V2 of ResNet50 cannot be downloaded (urlopen error no route to "
        "host): put the file resnet50-"
    )
    assert f"into {place}, or give its path with --weights." in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "sentence"),
    [
        (
            NAME,
            "IMAGENET",
            "no file IMAGENET with weights .*, and torchvision has DEFAULT, IMAGENE",
        ),
        ("MultiBranchNet", "DEFAULT", "no file DEFAULT .*, and torchvision has none for it"),
    ],
)
def test_unknown_weights_are_a_sentence(name, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        load_pretrained(build_model(name, 3, 32), name, weights, 3)


def test_weights_that_want_another_normalisation_are_refused():
    name = "torchvision:efficientnet_v2_l"
    with pytest.raises(
        UserError, match="IMAGENET1K_V1 of .* expect images that are not normalised"
    ):
        load_pretrained(build_model(NAME, 3, 32), name, "DEFAULT", 3)


@pytest.mark.parametrize("name", ["torchvision:vit_b_32", "timm:test_vit"])
def test_positions_are_resampled_for_another_image_size(tmp_path, name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    large, small = build_model(name, 5, 128), build_model(name, 5, 64)
    with torch.no_grad():
        for key, parameter in large.named_parameters():
            if "pos_embed" in key:
                parameter += 100  # which fresh positions are far from
    torch.save(large.state_dict(), tmp_path / "w.pth")
    assert "all the weights" in load_pretrained(small, name, str(tmp_path / "w.pth"), 5)
    positions = [key for key in small.state_dict() if "pos_embed" in key]
    assert same(small, large.state_dict() | {k: small.state_dict()[k] for k in positions}) == set()
    assert all(small.state_dict()[key][:, 1:].sub(100).abs().max() < 1 for key in positions)


def test_a_file_that_runs_code_is_not_opened(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    archive = io.BytesIO()
    torch.save({"features.0.0.weight": Harmful(tmp_path / "ran")}, archive)
    (tmp_path / "v.pth").write_bytes(archive.getvalue())
    for name in ("w.pth", "v.pth"):
        with pytest.raises(UserError, match="is not"):
            load_pretrained(build_model(NAME, 3, 32), NAME, str(tmp_path / name), 3)
    assert not (tmp_path / "ran").exists()


def test_older_names_and_further_logits_of_torchvisions_files(tmp_path):
    old = save_weights(
        tmp_path / "d.pth",
        "densenet121",
        wrap=lambda weights: {
            key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value
            for key, value in weights.items()
        },
    )
    dense = build_model("torchvision:densenet121", 7, 32)
    load_pretrained(dense, "torchvision:densenet121", str(tmp_path / "d.pth"), 7)
    assert same(dense, old) == set()

    torch.manual_seed(0)
    whole = torchvision.models.googlenet(weights=None, num_classes=7, init_weights=False)
    torch.save(whole.state_dict(), tmp_path / "g.pth")
    google = build_model("torchvision:googlenet", 7, 32)
    load_pretrained(google, "torchvision:googlenet", str(tmp_path / "g.pth"), 7)
    assert same(google, whole.state_dict()) == set()


def test_a_teacher_begins_with_them(tmp_path, folder):
    weights = save_weights(tmp_path / "w.pth")
    said = []
    config = small_config(
        folder,
        method="student",
        model=NAME,
        weights=str(tmp_path / "w.pth"),
        image_size=16,
        epochs=1,
        lr=1e-20,
    )
    train_teacher(config, tmp_path / "teacher.pth", said.append)
    assert any(line.endswith("7 classes there, 10 here") for line in said)
    loaded = load_model(tmp_path / "teacher.pth")
    learned = dict(loaded["model"].named_parameters())
    others = [key for key in learned if key not in HEAD]
    assert all(torch.allclose(learned[key], weights[key], atol=1e-9) for key in others)
    assert loaded["config"]["weights"] == str(tmp_path / "w.pth")
    assert loaded["architecture"] == NAME
