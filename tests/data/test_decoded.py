"""Data sets that are decoded once, and augmented views of them."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import write_digits

from kdtune.data.decoded import DecodedDataset, view_seed
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.data.splits import Rendering
from kdtune.data.transforms import augment_images
from kdtune.errors import UserError
from kdtune.storage.array_cache import ArrayCache


@pytest.fixture
def data_dir(tmp_path):
    return write_digits(tmp_path / "data", 6)


def views_of(data_dir, tmp_path, size=8, cache=True):
    """Open the data set as another process would."""
    cache = ArrayCache(tmp_path / "cache") if cache else None
    return DecodedDataset(find_images(str(data_dir)), size, cache, workers=2)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pixels_are_the_decoded_images(data_dir, tmp_path, split, cached):
    views = views_of(data_dir, tmp_path, cache=cached)
    assert np.array_equal(views.pixels(split), decode_images(getattr(views.data, split), 8))
    assert views.array_bytes(split) == views.pixels(split).nbytes


def test_nothing_is_decoded_twice(data_dir, tmp_path, monkeypatch):
    pixels = views_of(data_dir, tmp_path).pixels("train")
    monkeypatch.setattr("kdtune.data.decoded.decode_images", None)
    assert np.array_equal(views_of(data_dir, tmp_path).pixels("train"), pixels)


def states(views, split="train"):
    reported = []
    views.pixels(split, reported.append)
    return [progress.state for progress in reported]


def test_the_cache_key_has_all_that_determines_an_array(data_dir, tmp_path, monkeypatch):
    assert states(views_of(data_dir, tmp_path))[-1] == "built"
    assert states(views_of(data_dir, tmp_path)) == ["cached"]
    assert states(views_of(data_dir, tmp_path, size=9))[-1] == "built"
    assert states(views_of(data_dir, tmp_path), "validation")[-1] == "built"
    views = views_of(data_dir, tmp_path)
    data = views.data.with_rendering(Rendering("black"))
    assert states(replace(views, data=data))[-1] == "built"
    monkeypatch.setattr("PIL.__version__", "0")
    assert states(views_of(data_dir, tmp_path))[-1] == "built"


def test_a_changed_file_makes_a_new_view(data_dir, tmp_path):
    views = views_of(data_dir, tmp_path)
    before, path = views.pixels("train")[0].copy(), views.data.train.images[0]
    about = path.stat()
    content = views.data.train.images[-1].read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    after = views_of(data_dir, tmp_path).pixels("train")[0]
    assert not np.array_equal(before, after)


def test_augmented_views_depend_only_on_their_number_and_seed(data_dir, tmp_path):
    views = views_of(data_dir, tmp_path)
    plain = torch.from_numpy(views.pixels("train"))
    first = view_seed(1, 5)
    expected = augment_images(plain, range(first, first + len(plain))).numpy()
    assert np.array_equal(views.augmented_view(1, 5, print), expected)
    assert np.array_equal(views_of(data_dir, tmp_path).augmented_view(1, 5, print), expected)
    for view, seed in ((0, 5), (1, 6)):
        assert not np.array_equal(views.augmented_view(view, seed, print), expected)


def test_an_unreadable_image_leaves_no_view(data_dir, tmp_path):
    views = views_of(data_dir, tmp_path)
    path = views.data.train.images[-1]
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=f"cannot be read: .*{path.name}"):
        views_of(data_dir, tmp_path).pixels("train")
    assert ArrayCache(tmp_path / "cache").list_entries() == []
