"""A network where and how it runs fastest: device, precision, memory format, compilation."""

import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.runtime.device import has_gpu, has_native_bf16


def pick_device(name: str) -> torch.device:
    """Turn a device's name into the device; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: there is no such device here.
    """
    available = {"cuda": has_gpu(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((device for device, is_available in available.items() if is_available), "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        usable_names = ", ".join(
            ["auto", "cpu", *(d for d, is_available in available.items() if is_available)]
        )
        raise UserError(
            f"The device '{name}' cannot be used on this machine; there are {usable_names}."
        ) from None


def pick_precision(precision: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """Decide in which type a network computes: bfloat16 under autocast, or float32.

    ``auto`` takes bfloat16 on CUDA devices that have it, and on CPUs with AMX units unless the
    network has depthwise convolutions, which are slower in bfloat16 there.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        use_bf16 = has_native_bf16()
    elif device.type == "cpu":
        use_bf16 = bool(
            torch.cpu.get_capabilities().get("amx_bf16")
        ) and not _has_depthwise_convolutions(model)
    else:
        use_bf16 = False
    return torch.bfloat16 if use_bf16 else torch.float32


def _has_depthwise_convolutions(model: nn.Module) -> bool:
    return any(m.groups > 1 for m in model.modules() if isinstance(m, nn.Conv2d))


class DeviceModel:
    """A network where and how it runs fastest: device, memory format, autocast, compilation.

    The network itself is moved; called, it takes normalised images and gives logits and features.

    Args:
        model: returns logits and features.
        device: where it goes.
        config: gives precision and whether to compile.
    """

    def __init__(self, model: nn.Module, device: torch.device, config: TrainConfig):
        self.device = device
        self.dtype = pick_precision(config.precision, model, device)
        # Dense float32 convolutions are the one case that is slower channels_last on a CPU.
        dense_float32 = self.dtype == torch.float32 and not _has_depthwise_convolutions(model)
        use_contiguous = device.type != "cuda" and dense_float32
        self.memory_format = torch.contiguous_format if use_contiguous else torch.channels_last
        self.model = model.to(device).to(memory_format=self.memory_format)
        self.forward = torch.compile(self.model) if config.compile else self.model

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )
        with autocast:
            return self.forward(images.contiguous(memory_format=self.memory_format))
