"""Optimizer and learning rate of a run."""

import math

import torch
from torch import Tensor, nn

from kdtune.config.train import TrainConfig

ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25
"""Share of the epochs in which one_cycle rises, and where it starts, as in torch's OneCycleLR."""


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, by `config.lr_scheduler`.

    It rises linearly in the first `warmup_epochs`, then follows the scheduler as torch's does,
    which counts from there. ``one_cycle`` is taken in the middle of each epoch.

    Args:
        config: gives lr, lr_scheduler and the settings of it.
        epoch: from 1.
    """
    warmup = config.warmup_epochs
    if epoch <= warmup:
        return config.lr * epoch / (warmup + 1)
    done, total = epoch - 1 - warmup, config.epochs - warmup
    match config.lr_scheduler:
        case "constant":
            return config.lr
        case "cosine":
            return config.lr * _cosine(1, 0, done / total)
        case "one_cycle":
            share = (done + 0.5) / total
            if share < ONE_CYCLE_RISE:
                return config.lr * _cosine(ONE_CYCLE_START, 1, share / ONE_CYCLE_RISE)
            return config.lr * _cosine(1, 0, (share - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))
        case "step":
            return config.lr * config.gamma ** (done // config.step_size)


def _cosine(start: float, end: float, share: float) -> float:
    """Return the value between start and end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer of a run.

    Args:
        config: gives optimizer, learning rate, momentum and weight decay.
        parameters: those of student and method, on their device.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            config.lr,
            (config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=parameters[0].device.type == "cuda",  # else no CUDA graph can hold it
        )
    optimizer = torch.optim.SGD(
        parameters,
        config.lr,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=True,
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
