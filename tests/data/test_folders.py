"""Finding and splitting images."""

import shutil

import numpy as np
import pytest
from small_runs import write_digits

from kdtune.data.folders import find_images
from kdtune.errors import UserError


def files(split):
    return {str(path) for path in split.images}


def test_one_folder_of_classes_is_split_70_15_15_and_stratified(folder):
    data = find_images(str(folder))
    assert data.classes == tuple(f"digit-{i}" for i in range(10))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [140, 30, 30]
    assert np.bincount(data.train.labels).tolist() == [14] * 10
    assert np.bincount(data.test.labels).tolist() == [3] * 10
    train, validation, test = files(data.train), files(data.validation), files(data.test)
    assert not train & validation and not train & test and not validation & test


def test_splits_are_always_the_same(folder):
    assert find_images(str(folder)) == find_images(str(folder))


def test_existing_splits_are_kept(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        write_digits(tmp_path / split, 4 + i, first=10 * i)
    data = find_images(str(tmp_path))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [40, 50, 60]
    assert all("/val/" in path for path in files(data.validation))


def test_a_missing_validation_split_is_cut_from_train(tmp_path):
    write_digits(tmp_path / "train", 20)
    write_digits(tmp_path / "test", 3, first=30)
    data = find_images(str(tmp_path))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [170, 30, 30]


def test_a_missing_test_split_stays_missing(tmp_path):
    write_digits(tmp_path / "train", 4)
    write_digits(tmp_path / "val", 3, first=10)
    assert find_images(str(tmp_path)).test is None


def test_classes_of_few_images_stay_in_train(tmp_path):
    write_digits(tmp_path, 12)
    for path in sorted((tmp_path / "digit-3").iterdir())[1:]:
        path.unlink()
    assert np.bincount(find_images(str(tmp_path)).train.labels)[3] == 1


def test_hidden_folders_and_other_files_are_skipped(tmp_path):
    write_digits(tmp_path, 10)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "digit-1" / "notes.txt").write_text("not an image")
    assert len(find_images(str(tmp_path)).classes) == 10


def test_digits_are_built_in():
    data = find_images("digits")
    assert len(data.classes) == 10
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1259, 269, 269]
    assert data.train.images[0].dtype == np.uint8
    assert max(image.max() for image in data.train.images) == 255


def test_the_fingerprint_follows_the_files(tmp_path):
    write_digits(tmp_path, 10)
    before = find_images(str(tmp_path)).fingerprint
    moved = tmp_path.with_name("moved")
    shutil.copytree(tmp_path, moved)
    assert find_images(str(moved)).fingerprint == before
    next((tmp_path / "digit-0").iterdir()).unlink()
    assert find_images(str(tmp_path)).fingerprint != before


def empty_class(root):
    (root / "train" / "zebra").mkdir()


def unknown_in_test(root):
    write_digits(root / "test", 1)
    shutil.copytree(root / "test" / "digit-0", root / "test" / "zebra")


def one_class(root):
    for i in range(1, 10):
        shutil.rmtree(root / "train" / f"digit-{i}")


def valid(root):
    write_digits(root / "valid", 1)


def capitals(root):
    (root / "train").rename(root / "Train")
    write_digits(root / "Test", 1)


def no_train(root):
    (root / "train").rename(root / "val")


def too_few(root):
    for path in sorted(root.glob("train/*/*"))[2:]:
        path.unlink()
    for i in range(1, 10):
        (root / "train" / f"digit-{i}" / "x.png").touch()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "There is no folder .*; give an ImageFolder, or one of the data sets"),
        (empty_class, "The class folder .*zebra holds no images"),
        (unknown_in_test, "test has the class 'zebra', which the training images lack"),
        (one_class, "must hold at least two folders, one a class; it holds 1"),
        (valid, "valid looks like a split"),
        (capitals, "Test looks like a split: splits are folders named train, val and test"),
        (no_train, "val looks like a split"),
        (too_few, "too few to cut 15% of each class"),
    ],
)
def test_a_bad_folder_is_an_error_in_one_sentence(tmp_path, spoil, sentence):
    root = tmp_path / "data"
    write_digits(root / "train", 4)
    spoil(root)
    with pytest.raises(UserError, match=sentence):
        find_images(str(root))
