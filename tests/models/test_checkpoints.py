"""Checkpoints: what comes back, and what is refused."""

import argparse
import re
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from harmful import Harmful
from small_runs import small_config

from kdtune.errors import UserError
from kdtune.models import MODELS, build_model
from kdtune.models.checkpoints import load_model, read_checkpoint, save_model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(tmp_path, name):
    config = small_config("digits", model=name).model_dump()
    model = build_model(name, 3, config["image_size"]).eval()
    save_model(tmp_path / "m.pth", model, config=config, classes=["a", "b", "c"], epoch=4)
    loaded = load_model(tmp_path / "m.pth")
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded["model"](images)[0], model(images)[0])
    assert not loaded["model"].training
    assert (loaded["config"], loaded["classes"], loaded["epoch"]) == (config, ["a", "b", "c"], 4)


@pytest.mark.parametrize("override", ["0", "1"])
def test_a_file_that_holds_code_never_runs_it(tmp_path, monkeypatch, override):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    path = tmp_path / "bad.pth"
    torch.save({"format": "kdtune-1", "weights": Harmful(tmp_path / "harmed")}, path)
    with pytest.raises(UserError, match=r"bad\.pth is not loaded.*\(posix\.mkdir\)"):
        read_checkpoint(path)
    assert not (tmp_path / "harmed").exists()


def text(path):
    path.write_text("not a checkpoint")


def empty(path):
    path.touch()


def cut(path):
    torch.save({"format": "kdtune-1", "x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


def namespace(path):
    torch.save({"opt": argparse.Namespace()}, path)


def foreign(path):
    torch.save({"weights": torch.zeros(1)}, path)


def test_random_damage_is_a_sentence_or_harmless(tmp_path):
    path = tmp_path / "m.pth"
    random = np.random.default_rng(0)
    for legacy in (False, True):
        content = {"format": "kdtune-1", "weights": {"a": torch.zeros(50)}, "classes": ["a", "b"]}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        refused = 0
        for _ in range(25):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 3):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged[: random.integers(1, len(whole))])
            try:
                load_model(path)
            except UserError:
                refused += 1
        assert refused == 25


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (text, "is not loaded: it is damaged"),
        (empty, "is not a readable checkpoint: it is empty|Ran out of input"),
        (cut, "is not a readable checkpoint"),
        (namespace, r"\(argparse\.Namespace\)"),
        (foreign, "was not written by kdtune"),
        (lambda path: None, "There is no file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "x.pth")
    with pytest.raises(UserError, match=sentence) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def wrapped(key):
    return lambda weights: {key: weights, "epoch": 3, "optimizer": {"state": {}}}


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def zeros(weights):
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


SAVED_AS = {
    "plain": lambda weights: weights,
    "model_state_dict": wrapped("model_state_dict"),
    "compiled and parallel": prefixed("_orig_mod.module."),
    "elsewhere": wrapped("net"),
    "deeper": lambda weights: {"checkpoint": wrapped("model")(weights)},
    "with plain values": lambda weights: {**weights, "epoch": 3},
    "with a counter": lambda weights: {
        **prefixed("module.")(weights),
        "n_averaged": torch.ones(()),
    },
    "with a loss": lambda weights: {**prefixed("model.")(weights), "loss.weight": torch.ones(3)},
    "of an old version": lambda weights: {k: v for k, v in weights.items() if "tracked" not in k},
    "wrapped and prefixed": lambda weights: wrapped("state_dict")(prefixed("model.")(weights)),
}


@pytest.mark.parametrize("saved_as", SAVED_AS)
def test_a_state_dict_of_torchvision_loads_however_it_was_wrapped(tmp_path, saved_as):
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    torch.save(SAVED_AS[saved_as](theirs.state_dict()), tmp_path / "teacher.pt")
    loaded = load_model(tmp_path / "teacher.pt")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded["model"](images)[0], theirs(images), atol=1e-5)
    assert (loaded["architecture"], loaded["num_classes"]) == ("ResNet18", 5)
    assert loaded["classes"] is None and loaded["config"] is None


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("resnet34", "ResNet34"), ("resnet50", "ResNet50"), ("resnext50_32x4d", "ResNet50-32x4")],
)
def test_architecture_and_classes_are_read_from_the_shapes(tmp_path, name, architecture):
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "teacher.safetensors")
    loaded = load_model(tmp_path / "teacher.safetensors")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded["model"](images)[0], theirs(images), atol=1e-5)
    assert (loaded["architecture"], loaded["num_classes"]) == (architecture, 7)


