"""Inputs of a run: with cached targets or a live teacher, it learns the same."""

import os

import numpy as np
import pytest
import torch
from small_runs import IMAGE_SIZE, small_config, write_digits

from kdtune.data.decoded import DecodedDataset, View, view_seed
from kdtune.data.folders import find_images
from kdtune.data.mixing import mix_in_place
from kdtune.data.transforms import augment_images, normalise
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.training.epoch_data import (
    find_data,
    open_decoded_dataset,
    open_single_run,
    require_room,
)
from kdtune.training.loop import fit
from kdtune.training.run import run_training
from kdtune.training.teacher import load_teacher

KINDS = {
    "student": set(),
    **dict.fromkeys(("kd", "dkd", "dist"), {"logits"}),
    **dict.fromkeys(("at", "at_paper"), {"logits", "attention"}),
    **dict.fromkeys(("fitnets", "vid", "sp"), {"logits", "hint"}),
    **dict.fromkeys(("rkd", "pkt"), {"logits", "embedding"}),
}
"""Of targets; methods that want the same one share it."""

TOLERANCE = 1e-3
"""Relative, of every loss of an epoch with kept targets against one with a live teacher.

At a small learning rate: training amplifies any rounding, also that of another batch or thread.
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path / "cache"))


def open_run(folder, teacher_file, **settings):
    said = []
    config = small_config(folder, precision="float32", **settings)
    teacher = load_teacher(teacher_file) if teacher_file else None
    return open_single_run(config, find_images(str(folder)), teacher, said.append), said


def run(folder, teacher_file, **settings):
    """Figures of a run's epochs, and whether batches brought targets."""
    inputs, _ = open_run(folder, teacher_file, **settings)
    epochs = fit(
        inputs.config,
        inputs.train_batches,
        inputs.evaluation_batches("validation"),
        num_classes=10,
        teacher=load_teacher(teacher_file),
    )
    figures = [epoch.metrics() for epoch in epochs]
    return figures, next(iter(inputs.train_batches(1)))[2] is not None


@pytest.mark.parametrize(
    ("method", "views"),  # one a kind of targets
    [("kd", {}), ("at", {"augment": True, "augment_views": 2}), ("fitnets", {}), ("rkd", {})],
)
def test_a_run_with_kept_targets_is_the_run_with_a_live_teacher(
    folder, teacher_file, method, views
):
    settings = {"method": method, "epochs": 1, "lr": 1e-3, "alpha": 0.5, "beta": 1.0, **views}
    kept, has_targets = run(folder, teacher_file, **settings)
    live, is_live = run(folder, teacher_file, cache_targets=False, **settings)
    nowhere, _ = run(folder, teacher_file, cache_gb=0, **settings)
    assert has_targets and not is_live
    for a, b, c in zip(kept, live, nowhere, strict=True):
        for key, value in b.items():
            if key.startswith("loss_") or key in ("train_loss", "validation_loss"):
                assert a[key] == pytest.approx(value, rel=TOLERANCE, abs=1e-6)
        assert {**b, "seconds": 0} == {**c, "seconds": 0}  # the same pixels, from memory


def pixels_of(inputs, epoch):
    torch.manual_seed(0)  # of the order
    return torch.cat([images for images, _, _ in inputs.train_batches(epoch)])


def test_epochs_take_turns_with_the_views(folder, teacher_file):
    settings = {"augment": True, "augment_views": 2, "augment_seed": 3}
    inputs, _ = open_run(folder, teacher_file, **settings)
    epochs = [pixels_of(inputs, epoch) for epoch in (1, 2, 3)]
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    other_trial, _ = open_run(folder, teacher_file, method="kd", seed=9, **settings)
    assert torch.equal(pixels_of(other_trial, 1), epochs[0])
    other_sweep, _ = open_run(folder, teacher_file, **{**settings, "augment_seed": 4})
    assert not torch.equal(pixels_of(other_sweep, 1), epochs[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"augment": True, "augment_views": 2, "augment_seed": 3}, [(1, 3), (0, 3)]),
        ({"augment": True, "augment_views": 2, "cache_gb": 0}, []),
        ({"augment": True}, []),
        ({}, []),
    ],
)
def test_an_epoch_has_the_next_ones_view_built(folder, monkeypatch, settings, expected):
    requested = []
    monkeypatch.setattr(
        DecodedDataset, "build_view_ahead", lambda _, view: requested.append(view[:2])
    )
    inputs, _ = open_run(folder, None, method="student", epochs=3, **settings)
    for epoch in (1, 2, 3):
        inputs.train_batches(epoch)
    assert requested == expected


