"""DataLoaders of a folder: the same batches as those of a run, from any number of processes."""

import pytest
import torch
from small_runs import IMAGE_SIZE, write_digits
from torch.utils.data import DataLoader, Subset

from kdtune import prepare_dataloaders
from kdtune.at import train_at
from kdtune.data.batches import Batches
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.data.loaders import CheckedLoader
from kdtune.data.transforms import normalise
from kdtune.errors import UserError


@pytest.mark.parametrize(("workers", "augment"), [(0, False), (2, True), (0, "trivialaugment")])
def test_batches_are_those_of_a_run(folder, workers, augment):
    loaders = prepare_dataloaders(str(folder), 16, workers, augment, IMAGE_SIZE)
    data = find_images(str(folder))
    pixels = decode_images(data.train, IMAGE_SIZE)
    name = {False: "none", True: "standard"}.get(augment, augment)
    ours = Batches(pixels, data.train.labels, 16, shuffle=True, augment=name)
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        expected = list(ours)
        torch.manual_seed(epoch)
        got = list(loaders[0])
        assert len(got) == len(expected) == len(loaders[0]) == len(ours)
        for (images, labels), (pixels, wanted, _) in zip(got, expected, strict=True):
            assert torch.equal(images, normalise(pixels)) and torch.equal(labels, wanted)


def test_a_loader_has_a_batch_size_and_its_dataset_single_images(folder):
    train, validation, _ = prepare_dataloaders(str(folder), 16, 0, True, IMAGE_SIZE)
    assert (train.batch_size, validation.batch_size) == (16, 256)
    image, label = train.dataset[3]
    again = DataLoader(Subset(train.dataset, [3, 5]), batch_size=2)
    [(images, labels)] = again
    assert torch.equal(images[0], image) and labels[0] == label and images.shape[0] == 2


def test_loaders_have_the_classes_and_splits_of_the_folder(folder):
    train, validation, test = prepare_dataloaders(str(folder), 16, 0, image_size=IMAGE_SIZE)
    data = find_images(str(folder))
    assert train.dataset.classes == data.classes
    assert [len(x.dataset) for x in (train, validation, test)] == [140, 30, 30]
    labels = torch.cat([labels for _, labels in test])
    assert labels.tolist() == list(data.test.labels)
    for images, _ in validation:
        assert images.dtype == torch.float32 and images.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE)


def test_the_defaults_are_those_of_the_source_documents():
    train, *_ = prepare_dataloaders("digits", num_workers=0)
    images, labels = next(iter(train))
    assert images.shape == (32, 3, 128, 128) and labels.shape == (32,)


def test_without_test_images_there_is_no_test_loader(tmp_path):
    write_digits(tmp_path / "d" / "train", 4)
    assert prepare_dataloaders(str(tmp_path / "d"), num_workers=0)[2] is None


def test_a_run_on_loaders_is_the_run_on_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "data_dir": str(folder), "image_size": IMAGE_SIZE, "batch_size": 16, "epochs": 2,
        "augment": True,
    }  # fmt: skip
    whole = train_at(config)
    loaders = prepare_dataloaders(str(folder), 16, 2, True, IMAGE_SIZE)
    own = train_at(config, *loaders)
    for key in ("best_accuracy", "test_results"):
        assert own[key] == whole[key]
    assert [row["train_loss"] for row in own["training_history"]] == [
        row["train_loss"] for row in whole["training_history"]
    ]


def test_a_setting_out_of_range_is_an_error_in_one_sentence(folder):
    with pytest.raises(UserError, match="The setting batch_size cannot be 0"):
        prepare_dataloaders(str(folder), batch_size=0)


def test_a_tiny_last_batch_of_a_loader_is_left_out_in_training():
    sizes = (12, 3, 12, 2)
    batches = [(torch.zeros(n, 3, 8, 8), torch.zeros(n, dtype=torch.int64)) for n in sizes]
    trained = CheckedLoader(batches, "train_loader", training=True)
    with pytest.warns(
        UserWarning, match="last batch of train_loader is left out: it has 2 images"
    ):
        assert [len(y) for _, y, _ in trained] == [12, 3, 12]
    assert [len(y) for _, y, _ in CheckedLoader(batches, "test_loader")] == [12, 3, 12, 2]
    assert [len(y) for _, y, _ in CheckedLoader(batches[3:], "train_loader", training=True)] == [2]