def test_the_stem_is_read_from_the_shapes(tmp_path):
    ours = build_model("ResNet18", 4, 32).eval()
    torch.save(ours.state_dict(), tmp_path / "small.pth")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "small.pth")["model"](images)[0], ours(images)[0])


def other_network(path):
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), path)


def without_head(path):
    weights = torchvision.models.resnet18().state_dict()
    torch.save({k: v for k, v in weights.items() if not k.startswith("fc.")}, path)


def without_a_layer(path):
    weights = torchvision.models.resnet18().state_dict()
    torch.save({k: v for k, v in weights.items() if "layer4.1.conv2" not in k}, path)


def with_more(path):
    weights = torchvision.models.resnet18().state_dict()
    more = {"attention.0.weight": torch.zeros(3), "attention.0.bias": torch.zeros(3)}
    torch.save(weights | more, path)


def two_networks(path):
    weights = torchvision.models.resnet18().state_dict()
    torch.save({"net1": weights, "net2": zeros(weights)}, path)


def of_other_width(path):
    weights = torchvision.models.resnet18().state_dict()
    torch.save({**weights, "bn1.bias": torch.zeros(32)}, path)


def whole_module(path):
    torch.save(torchvision.models.resnet18(), path)


def program(path):
    # torch says that TorchScript is deprecated, but files of it stay around
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (other_network, r"give .* as NAME=FILE, such as torchvision:mobilenet_v3_small=FILE or M"),
        (other_network, r"holds \d+ tensors, the first 'features.0.0.weight' \[16, 3, 3, 3\]"),
        (without_head, "a ResNet that is none of torchvision's: there is no fc.weight; give a ch"),
        (without_a_layer, r"torchvision's: it lacks layer4.1.conv2.weight; give"),
        (two_networks, "holds 2 networks, net1 and net2: save the one"),
        (with_more, "torchvision's: it has besides attention.0.bias and 1 more; give"),
        (of_other_width, r"torchvision's: bn1.bias is \[32\], not \[64\]; give a checkpoint"),
        (whole_module, r"\(torchvision.models.resnet.ResNet\); save the network's state_dict"),
        (program, "it holds a program"),
        (lambda path: torch.save([1, 2], path), "holds no state_dict, but a list; give"),
        (lambda path: torch.save({"a": 1}, path), "holds no state_dict, but a dict of a; give"),
    ],
)
def test_a_teacher_that_is_none_is_a_sentence(tmp_path, make, sentence):
    make(tmp_path / "x.pth")
    with pytest.raises(UserError, match=sentence) as error:
        load_model(tmp_path / "x.pth")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


A_TENSOR = torch.zeros(3)
STUDENT_AND_TEACHER = {
    "model and teacher": lambda student, teacher: {"model": student, "teacher": teacher},
    "snet and tnet": lambda student, teacher: {"epoch": 7, "snet": student, "tnet": teacher},
    "model_s and model_t": lambda student, teacher: {"model_s": student, "model_t": teacher},
    "student and average": lambda student, teacher: {"model": student, "teacher_ema": teacher},
    "by prefix": lambda student, teacher: {
        "state_dict": prefixed("module.student.")(student) | prefixed("module.teacher.")(teacher)
    },
}


@pytest.mark.parametrize("saved_as", STUDENT_AND_TEACHER)
def test_of_student_and_teacher_in_a_file_the_teacher_is_used_and_said(tmp_path, saved_as):
    student, teacher = (
        torchvision.models.resnet18(num_classes=count).state_dict() for count in (2, 3)
    )
    torch.save(STUDENT_AND_TEACHER[saved_as](student, teacher), tmp_path / "both.pth")
    loaded = load_model(tmp_path / "both.pth")
    assert loaded["num_classes"] == 3
    assert re.search(
        r"both.pth holds .* and .*: the network .*(teacher|t|tnet|ema) is used$", loaded["note"]
    )


