"""A process begins anew, whatever a run has done to it."""

import os
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.backends import cuda, cudnn

from kdtune.runtime.process import ProcessState


def mess_up():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(7)
    torch.set_grad_enabled(False)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    np.seterr(all="raise")
    warnings.simplefilter("ignore")
    sys.path.insert(0, "/nowhere")
    os.environ["KDTUNE_TEST"] = "1"
    os.environ.pop("HOME", None)
    random.seed(1)


def state():
    return (
        torch.get_default_dtype(), torch.empty(0).device, torch.get_num_threads(),
        torch.is_grad_enabled(), torch.is_anomaly_enabled(), torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
        np.geterr(), list(warnings.filters), list(sys.path), dict(os.environ),
    )  # fmt: skip


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_all_that_a_run_may_set_is_set_back_and_random_states_follow_from_the_seed():
    before, fresh = state(), ProcessState()
    fresh.restore(5)
    first = draws()
    mess_up()
    assert all(now != then for now, then in zip(state(), before, strict=True))
    fresh.restore(5)
    assert state() == before and draws() == first
    fresh.restore(6)
    assert draws() != first


def test_no_default_device_is_left_behind():
    fresh = ProcessState()
    torch.set_default_device("meta")
    fresh.restore(0)
    assert getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None) is None


def float32_precision():
    return (
        torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision, cuda.matmul.fp32_precision, torch.backends.fp32_precision,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "name", "value"),
    [
        (cudnn.conv, "fp32_precision", "ieee"),
        (cudnn.rnn, "fp32_precision", "ieee"),
        (cuda.matmul, "fp32_precision", "tf32"),
        (torch.backends, "fp32_precision", "tf32"),
        (cuda.matmul, "allow_tf32", True),
        (cudnn, "allow_tf32", False),
    ],
)
def test_the_precision_is_set_back_whichever_way_it_was_set(backend, name, value):
    """Torch refuses to say the older settings once a newer one disagrees with them."""
    fresh, before = ProcessState(), float32_precision()
    setattr(backend, name, value)
    torch.set_float32_matmul_precision("medium")
    setattr(backend, name, value)
    fresh.restore(0)
    assert float32_precision() == before


def test_a_process_may_begin_where_a_library_has_set_the_newer_settings():
    clean, before = ProcessState(), float32_precision()
    cudnn.conv.fp32_precision = "ieee"
    fresh = ProcessState()
    cudnn.conv.fp32_precision = "tf32"
    fresh.restore(0)
    assert cudnn.conv.fp32_precision == "ieee"
    clean.restore(0)
    assert float32_precision() == before
