"""Finding and splitting images."""

import shutil

import numpy as np
import pytest
from PIL import Image
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


def test_hidden_and_other_files_are_left_out_and_counted_at_any_depth(tmp_path):
    write_digits(tmp_path, 10)
    before = find_images(str(tmp_path))
    (tmp_path / ".ipynb_checkpoints").mkdir()
    image = before.train.images[0]
    for folder in (".ipynb_checkpoints", "nested/.git", "nested/__MACOSX"):
        hidden = tmp_path / "digit-1" / folder
        hidden.mkdir(parents=True)
        shutil.copy(image, hidden / "0-checkpoint.png")
    shutil.copy(image, tmp_path / "digit-1" / "._0.png")
    shutil.copy(image, tmp_path / "loose.png")
    (tmp_path / "__MACOSX" / "digit-1").mkdir(parents=True)
    (tmp_path / "digit-1" / "notes.txt").write_text("not an image")
    (tmp_path / "digit-2" / "README").write_text("not an image")
    (tmp_path / "digit-2" / "more.TXT").write_text("not an image")
    data = find_images(str(tmp_path))
    assert (data.fingerprint, data.classes) == (before.fingerprint, before.classes)
    assert data.left_out == {
        "hidden folders": 5, "hidden images": 1, "images outside of class folders": 1,
        "files ending in .txt": 2, "files without a suffix": 1,
    }  # fmt: skip
    assert list(data.describe())[2] == (
        "left out: images outside of class folders (1), hidden folders (5), hidden images (1), "
        "files ending in .txt (2), files without a suffix (1)"
    )


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Training", "dev", "TESTING"), ("TRAIN", "Validation", "Test"), ("train", "valid", "test")],
)
def test_splits_have_their_usual_names(tmp_path, train, val, test):
    for i, split in enumerate((train, val, test)):
        write_digits(tmp_path / split, 4 + i, first=10 * i)
    (tmp_path / "extra").mkdir()
    data = find_images(str(tmp_path))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [40, 50, 60]
    assert data.left_out == {"the folder extra, which is not a split": 1} and not data.cut_splits


def test_a_wrapping_folder_is_opened(tmp_path):
    inner = tmp_path / "wrap" / "archive" / "cifar10"
    write_digits(inner / "train", 8)
    write_digits(inner / "test", 3, first=30)
    (tmp_path / "wrap" / "__MACOSX" / "cifar10" / "train").mkdir(parents=True)
    (tmp_path / "wrap" / "README.md").write_text("unpacked")
    data = find_images(str(tmp_path / "wrap"))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [70, 10, 30]
    assert data.root == inner and data.fingerprint == find_images(str(inner)).fingerprint


def test_a_class_holds_the_images_of_its_folders_at_any_depth(tmp_path):
    for path, count in {"cat/black": 3, "cat/white/long/hair": 4, "dog": 5}.items():
        (tmp_path / path).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4), i).save(tmp_path / path / f"{i}.png")
    data = find_images(str(tmp_path))
    assert data.classes == ("cat", "dog")
    labels = [label for split in data.splits.values() for label in split.labels]
    assert np.bincount(labels).tolist() == [7, 5]


def test_splits_inside_of_classes_are_kept(tmp_path):
    for path, count in {"cat/Train": 4, "cat/test": 2, "dog/train": 5, "dog/test": 3}.items():
        (tmp_path / path).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4), i).save(tmp_path / path / f"{i}.png")
    data = find_images(str(tmp_path))
    assert len(data.test) == 5 and data.cut_splits == ("validation",)
    assert {image.parent.name for image in data.test.images} == {"test"}
    Image.new("L", (4, 4)).save(tmp_path / "dog" / "loose.png")  # not all are in a split
    assert find_images(str(tmp_path)).cut_splits == ("validation", "test")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_left_out(tmp_path, split):
    write_digits(tmp_path / "train", 3)
    write_digits(tmp_path / "val", 1)
    (tmp_path / split / "zebra" / "inside").mkdir(parents=True)
    data = find_images(str(tmp_path))
    assert len(data.classes) == 10
    assert data.left_out == {f"the empty class folder {tmp_path}/{split}/zebra": 1}


def test_data_are_described_in_three_lines(tmp_path):
    for name, count in (("a", 38), ("b", 2)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4), i).save(tmp_path / "train" / name / f"{i}.png")
    (tmp_path / "train" / "a" / "x.xcf").touch()
    data = find_images(str(tmp_path))
    assert list(data.describe()) == [
        f"{tmp_path}: 40 images of 2 classes: 34 train, 6 validation; validation cut from train; "
        "there are no test images",
        "the largest class, a, has 94.1 % of the train images; b has the fewest (2)",
        "left out: files ending in .xcf (1)",
    ]


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


def unknown_in_test(root):
    write_digits(root / "test", 1)
    shutil.copytree(root / "test" / "digit-0", root / "test" / "zebra")


def one_class(root):
    for i in range(1, 10):
        shutil.rmtree(root / "train" / f"digit-{i}")


def empty_in_train(root):
    write_digits(root / "test", 1)
    for path in (root / "train" / "digit-3").iterdir():
        path.unlink()


def two_names(root):
    for name in ("val", "Valid"):
        write_digits(root / name, 1)


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
        (
            shutil.rmtree,
            "There is no folder .*; give an ImageFolder, a table .*, tar shards, hf:NAME, or one",
        ),
        (unknown_in_test, "test has the class 'zebra', which the training images lack"),
        (one_class, "must hold at least two folders, one per class; it holds 1"),
        (empty_in_train, "test has the class 'digit-3', which the training images lack"),
        (two_names, "Valid and val both look like the validation split"),
        (no_train, "val looks like a split, but there is no folder train beside it"),
        (too_few, "too few to cut 15% of each class"),
    ],
)
def test_a_bad_folder_is_an_error_in_one_sentence(tmp_path, spoil, sentence):
    root = tmp_path / "data"
    write_digits(root / "train", 4)
    spoil(root)
    with pytest.raises(UserError, match=sentence):
        find_images(str(root))
