"""The overview of a data set: `kdtune data`."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kdtune.cli.commands import cli
from kdtune.config.data import DataSource
from kdtune.data.folders import find_images
from kdtune.data.overview import inspect_images, write_contact_sheet
from kdtune.errors import UserError
from kdtune.models.checkpoints import load_model
from kdtune.reports.text.data import data_text


@pytest.fixture
def root(tmp_path):
    """Two classes; a damaged image, and one that is in train, in test, and twice in train."""
    for split, count in {"train": 8, "test": 3}.items():
        for number, name in enumerate("ab"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (6, 4) if split == "train" else (10, 20)
                colour = (40 * i, 200 * number, count)
                Image.new("RGB", size, colour).save(folder / f"{i}.png")
    train, test = tmp_path / "data" / "train", tmp_path / "data" / "test"
    shutil.copy(train / "a" / "1.png", test / "a" / "9.png")  # in both splits
    shutil.copy(train / "a" / "2.png", train / "b" / "9.png")  # with another label
    shutil.copy(train / "b" / "3.png", train / "b" / "10.png")  # twice, which does no harm
    Image.new("L", (6, 4)).save(test / "b" / "grey.bmp")
    (test / "b" / "bad.png").write_text("no image")
    (train / "a" / "x.doc").touch()
    return tmp_path / "data"


def test_an_overview_counts_what_there_is(root):
    found = inspect_images(find_images(str(root)), print)
    assert [sum(row[split] for row in found["classes"]) for split in ("train", "validation")] == [
        15, 3
    ]  # fmt: skip
    assert [row["test"] for row in found["classes"]] == [4, 5] and len(found["lines"]) == 3
    assert found["left_out"] == {"files ending in .doc": 1}
    assert found["kinds"] == {"PNG RGB": 25, "BMP L": 1}
    assert found["sizes"] == {
        "width": {"smallest": 6, "median": 6, "largest": 10},
        "height": {"smallest": 4, "median": 4, "largest": 20},
        "commonest": [6, 4],
        "commonest_images": 20,
    }
    [bad] = found["unreadable"]
    assert bad["file"] == f"{root}/test/b/bad.png" and bad["split"] == "test"
    assert bad["reason"] == "cannot identify image file"
    json.dumps(found)


def test_images_of_one_content_in_several_splits_or_classes_are_listed(root):
    data = find_images(str(root))
    found = inspect_images(data, print)
    places = [
        {row["file"].removeprefix(f"{root}/") for row in rows} for rows in found["duplicates"]
    ]
    assert {"train/a/1.png", "test/a/9.png"} in places
    assert {"train/a/2.png", "train/b/9.png"} in places
    assert found["duplicate_count"] == len(places) <= 3  # 3 if validation got one of the twins
    twins = {"train/b/3.png", "train/b/10.png"}
    held_out = {str(image.relative_to(root)) for image in data.validation.images}
    assert (twins in places) == (len(twins & held_out) == 1)


def test_a_long_reading_is_not_silent(root, monkeypatch):
    monkeypatch.setattr("kdtune.data.overview._SAY_EVERY_SECONDS", -1)
    lines = []
    inspect_images(find_images(str(root)), lines.append)
    assert lines[:2] == ["reading 27 images", "0 of 27 images read"] and len(lines) == 28


def test_the_text_has_all_of_it(root):
    text = data_text(inspect_images(find_images(str(root)), print), "table")
    for line in (
        f"{root}: 27 images of 2 classes: 15 train, 3 validation, 9 test; validation cut from "
        "train",
        "left out: files ending in .doc (1)",
        "sizes: width 6 to 10 px (median 6), height 4 to 20 px (median 4); most often 6 x 4 (20 "
        "images)",
        "formats and modes: PNG RGB (25), BMP L (1)",
        "unreadable images: 1",
        f"  {root}/test/b/bad.png: cannot identify image file",
    ):
        assert line in text.splitlines()


def test_arrays_have_an_overview_and_a_sheet(tmp_path):
    data = find_images(DataSource("digits", train_images=20))
    found = inspect_images(data, print)
    assert found["kinds"] == {"array L": 20 + 269 + 269} and found["duplicate_count"] == 0
    write_contact_sheet(data, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (640, 10 * 78)


def test_a_sheet_shows_images_as_a_network_gets_them(tmp_path):
    for name, colour in (("a", (255, 0, 0, 255)), ("b", (0, 0, 0, 0))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGBA", (4, 4), colour).save(tmp_path / "data" / name / f"{i}.png")
    write_contact_sheet(
        find_images(DataSource(str(tmp_path / "data"), background="blue")), tmp_path / "s.png"
    )
    pixels = np.asarray(Image.open(tmp_path / "s.png"))
    assert pixels[14 + 32, 32].tolist() == [255, 0, 0]
    assert pixels[78 + 14 + 32, 32].tolist() == [0, 0, 255]
    assert pixels[14 + 32, 639].tolist() == [255, 255, 255]  # 6 images of a class: no tenth


def test_the_command_prints_an_overview(root, tmp_path):
    words = ["data", str(root), "--sheet", str(tmp_path / "s.png"), "--format", "json"]
    run = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert run.exit_code == 0 and (tmp_path / "s.png").is_file()
    assert f"wrote {tmp_path / 's.png'}" in run.stderr
    assert json.loads(run.stdout)["data"] == str(root)
    with pytest.raises(UserError, match="There is no folder"):
        CliRunner().invoke(cli, ["data", str(tmp_path / "no")], catch_exceptions=False)


def test_a_teacher_begins_with_what_the_data_are(root, tmp_path):
    (root / "test" / "b" / "bad.png").unlink()
    for i in range(8):
        Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(root / "train" / "a" / f"{i}.png")
    words = f"teacher --data {root} --model MultiBranchNet --image-size 8 --epochs 1 --out"
    run = CliRunner().invoke(
        cli, [*words.split(), str(tmp_path / "t.pth")], catch_exceptions=False
    )
    assert run.stderr.splitlines()[:3] == list(find_images(str(root)).describe())
    assert load_model(tmp_path / "t.pth")["config"]["bit_depth"] == 10
