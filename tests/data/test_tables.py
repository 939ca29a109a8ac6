"""Tables with a row per image: CSV and Parquet that name files or contain images."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_images import write_parquet
from PIL import Image

from kdtune.config.data import DataSource
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images, load_test_groups
from kdtune.errors import UserError


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("L", (4, 4), i).save(folder / name)


def write_csv(path, header, rows, encoding="utf-8", separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(row) + "\n" for row in (header, *rows)]
    path.write_text("".join(lines), encoding=encoding)
    return path


def labels_by_file(data):
    return {
        str(image.relative_to(data.root)): data.classes[label]
        for split in data.splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    }


NAMES = [f"{i:03d}" for i in range(12)]
LABELS = [("cat", "dog", "ant")[i % 3] for i in range(12)]


@pytest.fixture
def kaggle(tmp_path):
    """A folder of Kaggle: ids without a suffix, a table of labels, test images without labels."""
    root = tmp_path / "kaggle"
    write_images(root / "train_images", [f"{name}.jpg" for name in NAMES])
    write_images(root / "test_images", [f"{name}.jpg" for name in NAMES[:5]])
    write_csv(root / "train.csv", ["id", "breed"], zip(NAMES, LABELS, strict=True))
    write_csv(root / "test.csv", ["id"], [[name] for name in NAMES[:5]])
    write_csv(root / "sample_submission.csv", ["id", "breed"], [[NAMES[0], "cat"]])
    return root


def test_a_folder_of_kaggle_is_read_as_it_is(kaggle):
    data = find_images(str(kaggle))
    expected = zip(NAMES, LABELS, strict=True)
    assert labels_by_file(data) == {f"train_images/{name}.jpg": label for name, label in expected}
    assert data.classes == ("ant", "cat", "dog") and data.cut_splits == ("validation", "test")
    assert data.left_out == {
        "the table test.csv, without labels": 1, "images that no row names": 5
    }  # fmt: skip


def test_a_column_that_is_named_is_not_missed_in_a_test_table_without_labels(kaggle):
    assert len(find_images(DataSource(str(kaggle), label_column="breed")).train) == 6
    with pytest.raises(UserError, match="train.csv has no column 'race'"):
        find_images(DataSource(str(kaggle), label_column="race"))


def test_groups_of_test_images_are_named_as_in_folders(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, [f"{name}.png" for name in NAMES])
        write_csv(tmp_path / f"{split}.csv", ["id", "label"], zip(NAMES, LABELS, strict=True))
    rows = [(f"test/{name}.png", name[-1]) for name in NAMES]
    write_csv(tmp_path / "groups.csv", ["file", "group"], rows)
    assert load_test_groups(find_images(str(tmp_path))) == [name[-1] for name in NAMES]


def test_a_table_can_be_named_itself(kaggle):
    data = find_images(str(kaggle / "train.csv"))
    assert labels_by_file(data) == labels_by_file(find_images(str(kaggle)))
    assert data.fingerprint == find_images(str(kaggle)).fingerprint


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (["label", "image"], "images/{}.png"),
        (["Class", "File Name"], "{}.png"),
        (["target", "image_path"], "elsewhere/images/{}"),
        (["diagnosis", "ID"], "{}"),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path, header, name):
    write_images(tmp_path / "images", [f"{number}.png" for number in NAMES])
    rows = zip(LABELS, map(name.format, NAMES), strict=True)
    write_csv(tmp_path / "labels.csv", header, rows)
    expected = zip(NAMES, LABELS, strict=True)
    found = labels_by_file(find_images(str(tmp_path)))
    assert found == {f"images/{name}.png": label for name, label in expected}


@pytest.mark.parametrize(("encoding", "separator"), [("utf-8-sig", ";"), ("utf-8", "\t")])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, encoding, separator):
    write_images(tmp_path, [f"{name}.png" for name in NAMES])
    rows = [(f"{name}.png", f" {label} ") for name, label in zip(NAMES, LABELS, strict=True)]
    table = write_csv(tmp_path / "l.csv", ["file", "label"], rows, encoding, separator)
    table.write_text(table.read_text(encoding) + "\n\n", encoding)
    assert len(labels_by_file(find_images(str(table)))) == 12


def test_a_column_of_splits_is_followed(tmp_path):
    write_images(tmp_path / "i", [f"{name}.png" for name in NAMES])
    splits = ["train"] * 6 + ["Valid", "val", "dev"] + ["test", "testing", "extra"]
    rows = zip(NAMES, LABELS, splits, strict=True)
    data = find_images(str(write_csv(tmp_path / "t.csv", ["id", "label", "split"], rows)))
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 6, "validation": 3, "test": 2}
    assert data.left_out == {"rows of the split 'extra'": 1, "images that no row names": 1}
    assert not data.cut_splits


def test_a_table_for_each_split_is_followed(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split, [f"{name}.png" for name in NAMES])  # the same names
        write_csv(tmp_path / f"{split}.csv", ["id", "label"], zip(NAMES, LABELS, strict=True))
    data = find_images(str(tmp_path))
    assert all(image.parent.name == "test" for image in data.test.images)
    assert all(image.parent.name == "train" for image in data.train.images)
    assert len(data.test) == 12 and data.cut_splits == ("validation",)


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    write_images(tmp_path / "i", [f"{name}.png" for name in NAMES])
    rows = [*zip(NAMES, LABELS, strict=True), ("gone", "cat"), ("000", "cat")]
    rows[1] = (NAMES[1], "")
    data = find_images(str(write_csv(tmp_path / "t.csv", ["id", "label"], rows)))
    assert data.left_out == {
        "rows whose file is missing": 1, "rows that name an image again": 1,
        "rows without a label": 1, "images that no row names": 1,
    }  # fmt: skip


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path):
    write_images(tmp_path / "i", [f"{name}.png" for name in NAMES])
    rows = [(name, ("10", "9")[i % 2]) for i, name in enumerate(NAMES)]
    table = write_csv(tmp_path / "t.csv", ["id", "label"], rows)
    assert find_images(str(table)).classes == ("9", "10")


@pytest.mark.parametrize("given", [{}, {"label_column": "breed"}, {"label_column": "group"}])
def test_several_labels_are_a_question_that_a_flag_answers(tmp_path, given):
    write_images(tmp_path / "i", [f"{name}.png" for name in NAMES])
    rows = [(name, label, label[0], "1") for name, label in zip(NAMES, LABELS, strict=True)]
    table = write_csv(tmp_path / "t.csv", ["id", "breed", "group", "year"], rows)
    if given:
        classes = {"breed": ("ant", "cat", "dog"), "group": ("a", "c", "d")}
        assert (
            find_images(DataSource(str(table), **given)).classes == classes[given["label_column"]]
        )
    else:
        with pytest.raises(UserError, match="--label-column: breed, group, year"):
            find_images(str(table))


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        (["id", "label", "category"], [("000", "a", "b")], "has label and category for the label"),
        (["foo", "label"], [("000", "a")], "no column that is known to hold images.*foo, label"),
        (["id"], [("000",)], "there is none besides the image"),
        (["id", "label"], [("x", "a"), ("y", "b")], "no images for training; left out: rows"),
        (["id", "label"], [("000", "a"), ("000", "b")], "000.png has two labels, a and b in"),
        (["id", "label"], [("000", "a"), ("001", "a")], "at least two classes; it has only a"),
        (["id", "label"], [("002", "a")], "'002' may be .*i/002.png and .*j/002.png"),
    ],
)
def test_a_table_that_is_not_clear_is_an_error_in_one_sentence(tmp_path, header, rows, sentence):
    write_images(tmp_path / "i", [f"{name}.png" for name in NAMES])
    write_images(tmp_path / "j", ["002.png"])
    with pytest.raises(UserError, match=sentence):
        find_images(str(write_csv(tmp_path / "t.csv", header, rows)))


def test_an_unknown_column_is_suggested(tmp_path):
    table = write_csv(tmp_path / "t.csv", ["id", "breed"], [("000", "a")])
    with pytest.raises(UserError, match="no column 'bred'; did you mean 'breed'"):
        find_images(DataSource(str(table), label_column="bred"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_damaged_table_is_an_error_in_one_sentence(tmp_path, content, suffix):
    (tmp_path / f"t.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=f"t.{suffix} cannot be read: "):
        find_images(str(tmp_path / f"t.{suffix}"))


@pytest.mark.parametrize("suffix", ["csv", "CSV", "tsv"])
def test_several_tables_are_a_question(tmp_path, suffix):
    names = f"one.{suffix}", f"two.{suffix}"
    for name in names:
        write_csv(tmp_path / name, ["id", "label"], [("000", "a")])
    with pytest.raises(UserError, match=f"has {', '.join(names)}: name those for training, or"):
        find_images(str(tmp_path))


def test_tables_of_the_same_images_do_not_count_them_twice(tmp_path):
    write_images(tmp_path / "i", [f"{name}.png" for name in NAMES])
    rows = list(zip(NAMES, LABELS, strict=True))
    write_csv(tmp_path / "train.csv", ["id", "label"], rows)
    old = write_csv(tmp_path / "train_old.csv", ["id", "label"], rows[:5])
    data = find_images(str(tmp_path))
    assert labels_by_file(data) == {f"i/{name}.png": label for name, label in rows}
    assert sum(map(len, data.splits.values())) == 12
    assert data.left_out == {"rows that name an image again": 5}
    write_csv(old, ["id", "label"], [("000", "dog")])
    with pytest.raises(UserError, match="000.png has two labels, cat and dog in .*train_old.csv"):
        find_images(str(tmp_path))


def class_folders(root):
    for name in ("part1", "part2"):
        write_images(root / name, [f"{name}-{i}.png" for i in range(6)])
    return [f"part{1 + i // 6}-{i % 6}" for i in range(12)]


def test_a_table_with_other_labels_beside_folders_is_a_question(tmp_path):
    rows = list(zip(class_folders(tmp_path), LABELS, strict=True))
    table = write_csv(tmp_path / "meta.csv", ["image_id", "label"], rows)
    with pytest.raises(UserError, match=f"has other labels .*: give --data {table}"):
        find_images(str(tmp_path))
    assert find_images(str(table)).classes == ("ant", "cat", "dog")


@pytest.mark.parametrize("name", ["groups.csv", "meta.csv"])
def test_a_table_without_other_labels_beside_class_folders_is_passed_over(tmp_path, name):
    names = class_folders(tmp_path)
    rows = [(f"{name}.png", name[:5]) for name in names]
    header = ["file", "group"] if name == "groups.csv" else ["file", "label"]
    write_csv(tmp_path / name, header, rows)
    write_csv(tmp_path / "notes.csv", ["name", "class"], [("Jo", "owner")])
    (tmp_path / "damaged.csv").write_bytes(b"\xff\xfe\x00")
    assert find_images(str(tmp_path)).classes == ("part1", "part2")


@pytest.mark.parametrize("packed", ["struct", "binary"])
def test_images_in_parquet_are_read_in_place(tmp_path, packed):
    path = write_parquet(tmp_path / "t.parquet", 20, packed=packed)
    data = find_images(str(path))
    assert data.classes == ("0", "1") and sum(map(len, data.splits.values())) == 20
    for split in data.splits.values():
        reds = decode_images(split, 8, workers=2)[:, 0, 0, 0]
        assert [str(image) for image in split.images] == [f"{path}/row {red}" for red in reds]
        assert np.array_equal(reds % 2, split.labels)


def test_parquet_files_of_the_hub_have_splits_and_class_names(tmp_path):
    names = ["zebra", "ant", "never"]
    for i in range(2):
        file = tmp_path / "repository" / "data" / f"train-0000{i}-of-00002.parquet"
        write_parquet(file, 10, names)
    test = tmp_path / "repository" / "data" / "test-00000-of-00001.parquet"
    write_parquet(test, 5, names, label=lambda i: i % 2 - (i == 4))  # one label of -1
    (tmp_path / "repository" / "README.md").touch()
    data = find_images(str(tmp_path / "repository"))
    assert data.classes == ("zebra", "ant") and len(data.test) == 4
    assert len(data.train) + len(data.validation) == 20 and data.cut_splits == ("validation",)
    assert data.left_out == {"rows without a label": 1}


def test_a_parquet_table_of_file_names_is_read(tmp_path):
    write_images(tmp_path, [f"{name}.png" for name in NAMES])
    columns = {"filename": [f"{name}.png" for name in NAMES], "label": [i % 2 for i in range(12)]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = labels_by_file(find_images(str(tmp_path / "t.parquet")))
    assert found == {f"{name}.png": str(i % 2) for i, name in enumerate(NAMES)}


def test_the_fingerprint_and_the_digest_follow_the_rows(tmp_path):
    data = find_images(str(write_parquet(tmp_path / "t.parquet", 20)))
    (tmp_path / "moved").mkdir()
    moved = find_images(str(write_parquet(tmp_path / "moved" / "t.parquet", 20)))
    assert moved.fingerprint == data.fingerprint and moved.train.digest != data.train.digest
    other = write_parquet(tmp_path / "moved" / "t.parquet", 20, label=lambda i: (i + 1) % 2)
    assert find_images(str(other)).fingerprint != data.fingerprint
