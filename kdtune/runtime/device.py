"""What is asked of GPUs: are there any, their names, their memory. All calls of CUDA are here.

They have been run with a stand-in for `torch.cuda` only, on machines without a GPU.
"""

import os
from dataclasses import dataclass

import torch
from torch import cuda


@dataclass(frozen=True)
class GpuMemory:
    """Of a GPU, in bytes; what is used is so by all processes together."""

    total: int
    used: int


def has_gpu() -> bool:
    """Whether this process sees a GPU."""
    return cuda.is_available()


def visible_gpus() -> range:
    """The GPUs that this process sees, by number."""
    return range(cuda.device_count())


def gpu_name(device: torch.device) -> str | None:
    """What the maker calls a GPU; None for other devices."""
    return cuda.get_device_name(device) if device.type == "cuda" else None


def gpu_memory(device: torch.device) -> GpuMemory | None:
    """The memory of a GPU now; None for other devices."""
    if device.type != "cuda":
        return None
    free, total = cuda.mem_get_info(device)
    return GpuMemory(total, total - free)


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_of` begin anew; on other devices nothing is done."""
    if device.type == "cuda":
        cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process held at a time, in bytes; None on other devices.

    What the driver needs for the process itself, some 100 MB, is not counted.
    """
    return cuda.max_memory_reserved(device) if device.type == "cuda" else None


def release_gpu_memory() -> None:
    """Give back the memory of GPUs that this process holds and does not use."""
    if has_gpu():
        cuda.empty_cache()


def has_native_bf16() -> bool:
    """Whether the GPU computes in bfloat16 itself."""
    return cuda.is_bf16_supported(including_emulation=False)


def hide_gpus() -> None:
    """Have this process see no GPU; that takes that it has used none yet."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
