"""All calls of CUDA: presence, names and memory of GPUs."""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, cuda
from torch.backends import cuda as cublas
from torch.backends import cudnn

NVIDIA_DRIVER_FILE = Path("/proc/driver/nvidia/version")

MAX_MEMORY_WAIT_SECONDS = 10.0

ENOUGH_MEMORY_SHARE = 0.9
"""Share of what a process may use of a GPU that is enough to start; others' contexts need some."""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU, and how many of them all processes use together."""

    total: int
    used: int


def has_gpu() -> bool:
    """Return True if this process sees a GPU."""
    return cuda.is_available()


def is_gpu(device: torch.device) -> bool:
    """Return True for a GPU that CUDA (or ROCm) drives."""
    return device.type == "cuda"


def _has_context() -> bool:
    return bool(cuda.is_initialized())  # type: ignore[no-untyped-call]


def visible_gpus() -> range:
    """Return the numbers of the GPUs that this process sees."""
    return range(cuda.device_count())


def current_gpu() -> int:
    """Return the number of the GPU that ``cuda`` means, without giving it a context."""
    return cuda.current_device() if _has_context() else 0


def gpu_name(device: torch.device) -> str | None:
    """Return the name of a GPU; None for other devices."""
    return cuda.get_device_name(device) if is_gpu(device) else None


def describe_gpu() -> str:
    """Return name and UUID of the GPU of a trial's process, as ``nvidia-smi -L`` shows them."""
    properties = cuda.get_device_properties(0)
    return f"{properties.name} (GPU-{properties.uuid})"


def gpu_software() -> dict[str, str]:
    """Return the versions of ``nvidia_driver``, ``cuda`` and ``cudnn`` that this process has."""
    versions = {}
    with suppress(OSError):  # without a driver, or not on Linux
        if found := re.search(r"Module.*?  ([\d.]+) ", NVIDIA_DRIVER_FILE.read_text()):
            versions["nvidia_driver"] = found[1]
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
        if (number := cudnn.version()) is not None:  # type: ignore[no-untyped-call]
            versions["cudnn"] = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return versions


def gpu_memory(device: torch.device) -> GpuMemory | None:
    """Return the memory of a GPU now; None for other devices."""
    if not is_gpu(device):
        return None
    free, total = cuda.mem_get_info(device)
    return GpuMemory(total, total - free)


def limit_gpu_memory(share: float) -> None:
    """Limit this process to a share of its GPU's memory; a no-op without a GPU.

    What exceeds it fails in this process, and not in another one that shares the GPU.

    Args:
        share: above 0, at most 1; 0 where a process has no GPU.
    """
    if share and has_gpu():
        cuda.set_per_process_memory_fraction(share)


def wait_for_gpu_memory(share: float) -> None:
    """Wait while the memory of a killed process returns to this process's GPU.

    The driver frees it late. The wait ends after at most `MAX_MEMORY_WAIT_SECONDS`, and when no
    more has become free for a second, since others may hold the rest. The share is that of
    `limit_gpu_memory`.
    """
    if not (share and has_gpu()):
        return
    started_at = grew_at = now = time.monotonic()
    most_free = 0
    while now < min(started_at + MAX_MEMORY_WAIT_SECONDS, grew_at + 1):
        try:
            free, total = cuda.mem_get_info()
        except RuntimeError:  # there is not even room for a context
            free, total = 0, 1
        if free >= ENOUGH_MEMORY_SHARE * share * total:
            return
        if free > most_free:
            most_free, grew_at = free, now
        time.sleep(0.1)
        now = time.monotonic()


def avoid_gpu_fragmentation() -> None:
    """Let memory that torch holds on a GPU grow in place; must be called before CUDA is used.

    Freed blocks of other sizes are then of use, as after a trial with other batches.
    """
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def gpu_memory_share(device: torch.device) -> float:
    """Return the share of a GPU's memory to which this process is limited."""
    return cuda.get_per_process_memory_fraction(device)


def reset_peak_memory(device: torch.device) -> None:
    """Restart what `peak_memory` measures; a no-op on other devices than GPUs."""
    if is_gpu(device):
        cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that this process held at a time; None on other devices than GPUs.

    The CUDA context of the process, some 100 MB, is not counted.
    """
    return cuda.max_memory_reserved(device) if is_gpu(device) else None


def release_gpu_memory() -> None:
    """Release the GPU memory that this process holds and does not use."""
    if has_gpu():
        cuda.empty_cache()


def is_gpu_lost() -> bool:
    """Return True if this process cannot use its GPU any more, as after an illegal access.

    CUDA then refuses every further call of this process, but none of others.
    """
    if not _has_context():
        return False
    try:
        cuda.synchronize()
    except RuntimeError:
        return True
    return False


def fast_gpu_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest type of a GPU: bfloat16, float16 on Volta and Turing, else float32."""
    major, _ = cuda.get_device_capability(device)
    if major >= 8:
        return torch.bfloat16
    return torch.float16 if major == 7 else torch.float32


def has_tf32(device: torch.device) -> bool:
    """Return True for a GPU that can compute float32 in TF32."""
    return is_gpu(device) and cuda.get_device_capability(device) >= (8, 0)


def set_float32_precision(convolutions: str, matmuls: str) -> None:
    """Set the arithmetic of GPUs for float32, in all threads of this process.

    Args:
        convolutions: ``ieee``, or ``tf32`` with a mantissa of 10 bits, on GPUs that have it.
        matmuls: likewise, for matrix products.
    """
    # Torch's older settings go first: torch.compile reads them, and torch refuses to return them
    # where they disagree with the newer ones.
    torch.set_float32_matmul_precision("high" if matmuls == "tf32" else "highest")
    cudnn.allow_tf32 = convolutions == "tf32"
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = convolutions  # type: ignore[attr-defined]
    cublas.matmul.fp32_precision = matmuls


def iter_on_host(
    batches: Iterable[dict[str, Tensor]], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield tensors of a GPU on the CPU, those of a batch while the GPU computes the next one.

    Args:
        batches: tensors by name; those of the first batch are the largest. A further batch is
            asked for before the one before it is yielded.
        device: the GPU.

    Yields:
        The tensors of a batch; they change when the batch after the next one is asked for.
    """
    stream = cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    buffers: tuple[dict[str, Tensor], ...] = ({}, {})
    pending: tuple[dict[str, Tensor], cuda.Event] | None = None
    for index, batch in enumerate(batches):
        buffer, copies = buffers[index % 2], {}
        stream.wait_stream(cuda.current_stream(device))
        with cuda.stream(stream):
            for name, value in batch.items():
                if name not in buffer:
                    buffer[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                copies[name] = buffer[name][: len(value)].copy_(value, non_blocking=True)
                value.record_stream(stream)
            copied = stream.record_event()
        if pending is not None:
            pending[1].synchronize()
            yield pending[0]
        pending = copies, copied
    if pending is not None:
        pending[1].synchronize()
        yield pending[0]


def hide_gpus() -> None:
    """Hide all GPUs from this process; must be called before CUDA is initialised."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
