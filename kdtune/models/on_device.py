"""Device, precision, memory format and compilation with which a network runs fastest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from kdtune.errors import UserError
from kdtune.models import split_outputs
from kdtune.runtime.device import (
    current_gpu,
    fast_gpu_dtype,
    gpu_name,
    has_gpu,
    has_tf32,
    is_gpu,
    set_float32_precision,
    visible_gpus,
)


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` prefers CUDA, then MPS, then the CPU.

    A GPU gets no context of this process yet, which would take half a GB of its memory.
    """
    available = {"cuda": has_gpu(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [device for device, is_available in available.items() if is_available]
    try:
        device = torch.device(names[0] if name == "auto" else name)
        if device.type == "cuda" and (device.index or 0) in visible_gpus():
            return torch.device("cuda", current_gpu() if device.index is None else device.index)
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError):
        known = ", ".join(["auto", *names])
        text = f"The device '{name}' cannot be used on this machine; there are {known}."
        raise UserError(text) from None


def pick_precision(precision: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """Return the type in which a network computes: that of autocast, or float32.

    Args:
        precision: ``float32``, ``tf32``, ``float16``, ``bf16`` or ``auto``, the fastest of the
            last three for which the device is built, else ``float32``.
        model: the network.
        device: where it runs.
    """
    if precision == "auto" and device.type == "cuda":
        return fast_gpu_dtype(device)
    if precision == "auto" and device.type == "cpu":
        has_amx = bool(getattr(torch.cpu, "get_capabilities", dict[str, bool])().get("amx_bf16"))
        # Depthwise convolutions are slower in bfloat16 on a CPU.
        use_bf16 = has_amx and not _has_depthwise_convolutions(model)
        return torch.bfloat16 if use_bf16 else torch.float32
    return {"bf16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def _has_depthwise_convolutions(model: nn.Module) -> bool:
    return any(m.groups > 1 for m in model.modules() if isinstance(m, nn.Conv2d))


class DeviceModel:
    """A network on a device, with the fastest precision and memory format, maybe compiled.

    Called with images [B, 3, H, W], uint8 or normalised floats, it returns logits and features.

    On a GPU, the precision of the settings also decides how all of the process computes float32:
    in TF32 with ``tf32``, never with ``float32``, and else in convolutions, such as the layers of
    a method, but not in the matrix products of its loss.

    Args:
        model: returns logits and features; it is moved itself.
        device: the device.
        config: gives precision and whether to compile.
        dtype: type in which the network computes; None for that of the precision.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        config: TrainConfig,
        dtype: torch.dtype | None = None,
    ):
        self.device = device
        self.dtype = dtype or pick_precision(config.precision, model, device)
        if is_gpu(device):
            convolutions = "ieee" if config.precision == "float32" else "tf32"
            matmuls = "tf32" if config.precision == "tf32" else "ieee"
            set_float32_precision(convolutions, matmuls)
        uses_tf32 = config.precision == "tf32" and has_tf32(device)
        self._precision = "tf32" if uses_tf32 else str(self.dtype).removeprefix("torch.")
        # Dense float32 convolutions are the one case that is slower channels_last on a CPU.
        dense_float32 = self.dtype == torch.float32 and not _has_depthwise_convolutions(model)
        use_contiguous = device.type != "cuda" and dense_float32
        self.memory_format = torch.contiguous_format if use_contiguous else torch.channels_last
        self.model = model.to(device).to(memory_format=self.memory_format)
        statistics = IMAGENET_MEAN, IMAGENET_STD
        self._mean, self._std = (torch.tensor(values, device=device) for values in statistics)
        forward = torch.compile(self.model) if config.compile else self.model
        self.forward: Callable[[Tensor], Any] = forward

    @property
    def needs_grad_scaler(self) -> bool:
        """True if small gradients would become 0: those of float16, unless losses are scaled."""
        return self.dtype == torch.float16

    def describe(self) -> str:
        """Return the name of a GPU and the precision on it; of other devices only the name."""
        name = gpu_name(self.device)
        return f"{name}, {self._precision}" if name else str(self.device)

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        images = normalise(images, self._mean, self._std)
        uses_autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=uses_autocast):
            outputs = self.forward(images.contiguous(memory_format=self.memory_format))
        return split_outputs(self.model, outputs)
