"""Batches: order, augmentation, targets, placement on a GPU, prefetching."""

import threading

import numpy as np
import pytest
import torch

from kdtune.data.batches import Batches, DeviceTensors, describe_left_out, prefetch
from kdtune.data.transforms import augment_images
from kdtune.runtime.device import GpuMemory

LABELS = list(range(10))
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
CPU = torch.device("cpu")


def test_evaluation_batches_come_in_order_and_complete():
    images, labels, targets = zip(*Batches(PIXELS, LABELS, batch_size=4), strict=True)
    assert [len(x) for x in labels] == [4, 4, 2]
    assert torch.cat(labels).tolist() == LABELS
    assert torch.equal(torch.cat(images), torch.from_numpy(PIXELS))
    assert set(targets) == {None}


def test_the_global_seed_fixes_the_order_and_the_augmentation():
    def one_pass(seed):
        torch.manual_seed(seed)
        batches = Batches(PIXELS, LABELS, batch_size=4, shuffle=True, augment="standard")
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


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(3, [3, 3, 3]), (4, [4, 4, 2]), (8, [8, 2]), (9, [9]), (10, [10]), (64, [10])],
)
def test_a_last_batch_of_less_than_a_quarter_is_left_out_in_training(batch_size, sizes):
    batches = Batches(PIXELS, LABELS, batch_size=batch_size, shuffle=True)
    assert [len(y) for _, y, _ in batches] == sizes and len(batches) == len(sizes)
    assert bool(describe_left_out(10, [batch_size])) == (sum(sizes) < 10)
    every = Batches(PIXELS, LABELS, batch_size=batch_size)
    assert sum(len(y) for _, y, _ in every) == 10


def test_a_line_says_what_an_epoch_leaves_out():
    assert describe_left_out(1_202, [32, 400, 601, 1_200]) == [
        "each epoch leaves out 2, 2 of 1,202 training images: the last batch would have fewer "
        "than a quarter of batch_size 400, 1200"
    ]


def test_balanced_batches_have_all_classes_alike():
    """With 90, 9 and 1 images of three classes, each gets a third of 3,000 draws."""
    labels = [0] * 90 + [1] * 9 + [2]
    pixels = np.zeros((100, 3, 1, 1), dtype=np.uint8)
    torch.manual_seed(0)
    batches = Batches(pixels, labels, batch_size=50, shuffle=True, balanced=True)
    drawn = torch.cat([y for _ in range(30) for _, y, _ in batches])
    assert len(drawn) == 3_000
    assert all(900 < count < 1_100 for count in torch.bincount(drawn).tolist())


def test_augmentation_keeps_shape_and_type():
    images, _, _ = next(iter(Batches(PIXELS, LABELS, augment="standard")))
    assert images.shape == (10, 3, 8, 8) and images.dtype == torch.uint8
    assert not torch.equal(images, torch.from_numpy(PIXELS))


def test_targets_are_those_of_the_images():
    marked = np.arange(10, dtype=np.float16)[:, None].repeat(4, 1)
    batches = Batches(PIXELS, LABELS, batch_size=4, shuffle=True, targets={"x": marked})
    for _, labels, targets in batches:
        assert targets["x"].shape == (len(labels), 4) and torch.equal(targets["x"][:, 0], labels)


def test_a_seed_of_the_augmentation_makes_every_pass_the_same_view():
    view = augment_images(torch.from_numpy(PIXELS), range(70, 80))
    batches = Batches(PIXELS, LABELS, 4, shuffle=True, augment="standard", augment_seed=70)
    for _ in range(2):
        for images, labels, _ in batches:
            assert torch.equal(images, view[labels])


def test_on_a_cpu_tensors_share_the_arrays_memory():
    array = np.zeros(3)
    assert DeviceTensors().place({"x": array}, CPU)["x"].data_ptr() == array.ctypes.data


def test_prefetched_batches_are_the_same_and_at_most_one_ahead():
    made, threads = [], set()

    def batches():
        for i in range(5):
            made.append(i)
            threads.add(threading.current_thread())
            yield i

    for i in prefetch(batches()):
        assert i == len(made) - 1 or made[-1] <= i + 1
    assert made == list(range(5)) and threading.main_thread() not in threads


def test_an_error_while_prefetching_reaches_the_loop():
    def batches():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(prefetch(batches()))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 8000 bytes, half of which this process may use: 1000 bytes for arrays."""
    memory = GpuMemory(8000, 0)
    monkeypatch.setattr("kdtune.data.batches.gpu_memory", lambda device: memory)
    monkeypatch.setattr("kdtune.data.batches.gpu_memory_share", lambda device: 0.5)
    return torch.device("meta")


def test_arrays_are_copied_to_a_gpu_once_if_they_fit(gpu):
    array, tensors = np.zeros(1000, np.uint8), DeviceTensors()
    placed = tensors.place({"x": array}, gpu)["x"]
    assert placed.device == gpu and tensors.place({"x": array}, gpu)["x"] is placed
    assert tensors.place({"x": np.zeros(1001, np.uint8)}, gpu)["x"].device == CPU
    assert tensors.place({"x": array}, gpu)["x"] is placed


@pytest.mark.parametrize(("views", "copies"), [(3, 3), (4, 8), (5, 11)])
def test_of_views_that_do_not_all_fit_most_stay(gpu, monkeypatch, views, copies):
    """Three views of 300 bytes fit; of more, each cycle finds the first two again."""
    copied, tensors = [], DeviceTensors()
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, d: copied.append(1) or move(t, d))
    arrays = [np.zeros(300, np.uint8) for _ in range(views)]
    for _ in range(3):
        for array in arrays:
            tensors.place({"pixels": array}, gpu)
    assert len(copied) == copies


@pytest.mark.parametrize("augment", ["standard", "none"])
def test_images_are_augmented_on_the_cpu_and_then_moved(monkeypatch, augment):
    """The device ``meta`` stands for a GPU; it has no pixels that could be augmented."""
    monkeypatch.setattr(
        "kdtune.data.batches.gpu_memory",
        lambda device: GpuMemory(10**9, 0) if device.type == "meta" else None,
    )
    monkeypatch.setattr("kdtune.data.batches.gpu_memory_share", lambda device: 1.0)
    augmented = []

    def record(images, seeds, name):
        augmented.append((images, augment_images(images, seeds, name)))
        return augmented[-1][1]

    monkeypatch.setattr("kdtune.data.batches.augment_images", record)
    targets = {"x": np.zeros((10, 4), np.float16)}
    batches = Batches(
        PIXELS, LABELS, 4, augment=augment, targets=targets, device=torch.device("meta")
    )
    for images, labels, found in batches:
        assert {x.device.type for x in (images, labels, found["x"])} == {"meta"}
        assert found["x"].shape == (len(labels), 4) and images.shape[1:] == PIXELS.shape[1:]
    if augment != "none":
        assert torch.equal(
            torch.cat([images for images, _ in augmented]), torch.from_numpy(PIXELS)
        )
    assert len(augmented) == (0 if augment == "none" else 3)
