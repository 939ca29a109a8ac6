"""Tar shards, as WebDataset writes them."""

import gzip
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from harmful import Harmful
from packed_images import png, write_tar

from kdtune.config.data import DataSource
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.errors import UserError

IMAGE = png((1, 0, 0))


def samples(numbers, label=lambda i: ("cls", str(i % 2).encode())):
    for i in numbers:
        suffix, content = label(i)
        yield f"some.folder/{i:04d}.png", png((i, 0, 0))
        yield f"some.folder/{i:04d}.{suffix}", content


@pytest.fixture
def shards(tmp_path):
    for shard in range(8, 12):
        write_tar(tmp_path / f"train-{shard:03d}.tar", samples(range(10 * shard, 10 * shard + 10)))
    write_tar(tmp_path / "val-000.tar", samples(range(6)))
    return tmp_path


def reds(split):
    return decode_images(split, 8, workers=2)[:, 0, 0, 0].tolist()


def test_a_folder_of_shards_has_the_splits_of_their_names(shards):
    data = find_images(str(shards))
    assert data.classes == ("0", "1") and data.test is None and not data.cut_splits
    assert reds(data.train) == list(range(80, 120)) and reds(data.validation) == list(range(6))
    assert data.train.labels == [i % 2 for i in range(80, 120)]
    assert str(data.train.images[0]) == f"{shards}/train-008.tar/some.folder/0080.png"


@pytest.mark.parametrize(
    "pattern", ["train-{008..011}.tar", "train-*.tar", "train-0{08,09,1*}.tar"]
)
def test_a_pattern_names_shards(shards, pattern):
    data = find_images(f"{shards}/{pattern}")
    assert sorted(sum(map(reds, data.splits.values()), [])) == list(range(80, 120))
    assert data.cut_splits == ("validation", "test")


def test_a_single_shard_is_enough(shards):
    assert sum(map(len, find_images(str(shards / "train-008.tar")).splits.values())) == 10


def test_folders_can_name_the_splits(tmp_path):
    for split in ("train", "test"):
        write_tar(tmp_path / split / "0.tar", samples(range(8)))
    assert len(find_images(str(tmp_path)).test) == 8


@pytest.mark.parametrize(
    "label",
    [
        lambda i: ("json", json.dumps({"caption": "x", "label": i % 2}).encode()),
        lambda i: ("json", str(i % 2).encode()),
        lambda i: ("cls", f"{i % 2}\n".encode()),
    ],
)
def test_labels_are_text_or_json(tmp_path, label):
    data = find_images(str(write_tar(tmp_path / "a.tar", samples(range(20), label))))
    assert data.classes == ("0", "1")
    assert reds(data.train) == [int(Path(image.name).stem) for image in data.train.images]
    assert data.train.labels == [red % 2 for red in reds(data.train)]


def test_a_key_of_json_can_be_named(tmp_path):
    def label(i):
        return "json", json.dumps({"label": i, "kind": "ab"[i % 2]}).encode()

    path = write_tar(tmp_path / "a.tar", samples(range(20), label))
    assert find_images(DataSource(str(path), label_column="kind")).classes == ("a", "b")


def test_pickles_are_never_opened(tmp_path):
    content = pickle.dumps(Harmful(tmp_path / "ran"))
    members = [*samples(range(20)), ("some.folder/0003.pyd", content)]
    data = find_images(str(write_tar(tmp_path / "a.tar", members)))
    assert data.left_out == {"files ending in .pyd": 1}
    alone = [("1.png", IMAGE), ("1.pyd", content), *samples(range(20))]
    data = find_images(str(write_tar(tmp_path / "b.tar", alone)))
    assert data.left_out == {"files ending in .pyd": 1, "samples without a label": 1}
    assert not (tmp_path / "ran").exists()


def test_hidden_members_and_links_are_left_out(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*samples(range(20)), ("._0001.png", b"mac")])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("outside.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data = find_images(str(path))
    assert sum(map(len, data.splits.values())) == 20 and data.left_out == {"hidden images": 1}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("1.png", IMAGE), ("1.jpg", IMAGE), ("1.cls", b"0")], "two images with one label"),
        ([("1.png", IMAGE), ("1.cls", b"\xff")], "1.cls is neither text nor JSON"),
        ([("1.png", IMAGE), ("1.json", b"{")], "1.json is neither text nor JSON"),
        ([("1.png", IMAGE), ("1.json", b"{}")], "1.json has no column with a usual name"),
        (list(samples(range(1))), "at least two classes; it has only 0"),
        ([], "at least two classes; it has none"),
    ],
)
def test_a_shard_that_is_not_clear_is_an_error_in_one_sentence(tmp_path, members, sentence):
    with pytest.raises(UserError, match=sentence):
        find_images(str(write_tar(tmp_path / "a.tar", members)))


def test_a_compressed_or_truncated_archive_is_an_error_in_one_sentence(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(range(20)))
    content = path.read_bytes()
    for damaged in (gzip.compress(content), content[:700], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a.tar is not an uncompressed tar archive"):
            find_images(str(path))


def test_a_missing_shard_is_named(shards):
    with pytest.raises(UserError, match="There is no file .*train-012.tar, which .*12}.tar names"):
        find_images(f"{shards}/train-{{008..012}}.tar")
    with pytest.raises(UserError, match="There is no folder .*x-{0..2}.tar; give an ImageFolder"):
        find_images(f"{shards}/x-{{0..2}}.tar")


def test_shards_whose_split_is_unknown_beside_others_are_a_question(shards):
    write_tar(shards / "more.tar", samples(range(2)))
    with pytest.raises(UserError, match="more.tar.*or let all names begin with train"):
        find_images(str(shards))


def test_the_fingerprint_follows_labels_and_not_the_place(tmp_path):
    first, second = tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"
    data = [find_images(str(write_tar(path, samples(range(20))))) for path in (first, second)]
    assert data[0].fingerprint == data[1].fingerprint
    assert data[0].train.digest != data[1].train.digest
    other = write_tar(second, samples(range(20), lambda i: ("cls", str((i + 1) % 2).encode())))
    assert find_images(str(other)).fingerprint != data[0].fingerprint
    assert np.bincount(data[0].train.labels).tolist() == [7, 7]
