"""Mixed views: pixels and labels from the same pairs and ratios."""

import numpy as np
import pytest
import torch

from kdtune.data.batches import Batches
from kdtune.data.mixing import IMAGES_PER_CHUNK, Mixing, draw_mixing, mix_in_place

COUNT = 2 * IMAGES_PER_CHUNK + 3


def constant_images(count=COUNT, size=16):
    """Images of which each is the value of its index, modulo 251."""
    values = (np.arange(count) % 251).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, 3, size, size)).copy()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_pairs_and_ratios_follow_from_the_seed(name):
    """A box of side √u, u uniform, has the mean area 0.5 − 0.2 + 1/48 within the image."""
    first, again, other = (draw_mixing(name, COUNT, 16, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.partners, again.partners)
    assert np.array_equal(first.ratios, again.ratios)
    assert not np.array_equal(first.partners, other.partners)
    everyone = np.arange(COUNT)
    assert np.array_equal(first.partners[first.partners], everyone)
    assert (first.partners == everyone).sum() == 1  # of an odd number of images
    assert first.ratios.min() >= 0 and first.ratios.max() <= 1
    assert abs(first.ratios.mean() - {"mixup": 0.5, "cutmix": 0.679}[name]) < 0.04


def test_mixup_is_the_weighted_mean():
    pixels, mixing = constant_images(), draw_mixing("mixup", COUNT, 16, 3)
    plain = pixels.copy().astype(np.float64)
    mix_in_place(pixels, mixing)
    ratios = mixing.ratios.astype(np.float64)[:, None, None, None]
    expected = ratios * plain + (1 - ratios) * plain[mixing.partners]
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-3


def test_cutmix_takes_a_box_and_its_area_is_the_ratio():
    pixels, mixing = constant_images(), draw_mixing("cutmix", COUNT, 16, 3)
    plain = pixels.copy()
    mix_in_place(pixels, mixing)
    for i, (image, partner) in enumerate(zip(plain, plain[mixing.partners], strict=True)):
        top, bottom, left, right = mixing.boxes[i]
        expected = image.copy()
        expected[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        assert np.array_equal(pixels[i], expected)
        if image[0, 0, 0] != partner[0, 0, 0]:
            share = (pixels[i] == image[0, 0, 0]).mean()
            assert share == pytest.approx(mixing.ratios[i], abs=1e-6)


def test_labels_are_shares_by_hand():
    """Images 0 and 1 are mixed 3:1 and 1:1; images 2 and 3 have one class; image 4 is alone."""
    ratios = np.array([0.75, 0.5, 0.25, 1.0, 1.0], dtype=np.float32)
    mixing = Mixing(np.array([1, 0, 3, 2, 4]), ratios, None)
    batches = Batches(
        constant_images(5, 8), [0, 2, 1, 1, 0], batch_size=2, mixing=mixing, num_classes=3
    )
    labels = torch.cat([labels for _, labels, _ in batches])
    expected = [[0.75, 0, 0.25], [0.5, 0, 0.5], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert torch.equal(labels, torch.tensor(expected))
