"""Optimizer and learning rate of a run."""

import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Return lr · gamma^((epoch − 1) div step_size).

    Args:
        config: gives lr, gamma and step_size.
        epoch: from 1.
    """
    return config.lr * config.gamma ** ((epoch - 1) // config.step_size)


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.SGD:
    """Build the SGD of a run.

    Args:
        config: gives learning rate, momentum and weight decay.
        parameters: those of student and method.
    """
    optimizer = torch.optim.SGD(
        parameters, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True
    )
    # Fused SGD fails when only some parameters have a momentum yet, as after a hint stage;
    # starting all of them from zero gives the same numbers.
    if config.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's buffers their parameters' memory format, as fused steps require."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