def test_a_teacher_of_another_network_than_named_is_not_meant(tmp_path):
    name = "torchvision:mobilenet_v3_small"
    student = torchvision.models.mobilenet_v3_small(num_classes=2).state_dict()
    teacher = torchvision.models.resnet18(num_classes=2).state_dict()
    torch.save({"student": student, "teacher": teacher}, tmp_path / "both.pth")
    loaded = load_model(tmp_path / "both.pth", name=name)
    assert (loaded["architecture"], loaded["note"]) == (name, "")


def test_an_average_and_an_optimizer_are_no_second_network(tmp_path):
    weights = torchvision.models.resnet18(num_classes=2).state_dict()
    optimizer = {"state": {0: {"momentum": A_TENSOR}}}
    content = {"model": weights, "model_ema": zeros(weights), "optimizer": optimizer}
    torch.save(content, tmp_path / "t.pth")
    loaded = load_model(tmp_path / "t.pth")
    assert loaded["note"] == "" and not loaded["model"].state_dict()["conv1.weight"].eq(0).all()


def test_counts_of_a_profiler_are_no_weights(tmp_path):
    weights = torchvision.models.resnet18(num_classes=2).state_dict()
    counts = {"total_ops": A_TENSOR, "layer1.total_params": A_TENSOR, "fc.total_ops": A_TENSOR}
    torch.save(weights | counts, tmp_path / "t.pth")
    assert load_model(tmp_path / "t.pth")["architecture"] == "ResNet18"
    more = {"layer1.gate.weight": A_TENSOR}  # no block
    torch.save(weights | more, tmp_path / "t.pth")
    with pytest.raises(UserError, match="it has besides layer1.gate.weight"):
        load_model(tmp_path / "t.pth")


@pytest.mark.parametrize(
    ("name", "size", "saved_as"),
    [
        ("torchvision:mobilenet_v3_small", 32, "wrapped and prefixed"),
        ("MultiBranchNet", 16, "model_state_dict"),
        ("ResNet18", 32, "plain"),
        ("torchvision:swin_t", 32, "compiled and parallel"),
        ("timm:test_vit", 64, "plain"),
    ],
)
def test_a_state_dict_loads_under_the_name_of_its_network(tmp_path, name, size, saved_as):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    theirs = build_model(name, 6, size).eval()
    torch.save(SAVED_AS[saved_as](theirs.state_dict()), tmp_path / "t.pth")
    loaded = load_model(tmp_path / "t.pth", name=name, image_size=size)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded["model"](images)[0], theirs(images)[0])
    assert (loaded["architecture"], loaded["num_classes"]) == (name, 6)
    assert loaded["image_size"] is None and not loaded["model"].training


def test_weights_that_fit_one_image_size_name_it(tmp_path):
    pytest.importorskip("timm")
    for name, size in {"ResNet18": 32, "timm:test_vit": 64}.items():
        torch.save(build_model(name, 6, size).state_dict(), tmp_path / "t.pth")
        assert load_model(tmp_path / "t.pth", name=name)["image_size"] == size
        with pytest.raises(UserError, match=f"for images of {size} px; give --image-size {size}"):
            load_model(tmp_path / "t.pth", name=name, image_size=96)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torchvision:mobilenet_v2", "t.pth does not fit torchvision:mobilenet_v2: it lacks cla"),
        ("torchvision:wide_resnet50_2", r"it lacks layer1.0.bn3.bias"),
        ("Nothing", "There is no model 'Nothing'"),
    ],
)
def test_weights_of_another_network_than_named_are_a_sentence(tmp_path, name, sentence):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "t.pth")
    with pytest.raises(UserError, match=sentence):
        load_model(tmp_path / "t.pth", name=name)


def test_a_checkpoint_of_kdtune_is_not_loaded_under_another_name(tmp_path):
    config = small_config("digits").model_dump()
    save_model(
        tmp_path / "m.pth", build_model("MultiBranchNet", 2, 8), config=config, classes=["a", "b"]
    )
    assert load_model(tmp_path / "m.pth", name="MultiBranchNet")["image_size"] == 8
    with pytest.raises(UserError, match="holds the network MultiBranchNet, not ResNet18"):
        load_model(tmp_path / "m.pth", name="ResNet18")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_broken_safetensors_are_a_sentence(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint|is damaged"):
        load_model(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="There is no file"):
        load_model(tmp_path / "y.safetensors")
