"""Image transforms on tensors: augmentation and normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

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


def augment_images(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Crop, flip, rotate and recolour each image at random, by its own seed alone.

    Crops are from images padded by an eighth: 4 px of 32 (as is usual on CIFAR), 16 px of 128.
    The global random state is not used, since another thread may draw from it while it trains.

    Args:
        images: uint8 [B, 3, S, S].
        seeds: seed of each image [B].
    """
    augmented, generator = torch.empty_like(images), torch.Generator()
    for i, seed in enumerate(seeds):
        augmented[i] = _augment_image(images[i], generator.manual_seed(seed))
    return augmented


_RECOLOUR = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def _augment_image(image: Tensor, generator: torch.Generator) -> Tensor:
    """Augment an image with the draws of torchvision's transforms, which take no generator."""

    def uniform(low: float, high: float) -> float:
        return float(torch.empty(1).uniform_(low, high, generator=generator))

    size, padding = image.shape[-1], image.shape[-1] // 8
    if padding:
        top, left = (int(torch.randint(2 * padding + 1, (), generator=generator)) for _ in "yx")
        image = F.crop(F.pad(image, [padding]), top, left, size, size)
    if float(torch.rand(1, generator=generator)) < 0.5:
        image = F.horizontal_flip(image)
    image = F.rotate(image, uniform(-10, 10), InterpolationMode.BILINEAR, fill=[0.0])
    order = torch.randperm(4, generator=generator).tolist()  # 3 is the hue, which stays
    factors = [uniform(0.8, 1.2) for _ in _RECOLOUR]
    for i in order:
        if i < len(_RECOLOUR):
            image = _RECOLOUR[i](image, factors[i])
    return image
