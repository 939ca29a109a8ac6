"""Costs of a network in use: parameters, multiply-accumulates, latency of one image."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdtune.config.train import TrainConfig
from kdtune.models import build_model
from kdtune.models.on_device import DeviceModel, pick_device
from kdtune.runtime.device import gpu_name


def measure_network_costs(config: TrainConfig, num_classes: int) -> dict[str, Any]:
    """Measure a student alone, on one image.

    Args:
        config: gives model, image size, device and precision.
        num_classes: K.

    Returns:
        ``parameters``; ``macs``, multiply-accumulates of convolutions and matrix products in one
        pass; ``latency_ms``, median milliseconds of a pass; ``latency_device``, the device.
    """
    model = build_model(config.model, num_classes, config.image_size).eval()
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    device = pick_device(config.device)
    device_model, image = DeviceModel(model, device, config), image.to(device)
    with torch.no_grad():  # reading a number waits for the device
        seconds = median_seconds(lambda: device_model(image)[0].argmax().item())
    threads = torch.get_num_threads()
    return {
        "parameters": count_parameters(model),
        "macs": counter.get_total_flops() // 2,
        "latency_ms": 1000 * seconds,
        "latency_device": gpu_name(device) or f"{device}, {threads} thread{'s' * (threads > 1)}",
    }


def count_parameters(model: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def median_seconds(call: Callable[[], object], warm_ups: int = 10, timed_calls: int = 50) -> float:
    """Return the median seconds of a call.

    Args:
        call: what is timed.
        warm_ups: first calls, which do not count.
        timed_calls: calls that count.
    """
    seconds = []
    for _ in range(warm_ups + timed_calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds[warm_ups:])
