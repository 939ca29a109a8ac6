"""Calls of CUDA, with a stand-in for it, and on a GPU if there is one."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import small_config

from kdtune.models.costs import measure_network_costs
from kdtune.runtime import device
from kdtune.runtime.device import GpuMemory
from kdtune.runtime.environment import describe_environment
from kdtune.runtime.process import ProcessState

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Fake:
    """A GPU of 100 bytes of which 30 are free; `calls` are those that change something."""

    def __init__(self):
        self.calls, self.capability = [], (9, 0)

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def get_device_name(self, where):
        return f"Fake {where.index}"

    def mem_get_info(self, where):
        return 30, 100

    def max_memory_reserved(self, where):
        return 42

    def get_device_capability(self, where):
        return self.capability

    def reset_peak_memory_stats(self, where):
        self.calls.append(f"reset {where}")

    def empty_cache(self):
        self.calls.append("empty")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(device, "cuda", Fake())
    return device.cuda


def test_a_gpu_has_a_name_and_memory(fake):
    assert device.has_gpu() and list(device.visible_gpus()) == [0, 1]
    assert device.gpu_name(GPU) == "Fake 0"
    assert device.gpu_memory(GPU) == GpuMemory(total=100, used=70)
    assert device.peak_memory(GPU) == 42
    device.reset_peak_memory(GPU)
    device.release_gpu_memory()
    assert fake.calls == ["reset cuda:0", "empty"]


def test_the_current_gpu_is_asked_for_only_where_cuda_runs(fake):
    fake.is_initialized, fake.current_device = lambda: False, lambda: 1
    assert device.current_gpu() == 0
    fake.is_initialized = lambda: True
    assert device.current_gpu() == 1


@pytest.mark.parametrize(
    ("line", "driver"),
    [
        ("UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)", "570.86.15"),
        (None, None),
    ],
)
def test_the_software_of_gpus_is_named(monkeypatch, tmp_path, line, driver):
    monkeypatch.setattr(device, "NVIDIA_DRIVER_FILE", tmp_path / "version")
    if line is not None:
        text = f"NVRM version: NVIDIA {line}\nGCC version:  gcc 12.3.0\n"
        (tmp_path / "version").write_text(text)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    expected = {"nvidia_driver": driver} if driver else {}
    expected |= {"cuda": "13.0", "cudnn": "9.10.2"}
    assert device.gpu_software() == expected
    assert expected.items() <= describe_environment().items()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "cuda" not in device.gpu_software() and "cudnn" not in device.gpu_software()


def test_other_devices_are_asked_nothing(fake):
    device.reset_peak_memory(CPU)
    assert device.gpu_name(CPU) is device.gpu_memory(CPU) is device.peak_memory(CPU) is None
    assert fake.calls == []


def test_without_a_gpu_nothing_is_released(fake, monkeypatch):
    monkeypatch.setattr(fake, "is_available", lambda: False)
    device.release_gpu_memory()
    assert fake.calls == []


def test_a_process_is_limited_to_its_share_of_a_gpus_memory(fake, monkeypatch):
    fake.get_per_process_memory_fraction = lambda where: 0.25
    fake.set_per_process_memory_fraction = lambda share: fake.calls.append(share)
    for share in (0.25, 1.0, 0.0):  # a process without a GPU has none of it
        device.limit_gpu_memory(share)
    assert fake.calls == [0.25, 1.0] and device.gpu_memory_share(GPU) == 0.25
    monkeypatch.setattr(fake, "is_available", lambda: False)
    device.limit_gpu_memory(0.5)  # of a simulated GPU
    assert fake.calls == [0.25, 1.0]


class Clock:
    """Time that passes while somebody sleeps."""

    now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    ("free", "share", "waited"),
    [
        (lambda t: 90, 1.0, 0.0),  # enough
        (lambda t: 23, 0.25, 0.0),
        (lambda t: 20, 0.25, 1.0),  # others hold it
        (lambda t: 0 if t < 0.5 else 90, 1.0, 0.5),
        (lambda t: 10 * int(2 * t), 1.0, 4.5),  # it returns bit by bit
        (lambda t: t, 1.0, 10.0),
        (lambda t: None if t < 0.5 else 95, 1.0, 0.5),  # no room for a context before
        (lambda t: 0, 0.0, 0.0),  # no GPU for this process
    ],
)
def test_a_process_waits_while_memory_returns_to_its_gpu(fake, monkeypatch, free, share, waited):
    clock = Clock()

    def ask():
        if (found := free(clock.now - 100)) is None:
            raise RuntimeError("CUDA error: out of memory")
        return found, 100

    monkeypatch.setattr(device, "time", clock)
    monkeypatch.setattr(fake, "mem_get_info", ask)
    device.wait_for_gpu_memory(share)
    assert clock.now - 100 == pytest.approx(waited, abs=0.11)


def test_a_gpu_that_was_lost_has_a_name(fake):
    fake.get_device_properties = lambda number: SimpleNamespace(name=f"T{number}", uuid="5f2c-01")
    assert device.describe_gpu() == "T0 (GPU-5f2c-01)"


@pytest.mark.skipif(
    not hasattr(torch._C, "_accelerator_getAllocatorSettings"), reason="torch does not show them"
)
def test_torch_takes_memory_of_gpus_in_segments_that_grow(monkeypatch):
    code = "import torch; from kdtune.runtime import device; device.avoid_gpu_fragmentation(); "
    code += "print(torch._C._accelerator_getAllocatorSettings())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH_")}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "expandable_segments:True"
    monkeypatch.setattr(os, "environ", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"})
    device.avoid_gpu_fragmentation()
    assert "PYTORCH_ALLOC_CONF" not in os.environ  # the user's choice stays


@pytest.mark.parametrize(
    ("capability", "dtype", "tf32"),
    [
        ((6, 1), torch.float32, False),  # GTX 1080
        ((7, 0), torch.float16, False),  # V100
        ((7, 5), torch.float16, False),  # T4
        ((8, 0), torch.bfloat16, True),  # A100
        ((9, 0), torch.bfloat16, True),  # H100
    ],
)
def test_a_gpu_computes_in_the_fastest_type_that_it_has(fake, capability, dtype, tf32):
    fake.capability = capability
    assert device.fast_gpu_dtype(GPU) == dtype
    assert device.has_tf32(GPU) is tf32 and not device.has_tf32(CPU)


@pytest.mark.parametrize("other", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("convolutions", ["ieee", "tf32"])
@pytest.mark.parametrize("matmuls", ["ieee", "tf32"])
def test_float32_is_ieee_or_tf32_whatever_was_set_before(other, convolutions, matmuls):
    process = ProcessState()
    torch.backends.fp32_precision = other
    torch.backends.cudnn.conv.fp32_precision = other
    device.set_float32_precision(convolutions, matmuls)
    of_matmuls = torch.backends.cuda.matmul.fp32_precision
    of_convolutions = torch.backends.cudnn.conv.fp32_precision
    older = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    process.restore(0)
    assert (of_convolutions, of_matmuls) == (convolutions, matmuls)
    # torch.compile reads these, and torch refuses them if they disagree with the newer ones.
    assert older == (convolutions == "tf32", "high" if matmuls == "tf32" else "highest")


@pytest.mark.parametrize(
    ("initialised", "error", "lost"),
    [
        (True, torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (True, None, False),
        (False, torch.AcceleratorError("never asked for"), False),
    ],
)
def test_a_gpu_is_lost_if_it_cannot_be_waited_for(fake, initialised, error, lost):
    def synchronize():
        if error is not None:
            raise error

    fake.synchronize, fake.is_initialized = synchronize, lambda: initialised
    assert device.is_gpu_lost() is lost


def test_gpus_can_be_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    device.hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_real_thing():
    device.reset_peak_memory(GPU)
    held = torch.empty(2**26, dtype=torch.uint8, device=GPU)
    found = device.gpu_memory(GPU)
    assert found.used >= held.nbytes and device.peak_memory(GPU) >= held.nbytes
    assert 0 < found.used <= found.total
    assert (
        device.gpu_name(GPU) == measure_network_costs(small_config("digits"), 10)["latency_device"]
    )
