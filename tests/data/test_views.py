"""Decoding, normalisation and batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from kdtune.data.batches import Batches
from kdtune.data.images import Split
from kdtune.data.pixels import MEAN, STD, decode, normalise
from kdtune.errors import UserError

LABELS = list(range(10))
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
    with pytest.raises(UserError, match=r"The image .*broken\.png cannot be read"):
        decode(Split([tmp_path / "broken.png"], [0]), 8)


def test_a_truncated_image_is_named(tmp_path):
    Image.fromarray(PIXELS[0].transpose(1, 2, 0)).resize((64, 64)).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.jpg cannot be read"):
        decode(Split([tmp_path / "cut.jpg"], [0]), 8)


def test_normalise_is_torchvisions():
    images = torch.from_numpy(PIXELS)
    assert torch.allclose(normalise(images), F.normalize(images / 255, MEAN, STD), atol=1e-6)
    ready = torch.randn(2, 3, 4, 4)
    assert normalise(ready) is ready


def test_evaluation_batches_come_in_order_and_complete():
    images, labels, targets = zip(*Batches(PIXELS, LABELS, batch_size=4), strict=True)
    assert [len(x) for x in labels] == [4, 4, 2]
    assert torch.cat(labels).tolist() == LABELS
    assert torch.equal(torch.cat(images), torch.from_numpy(PIXELS))
    assert set(targets) == {None}


def test_the_global_seed_fixes_the_order_and_the_augmentation():
    def one_pass(seed):
        torch.manual_seed(seed)
        batches = Batches(PIXELS, LABELS, batch_size=4, shuffle=True, augmented=True)
        return [(images, labels) for images, labels, _ in batches]

    first, again, other = one_pass(1), one_pass(1), one_pass(2)
    for (a, x), (b, y) in zip(first, again, strict=True):
        assert torch.equal(a, b) and torch.equal(x, y)
    assert [y.tolist() for _, y in first] != [y.tolist() for _, y in other]
    assert sorted(torch.cat([y for _, y in first]).tolist()) == LABELS


def test_images_and_labels_stay_together():
    marked = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 3, 8, 8))
    for images, labels, _ in Batches(marked.copy(), LABELS, batch_size=3, shuffle=True):
        assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_a_lone_last_image_is_left_out_of_training():
    sizes = [len(y) for _, y, _ in Batches(PIXELS, LABELS, batch_size=3, shuffle=True)]
    assert sizes == [3, 3, 3]


def test_augmentation_keeps_shape_and_type():
    images, _, _ = next(iter(Batches(PIXELS, LABELS, augmented=True)))
    assert images.shape == (10, 3, 8, 8) and images.dtype == torch.uint8
    assert not torch.equal(images, torch.from_numpy(PIXELS))
