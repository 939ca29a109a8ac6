"""Data sets that are decoded once, and augmented views of them."""

import os
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from small_runs import write_digits

from kdtune.data import augmented_views
from kdtune.data.decoded import DecodedDataset, View, view_seed
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.data.splits import Rendering
from kdtune.data.transforms import augment_images
from kdtune.errors import RunError, UserError
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
    assert np.array_equal(views.augmented_view(View(1, 5), print), expected)
    assert np.array_equal(views_of(data_dir, tmp_path).augmented_view(View(1, 5), print), expected)
    for view, seed, augment in ((0, 5, "standard"), (1, 6, "standard"), (1, 5, "crop_flip")):
        assert not np.array_equal(views.augmented_view(View(view, seed, augment), print), expected)


@pytest.fixture
def two_idle_cores(monkeypatch):
    """Count every view as large, and two cores as idle."""
    monkeypatch.setattr(augmented_views, "count_processes", lambda *_: 2)
    monkeypatch.setattr(augmented_views, "count_idle_cores", lambda: 2)
    return monkeypatch


def view_states(views, view):
    reported = []
    pixels = views.augmented_view(View(view, 5), reported.append)
    return pixels, [progress.state for progress in reported if ", view " in progress.label]


def wait_for_background(views):
    for thread in views._background:
        thread.join(60)
        assert not thread.is_alive()


def test_a_view_that_was_built_ahead_is_the_view(data_dir, tmp_path, two_idle_cores):
    views = views_of(data_dir, tmp_path)
    plain = torch.from_numpy(views.pixels("train"))
    views.build_view_ahead(View(1, 5))
    wait_for_background(views)
    pixels, states = view_states(views, 1)
    assert states == ["cached"]
    first = view_seed(1, 5)
    assert np.array_equal(pixels, augment_images(plain, range(first, first + len(plain))).numpy())


def test_what_fails_ahead_fails_where_the_view_is_needed(data_dir, tmp_path, two_idle_cores):
    calls = []

    def fail(*_, processes=0, niceness=0):
        calls.append((processes, niceness))
        raise RunError("no room")

    two_idle_cores.setattr("kdtune.data.decoded.fill_in_processes", fail)
    two_idle_cores.setattr(augmented_views, "fill_in_processes", fail)
    views = views_of(data_dir, tmp_path)
    views.build_view_ahead(View(1, 5))
    wait_for_background(views)
    assert calls == [(2, augmented_views.BACKGROUND_NICENESS)]
    assert view_states(views, 1)[1] == ["building", "built"]  # in this process, at last
    two_idle_cores.setattr("kdtune.data.augmented_views.augment_images", fail)
    with pytest.raises(RunError, match="no room"):
        views.augmented_view(View(2, 5), print)


def test_nothing_is_built_ahead_in_vain(data_dir, tmp_path, two_idle_cores):
    views = views_of(data_dir, tmp_path)
    views.augmented_view(View(1, 5), print)
    filled = []
    two_idle_cores.setattr(
        "kdtune.data.decoded.fill_in_processes", lambda *_, **__: filled.append(1)
    )
    views.build_view_ahead(View(1, 5))  # it is there
    assert not views._background
    two_idle_cores.setattr(augmented_views, "count_processes", lambda *_: 0)
    views.build_view_ahead(View(2, 5))  # it is small
    assert not views._background
    two_idle_cores.setattr(augmented_views, "count_processes", lambda *_: 2)
    two_idle_cores.setattr(augmented_views, "count_idle_cores", lambda: 0)
    views.build_view_ahead(View(2, 5))
    wait_for_background(views)
    assert not filled


def test_one_view_at_a_time_is_built_ahead(data_dir, tmp_path, two_idle_cores):
    started, go_on = Event(), Event()
    filled = []

    def fill(images, out, base_seed, augment, processes, niceness):
        filled.append(base_seed)
        started.set()
        assert go_on.wait(60)

    two_idle_cores.setattr("kdtune.data.decoded.fill_in_processes", fill)
    views = views_of(data_dir, tmp_path)
    views.pixels("train")
    views.build_view_ahead(View(1, 5))
    assert started.wait(60)
    views.build_view_ahead(View(2, 5))
    reported = []

    def report(progress):
        reported.append(progress.state)
        if progress.state == "waiting":
            go_on.set()

    views.augmented_view(View(1, 5), report)  # waits for what is being built
    assert reported[-2:] == ["waiting", "cached"] and filled == [view_seed(1, 5)]


def test_an_unreadable_image_leaves_no_view(data_dir, tmp_path):
    views = views_of(data_dir, tmp_path)
    path = views.data.train.images[-1]
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=f"cannot be read: .*{path.name}"):
        views_of(data_dir, tmp_path).pixels("train")
    assert ArrayCache(tmp_path / "cache").list_entries() == []
