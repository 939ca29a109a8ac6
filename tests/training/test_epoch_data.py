"""Inputs of a run: with cached targets or a live teacher, it learns the same."""

import os

import numpy as np
import pytest
import torch
from small_runs import IMAGE_SIZE, small_config, write_digits

from kdtune.data.decoded import DecodedDataset
from kdtune.data.folders import find_images
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.training.epoch_data import open_single_run
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


@pytest.mark.parametrize("views", [{}, {"augment": True, "augment_views": 2}])
@pytest.mark.parametrize("method", ["kd", "at", "fitnets", "rkd"])  # one a kind of targets
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
        DecodedDataset, "build_view_ahead", lambda _, view, seed: requested.append((view, seed))
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


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gets_its_own_targets_only(folder, teacher_file, method):
    inputs, _ = open_run(folder, teacher_file, method=method)
    _, _, targets = next(iter(inputs.train_batches(1)))
    kinds = {name.split("_")[0] for name in targets or {}}
    assert kinds == KINDS[method]


def test_what_does_not_fit_runs_live_and_says_why(folder, teacher_file):
    held = (140 + 30) * 3 * IMAGE_SIZE * IMAGE_SIZE / 1e9
    inputs, said = open_run(folder, teacher_file, cache_gb=held + 1e-7)
    assert next(iter(inputs.train_batches(1)))[2] is None
    assert len(said) == 1 and said[0].startswith("The teacher runs live: 1 x 0.1 MB for 140 im")
    with pytest.raises(UserError, match=r"The images take 0.0 MB at 8 px, but cache_gb is 1e-09"):
        open_run(folder, teacher_file, cache_gb=1e-9)


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
