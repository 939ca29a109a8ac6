"""Decoding and normalisation."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F

from kdtune.data.splits import Split
from kdtune.data.transforms import IMAGENET_MEAN, IMAGENET_STD, decode_images, normalise

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)


def test_files_are_decoded_to_channels_first_rgb(tmp_path):
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    image.save(tmp_path / "a.png")
    assert decode_images(Split([tmp_path / "a.png"], [0]), 8)[0, :, 3, 3].tolist() == [10, 20, 30]


def test_normalise_agrees_with_torchvision():
    images = torch.from_numpy(PIXELS)
    assert torch.allclose(
        normalise(images), F.normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD), atol=1e-6
    )
    ready = torch.randn(2, 3, 4, 4)
    assert normalise(ready) is ready
