"""Counts the kernels that a GPU would run, and refuses what makes it and its host wait."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "lift_fresh_copy", "masked_select")
"""Operations that read numbers from a device, or make a tensor of Python numbers."""

FREE = ("detach", "empty", "empty_like", "empty_strided", "_unsafe_view", "set_", "is_pinned")
"""Operations that are neither views nor kernels."""


class HostCallError(AssertionError):
    """An operation for which the host waits for the device."""


class KernelCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that are no views; each is at least one kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_mask:
            raise HostCallError(name)
        self.count += not (func.is_view or name in FREE)
        return func(*args, **(kwargs or {}))
