"""Augmentation and normalisation."""

import threading

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from kdtune.data.transforms import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    augment_images,
    normalise,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)


def test_normalise_agrees_with_torchvision():
    images = torch.from_numpy(PIXELS)
    assert torch.allclose(
        normalise(images), F.normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD), atol=1e-6
    )
    ready = torch.randn(2, 3, 4, 4)
    assert normalise(ready) is ready


@pytest.mark.parametrize("size", [7, 8, 33, 64])
def test_augmentation_is_that_of_torchvision_seeded_for_each_image(size):
    images = torch.randint(256, (20, 3, size, size), dtype=torch.uint8)
    transform = v2.Compose(
        [
            v2.RandomCrop(size, padding=size // 8),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10, interpolation=InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
    seeds = [5, *range(2**40, 2**40 + 19)]
    for image, seed, found in zip(images, seeds, augment_images(images, seeds), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(found, transform(image))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("crop_flip", None),
        ("randaugment", v2.RandAugment()),
        ("trivialaugment", v2.TrivialAugmentWide()),
        ("autoaugment", v2.AutoAugment()),
    ],
)
def test_augmentations_by_name_are_those_of_torchvision(name, transform):
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    steps = [v2.RandomCrop(16, padding=2), v2.RandomHorizontalFlip(), transform]
    expected = v2.Compose([step for step in steps if step is not None])
    found = augment_images(images, range(40), name)
    for seed, image in enumerate(images):
        torch.manual_seed(seed)
        assert torch.equal(found[seed], expected(image))
    assert torch.equal(augment_images(images[7:9], [7, 8], name), found[7:9])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_in_a_thread_leaves_the_draws_of_others_alone(name):
    stop, started = threading.Event(), threading.Event()

    def augment():
        while not stop.is_set():
            augment_images(torch.from_numpy(PIXELS), range(10), name)
            started.set()

    def draws():
        torch.manual_seed(3)
        return [float(torch.rand(1)) for _ in range(5_000)]

    expected, thread = draws(), threading.Thread(target=augment)
    thread.start()
    try:
        started.wait()
        found = draws()
    finally:
        stop.set()
        thread.join()
    assert found == expected
