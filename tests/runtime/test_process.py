"""A process begins anew, whatever a run has done to it."""

import os
import random
import sys
import warnings

import numpy as np
import torch

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
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
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
