"""Decoding and normalisation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from kdtune.data.images import Split
from kdtune.data.pixels import MEAN, STD, decode, normalise
from kdtune.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)


def test_files_are_decoded_to_channels_first_rgb(tmp_path):
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    image.save(tmp_path / "a.png")
    assert decode(Split([tmp_path / "a.png"], [0]), 8)[0, :, 3, 3].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (9, 5)).save(tmp_path / "a.tiff")
    assert decode(Split([tmp_path / "a.tiff"], [0]), 8).shape == (1, 3, 8, 8)


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    said = r"An image cannot be read: .*broken\.png \(cannot identify image file\)"
    with pytest.raises(UserError, match=said):
        decode(Split([tmp_path / "broken.png"], [0]), 8)


def test_a_truncated_image_is_named(tmp_path):
    Image.fromarray(PIXELS[0].transpose(1, 2, 0)).resize((64, 64)).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.jpg \(image file is truncated"):
        decode(Split([tmp_path / "cut.jpg"], [0]), 8)


def test_normalise_is_torchvisions():
    images = torch.from_numpy(PIXELS)
    assert torch.allclose(normalise(images), F.normalize(images / 255, MEAN, STD), atol=1e-6)
    ready = torch.randn(2, 3, 4, 4)
    assert normalise(ready) is ready
