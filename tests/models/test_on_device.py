"""The precision of networks, also on GPUs that are not here."""

import pytest
import torch
from small_runs import small_config
from torch._subclasses import FakeTensorMode

from kdtune.models import build_model, on_device
from kdtune.models.on_device import DeviceModel, pick_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class OnGpu(torch.nn.Identity):
    """A network that goes nowhere when it is moved."""

    def to(self, *args, **kwargs):
        return self


@pytest.fixture
def gpu(monkeypatch):
    """A T4; `arithmetic` is what is set for float32 on it."""
    arithmetic = []
    monkeypatch.setattr(on_device, "fast_gpu_dtype", lambda device: torch.float16)
    monkeypatch.setattr(on_device, "has_tf32", lambda device: False)
    monkeypatch.setattr(on_device, "gpu_name", lambda device: "Tesla T4")
    monkeypatch.setattr(on_device, "set_float32_precision", lambda *a: arithmetic.append(a))
    return arithmetic


def place(precision, device=GPU, dtype=None):
    config = small_config("digits", precision=precision)
    with FakeTensorMode():
        return DeviceModel(OnGpu(), device, config, dtype)


def test_auto_is_what_a_gpu_is_built_for_and_other_precisions_are_what_they_say(gpu):
    names = ("auto", "bf16", "float16", "tf32", "float32")
    types = [pick_precision(name, OnGpu(), GPU) for name in names]
    half = torch.float16
    assert types == [half, torch.bfloat16, half, torch.float32, torch.float32]


def test_float16_alone_needs_a_grad_scaler(gpu):
    needed = {p: place(p).needs_grad_scaler for p in ("auto", "float16", "bf16", "float32")}
    assert needed == {"auto": True, "float16": True, "bf16": False, "float32": False}


def test_float32_on_a_gpu_is_ieee_and_tf32_is_tf32(gpu):
    for precision in ("float32", "tf32", "auto"):
        place(precision)
    assert gpu == [("ieee", "ieee"), ("tf32", "tf32"), ("tf32", "ieee")]
    gpu.clear()
    place("tf32", CPU)
    assert gpu == []


def test_a_type_of_its_own_leaves_the_arithmetic_that_of_the_settings(gpu):
    exact = place("auto", dtype=torch.float32)
    assert exact.dtype == torch.float32 and gpu == [("tf32", "ieee")]


def test_the_precision_that_is_named_is_the_one_that_was_used(gpu, monkeypatch):
    names = [place(precision).describe() for precision in ("auto", "bf16", "tf32", "float32")]
    assert names == ["Tesla T4, float16", "Tesla T4, bfloat16", *["Tesla T4, float32"] * 2]
    monkeypatch.setattr(on_device, "has_tf32", lambda device: True)
    assert place("tf32").describe() == "Tesla T4, tf32"


def test_a_network_computes_in_float16():
    config = small_config("digits", precision="float16")
    student = DeviceModel(build_model("ResNet18", 10, 8).eval(), CPU, config)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, features = student(images)
        exact, _ = student.model(images)
    assert logits.dtype == features[-1].dtype == torch.float16
    assert 0 < (logits - exact).norm() < 0.02 * exact.norm()
