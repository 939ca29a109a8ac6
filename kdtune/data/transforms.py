"""Image transforms on tensors: augmentation and normalisation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Returns an augmented image, uint8 [3, S, S], of another and a generator."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet, used for every data set so that pretrained teachers fit."""


def normalise(
    images: Tensor,
    mean: Sequence[float] | Tensor = IMAGENET_MEAN,
    std: Sequence[float] | Tensor = IMAGENET_STD,
) -> Tensor:
    """Convert uint8 images to normalised floats; return float images as they are.

    Args:
        images: [B, 3, H, W].
        mean: of each channel, as a share of 255; a tensor on a GPU spares a wait for a copy.
        std: of each channel, as a share of 255.
    """
    if images.dtype != torch.uint8:
        return images
    shift, scale = (torch.as_tensor(v, device=images.device).view(1, 3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - shift) / scale


def augment_images(images: Tensor, seeds: Sequence[int], name: str = "standard") -> Tensor:
    """Augment each image at random, by its own seed alone.

    Crops are from images padded by an eighth: 4 px of 32 (as is usual on CIFAR), 16 px of 128.
    The global random state is not used, since another thread may draw from it while it trains.

    Args:
        images: uint8 [B, 3, S, S].
        seeds: seed of each image [B].
        name: one of `AUGMENTATIONS`.
    """
    augmented = torch.empty_like(images, pin_memory=images.is_pinned())
    augment, generator = AUGMENTATIONS[name], torch.Generator()
    for i, seed in enumerate(seeds):
        augmented[i] = augment(images[i], generator.manual_seed(seed))
    return augmented


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=generator))


def _crop_and_flip(image: Tensor, generator: torch.Generator) -> Tensor:
    size, padding = image.shape[-1], image.shape[-1] // 8
    if padding:
        top, left = (int(torch.randint(2 * padding + 1, (), generator=generator)) for _ in "yx")
        image = F.crop(F.pad(image, [padding]), top, left, size, size)
    if float(torch.rand(1, generator=generator)) < 0.5:
        image = F.horizontal_flip(image)
    return image


_RECOLOUR = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def _augment_as_standard(image: Tensor, generator: torch.Generator) -> Tensor:
    """Augment an image with the draws of torchvision's transforms, which take no generator."""
    image = _crop_and_flip(image, generator)
    angle = _uniform(generator, -10, 10)
    image = F.rotate(image, angle, InterpolationMode.BILINEAR, fill=[0.0])
    order = torch.randperm(4, generator=generator).tolist()  # 3 is the hue, which stays
    factors = [_uniform(generator, 0.8, 1.2) for _ in _RECOLOUR]
    for i in order:
        if i < len(_RECOLOUR):
            image = _RECOLOUR[i](image, factors[i])
    return image


class _DrawFrom(TorchFunctionMode):
    """In this thread, torch draws from a generator, also in transforms that take none.

    It costs too much time for `_augment_as_standard`, which is therefore written out.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FUNCTIONS:
            kwargs = {"generator": self._generator, **kwargs}
        return func(*args, **kwargs)


_RANDOM_FUNCTIONS = {torch.rand, torch.randint, torch.randperm, torch.randn, Tensor.uniform_}


def _crop_flip_and(transform: nn.Module) -> Augmentation:
    def augment(image: Tensor, generator: torch.Generator) -> Tensor:
        image = _crop_and_flip(image, generator)
        with _DrawFrom(generator):
            augmented: Tensor = transform(image)
        return augmented

    return augment


AUGMENTATIONS: dict[str, Augmentation] = {
    "standard": _augment_as_standard,
    "crop_flip": _crop_and_flip,
    "randaugment": _crop_flip_and(v2.RandAugment()),
    "trivialaugment": _crop_flip_and(v2.TrivialAugmentWide()),
    "autoaugment": _crop_flip_and(v2.AutoAugment()),
}
"""Augmentations by name."""
