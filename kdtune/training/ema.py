"""Exponential moving average (EMA) of a network's weights."""

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ModelEma:
    """A copy of a network whose weights and buffers follow those of the network slowly.

    Statistics of batch norm are averaged like weights, so that they fit them. The decay grows to
    its final value as in timm, min(decay, (1 + t) / (10 + t)) after t steps; else the initial
    weights would count for most in a short run. It is constant within an epoch.

    Args:
        model: the network, on its device.
        decay: of the average, per step.

    Attributes:
        model: the copy, in eval mode.
        steps: number of steps in all epochs before.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.steps = 0
        self._trained, self._decay = model, decay

    def start_epoch(self) -> None:
        """Choose the decay of the epoch, and find all weights where they are now."""
        # Some layers of timm keep what they computed from the weights while they are evaluated.
        self.model.train().eval()
        self._averages, self._values = _split_by_kind(self.model), _split_by_kind(self._trained)
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the network, after a step; counters are copied."""
        self._update(self._averages[0], self._values[0], 0)
        if self._averages[1]:  # a ViT has no counters
            torch._foreach_copy_(self._averages[1], self._values[1])


def _split_by_kind(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the parameters and buffers that are floats, and the others."""
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
