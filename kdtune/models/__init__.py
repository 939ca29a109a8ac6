"""Networks that return logits and feature maps: ``logits, features = model(images)``.

Shapes: images float ``[B, 3, H, W]``; logits ``[B, K]``; features a list of one map a stage,
``[B, C, H, W]`` each, the last one the final feature map. To add a network, write one file and
one entry in `MODELS`.
"""

from collections.abc import Callable

import torch
from torch import nn

from kdtune.errors import UserError, nearest
from kdtune.models.multibranch import MultiBranchNet
from kdtune.models.resnet import resnet18, resnet50

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "MultiBranchNet": MultiBranchNet,
    "ResNet18": resnet18,
    "ResNet50": resnet50,
}
"""Architectures by name; each is built from (number of classes, image size)."""


def check_model(name: str) -> None:
    """Raise a `UserError` that names the nearest known one if there is no model `name`."""
    if name not in MODELS:
        raise UserError(f"There is no model '{name}'; {nearest(name, MODELS)}")


def build_model(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Build a network with fresh weights from the global random state.

    Args:
        name: a key of `MODELS`.
        num_classes: K, length of the logits.
        image_size: height and width in pixels; small images get a stem that keeps their size.

    Raises:
        UserError: there is no such model.
    """
    check_model(name)
    return MODELS[name](num_classes, image_size)


@torch.no_grad()
def feature_shapes(model: nn.Module, image_size: int) -> list[tuple[int, int, int]]:
    """Find the shape of each stage's feature map.

    The probe runs in eval mode, so no batch-norm statistic moves.

    Returns:
        (C, H, W) of each stage for square images of `image_size` pixels.
    """
    training = model.training
    device = next(model.parameters()).device
    _, features = model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    model.train(training)
    return [(f.shape[1], f.shape[2], f.shape[3]) for f in features]
