"""Data sets of Hugging Face's `datasets`, offline; a stand-in where the package is missing."""

import sys

import pytest
from packed_images import png, write_parquet

from kdtune.config.data import DataSource
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.errors import UserError


@pytest.fixture
def hf(monkeypatch, tmp_path):
    """The package, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return pytest.importorskip("datasets")


def test_without_the_package_an_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets, which is not installed: .*\[huggingface\]"):
        find_images("hf:cifar10")


def write_repository(root, labels=2):
    names = ["zebra", "ant"]
    write_parquet(root / "data" / "train-00000-of-00001.parquet", 20, names)
    write_parquet(root / "data" / "test-00000-of-00001.parquet", 6, names)
    return root


def test_a_local_repository_is_read_in_place(hf, tmp_path):
    data = find_images(f"hf:{write_repository(tmp_path / 'r')}")
    assert data.classes == ("zebra", "ant") and data.cut_splits == ("validation",)
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 16, "validation": 4, "test": 6}
    assert decode_images(data.test, 8)[:, 0, 0, 0].tolist() == list(range(6))
    assert data.test.labels == [0, 1] * 3
    again = find_images(f"hf:{tmp_path / 'r'}")
    assert again.fingerprint == data.fingerprint and again.train.digest == data.train.digest


def test_what_save_to_disk_wrote_is_read(hf, tmp_path):
    images = [{"bytes": png((i, 0, 0)), "path": None} for i in range(20)]
    columns = {
        "image": images,
        "fine": [i % 5 for i in range(20)],
        "label": [i % 2 for i in range(20)],
    }
    features = hf.Features(
        {"image": hf.Image(), "fine": hf.ClassLabel(5), "label": hf.ClassLabel(names=["x", "y"])}
    )
    hf.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "saved")
    data = find_images(f"hf:{tmp_path / 'saved'}")
    assert data.classes == ("x", "y") and data.cut_splits == ("validation", "test")
    assert find_images(
        DataSource(f"hf:{tmp_path / 'saved'}", label_column="fine")
    ).classes == tuple("01234")


def test_several_class_labels_are_a_question(hf, tmp_path):
    images = [{"bytes": png((i, 0, 0)), "path": None} for i in range(4)]
    features = hf.Features({"img": hf.Image(), **dict.fromkeys("ab", hf.ClassLabel(2))})
    columns = {"img": images, "a": [0, 1] * 2, "b": [0, 1] * 2}
    hf.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="name the column with --label-column: a, b"):
        find_images(f"hf:{tmp_path / 'saved'}")


def test_a_data_set_that_cannot_be_loaded_is_an_error_in_one_sentence(hf):
    with pytest.raises(UserError, match="datasets cannot load nobody/nothing: .* local folder"):
        find_images("hf:nobody/nothing")
