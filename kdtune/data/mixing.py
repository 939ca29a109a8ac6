"""Mixed views: each image is mixed with another one, and its label likewise.

Pairs and ratios follow from the view's seed alone, so every run sees the same pixels, and the
teacher sees each of them once. The ratio of an image is uniform between 0 and 1.
"""

from dataclasses import dataclass

import numpy as np

IMAGES_PER_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Mixing:
    """The pairs of a view.

    Attributes:
        partners: index of the image that each image is mixed with, [N]; of an odd number of images
            one is its own.
        ratios: share of each image in its mixture, float32 [N].
        boxes: for ``cutmix``: top, bottom, left and right end of the partner's part, [N, 4].
    """

    partners: np.ndarray
    ratios: np.ndarray
    boxes: np.ndarray | None


def draw_mixing(name: str, num_images: int, image_size: int, seed: int) -> Mixing:
    """Draw pairs and ratios.

    Args:
        name: ``mixup`` (Zhang et al. 2018) or ``cutmix`` (Yun et al. 2019), with their alpha of 1.
        num_images: N.
        image_size: height and width in pixels.
        seed: of the view.
    """
    rng = np.random.default_rng(seed)
    partners = np.arange(num_images)
    first, second = rng.permutation(num_images)[: num_images // 2 * 2].reshape(-1, 2).T
    partners[first], partners[second] = second, first
    ratios = rng.uniform(size=num_images)
    boxes = None
    if name == "cutmix":
        half = image_size * np.sqrt(1 - ratios)[:, None] / 2
        centres = rng.uniform(0, image_size, size=(num_images, 2))
        edges = np.stack([centres - half, centres + half], axis=2).reshape(-1, 4)
        boxes = np.clip(np.round(edges), 0, image_size).astype(np.int64)
        heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
        ratios = 1 - heights * widths / image_size**2
    return Mixing(partners, ratios.astype(np.float32), boxes)


def mix_in_place(pixels: np.ndarray, mixing: Mixing) -> None:
    """Mix images with their partners, pair by pair.

    Args:
        pixels: uint8 [N, 3, S, S].
        mixing: of as many images.
    """
    first = np.flatnonzero(mixing.partners > np.arange(len(pixels)))
    for start in range(0, len(first), IMAGES_PER_CHUNK):
        ones = first[start : start + IMAGES_PER_CHUNK]
        others = mixing.partners[ones]
        images, partners = pixels[ones], pixels[others]
        pixels[ones] = _mix(images, partners, ones, mixing)
        pixels[others] = _mix(partners, images, others, mixing)


def _mix(
    images: np.ndarray, partners: np.ndarray, indices: np.ndarray, mixing: Mixing
) -> np.ndarray:
    if mixing.boxes is None:
        ratios = mixing.ratios[indices][:, None, None, None]
        means: np.ndarray = np.round(ratios * images + (1 - ratios) * partners).astype(np.uint8)
        return means
    mixed = images.copy()
    boxes = mixing.boxes[indices].tolist()
    for image, partner, (top, bottom, left, right) in zip(mixed, partners, boxes, strict=True):
        image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return mixed