def test_images_that_are_augmented_anew_every_time_need_a_live_teacher(folder, teacher_file):
    inputs, said = open_run(folder, teacher_file, augment=True)
    assert next(iter(inputs.train_batches(1)))[2] is None and said == []
    torch.manual_seed(0)
    first, second = (torch.cat([x for x, _, _ in inputs.train_batches(1)]) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_run_gets_its_own_targets_only(folder, teacher_file):
    """The cache has those of all methods at last."""
    assert KINDS.keys() == METHODS.keys()
    for method, kinds in KINDS.items():
        inputs, _ = open_run(folder, teacher_file, method=method)
        _, _, targets = next(iter(inputs.train_batches(1)))
        assert {name.split("_")[0] for name in targets or {}} == kinds


TRAIN_BYTES, IMAGE_BYTES = 140 * 3 * IMAGE_SIZE**2, (140 + 30) * 3 * IMAGE_SIZE**2


def test_what_does_not_fit_runs_live_and_says_why(folder, teacher_file):
    inputs, said = open_run(folder, teacher_file, cache_gb=IMAGE_BYTES / 1e9 + 1e-7)
    assert next(iter(inputs.train_batches(1)))[2] is None
    assert len(said) == 1 and said[0].startswith("The teacher runs live: 1 x 0.1 MB for 140 im")
    assert said[0].endswith("into cache_gb 3.274e-05; 0.001 is enough.")


def test_views_that_do_not_fit_are_made_in_every_step(folder):
    settings = {"method": "student", "augment": True, "augment_views": 5}
    cache_gb = (IMAGE_BYTES + 5 * TRAIN_BYTES) / 1e9
    inputs, said = open_run(folder, None, cache_gb=cache_gb, **settings)
    expected = pixels_of(inputs, 1)
    assert inputs.cache_views and said == []
    inputs, said = open_run(folder, None, cache_gb=cache_gb - 1e-9, **settings)
    assert torch.equal(pixels_of(inputs, 1), expected) and not inputs.cache_views
    assert said == [
        "Images are augmented in every step: 5 x 0.0 MB for 140 images do not fit beside 0.0 MB "
        f"of images into cache_gb {cache_gb - 1e-9:g}; 0.001 is enough."
    ]


class _ImageNet:
    """A stand-in for the images of ImageNet, of which none may be read."""

    splits = {"train": range(1_281_167), "validation": range(50_000), "test": range(50_000)}
    train = splits["train"]


def test_images_that_do_not_fit_are_refused_with_their_sizes(monkeypatch):
    # 1,331,167 x 3 x 224 x 224 bytes are 200.4 GB, 1,281,167 are 192.9.
    decoded = open_decoded_dataset(_ImageNet, 224, cache_gb=20)
    with pytest.raises(UserError) as refused:
        require_room(decoded, cycles_views=True, target_bytes=5_124_668_000)
    assert str(refused.value) == (
        "The 1,281,167 train and 50,000 validation images take 200.4 GB at 224 px, plus 192.9 GB "
        "for a view of augmented ones and 5.1 GB for the teacher's targets, but cache_gb is 20: "
        "210.925 holds the images, 419.321 all of these; or use a smaller image_size, or fewer "
        "images."
    )
    with pytest.raises(UserError, match="but cache_gb is 20: 210.925 holds the images; or use a"):
        require_room(decoded)
    require_room(decoded, ["test"])  # 7.5 GB
    require_room(open_decoded_dataset(_ImageNet, 224, cache_gb=200.5))


def test_images_that_exceed_the_memory_are_refused_without_a_cache(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**7}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    decoded = open_decoded_dataset(_ImageNet, 224, cache_gb=0)
    with pytest.raises(
        UserError,
        match="200.4 GB at 224 px in the memory of each process, and "
        r"this machine has 41.0 GB: set cache_gb to 210.925, or use a smaller",
    ):
        require_room(decoded)
    require_room(open_decoded_dataset(_ImageNet, 64, cache_gb=0))  # 16.4 GB


def test_images_that_do_not_fit_are_not_decoded_to_find_unreadable_ones(folder, monkeypatch):
    config = small_config(folder, skip_bad_images=True, cache_gb=1e-9)
    monkeypatch.setattr("kdtune.data.decoded.find_unreadable", None)
    with pytest.raises(UserError, match="140 train and 30 validation images take 0.0 MB at 8 px"):
        find_data(config, check_room=True)


def test_nothing_is_written_without_a_cache(folder, teacher_file, tmp_path):
    inputs, _ = open_run(folder, teacher_file, cache_gb=0)
    list(inputs.train_batches(1))
    inputs.evaluation_batches("test")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_decodes_nothing_and_asks_the_teacher_nothing(
    folder, teacher_file, monkeypatch
):
    settings = {"method": "at", "teacher_model": str(teacher_file), "experiment_name": "x"}
    first = run_training(small_config(folder, **settings))
    monkeypatch.setattr("kdtune.data.decoded.decode_images", None)
    monkeypatch.setattr("kdtune.training.teacher_targets.TeacherTargets._fill_arrays", None)
    second = run_training(small_config(folder, **settings))
    seconds = {"seconds": 0}
    assert [{**row, **seconds} for row in first["training_history"]] == [
        {**row, **seconds} for row in second["training_history"]
    ]
    assert first["test_results"] == second["test_results"]


def test_a_changed_image_is_seen(tmp_path, teacher_file):
    data_dir = write_digits(tmp_path / "data", 6)
    settings = {"method": "at", "alpha": 1.0}
    before, _ = open_run(data_dir, teacher_file, **settings)
    first = {k: v.copy() for k, v in before.load_arrays(1)[1].items()}
    path = find_images(str(data_dir)).train.images[0]
    path.write_bytes(find_images(str(data_dir)).train.images[-1].read_bytes())
    os.utime(path, ns=(1, 1))
    after, _ = open_run(data_dir, teacher_file, **settings)
    changed = after.load_arrays(1)[1]
    assert not np.array_equal(first["logits"][0], changed["logits"][0])
    assert np.allclose(first["logits"][1:], changed["logits"][1:], atol=1e-4)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_mixed_views_are_cached_with_the_teachers_targets(folder, teacher_file, augment):
    settings = {"mix": "cutmix", "augment": augment, "augment_views": 2, "augment_seed": 3}
    inputs, _ = open_run(folder, teacher_file, **settings)
    view = View(1, 3, augment, "cutmix")
    pixels = torch.from_numpy(inputs.decoded.pixels("train")).clone()
    if augment != "none":
        base_seed = view_seed(1, 3)
        pixels = augment_images(pixels, range(base_seed, base_seed + len(pixels)), augment)
    plain, mixing = pixels.numpy().copy(), inputs.decoded.mixing(view)
    mix_in_place(pixels.numpy(), mixing)
    mixed, targets = inputs.load_arrays(2)
    assert np.array_equal(mixed, pixels) and not np.array_equal(mixed, plain)
    teacher = load_teacher(teacher_file)
    with torch.no_grad():
        logits = teacher(normalise(pixels[:5]))[0]
    assert torch.allclose(torch.from_numpy(targets["logits"][:5]).float(), logits, atol=1e-3)
    images, labels, _ = next(iter(inputs.train_batches(2)))
    assert labels.shape == (len(images), 10)
    assert torch.allclose(labels.sum(1), torch.ones(len(images)))


def test_mixing_without_cached_views_is_refused(folder):
    with pytest.raises(UserError, match="mixup needs its 4 views in the cache: raise cache_gb"):
        open_run(folder, None, method="student", mix="mixup", epochs=4, cache_gb=0)
    with pytest.raises(UserError, match="cutmix needs its 9 views in the cache"):
        open_run(folder, None, method="student", mix="cutmix", augment_views=9, cache_gb=1e-4)
