"""Unusual and broken images: each is read, or listed with its reason."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small_runs import write_digits

from kdtune.data.decoded import DecodedDataset, drop_unreadable
from kdtune.data.decoding import decode_images, measure_bit_depth
from kdtune.data.folders import find_images
from kdtune.data.splits import Split
from kdtune.errors import BadImagesError, UserError
from kdtune.storage.array_cache import ArrayCache

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def read(path, size=8):
    return decode_images(Split([path], [0]), size)[0]


def reason(path):
    with pytest.raises(BadImagesError) as error:
        read(path)
    [(file, words)] = error.value.failures
    assert file == os.fsencode(path).decode(errors="backslashreplace")
    return words


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "it is empty"), (b"no image", "cannot identify image file"),
     (b"\x89PNG\r\n\x1a\n", "cannot identify image file"),
     (b"\xff\xd8\xff\xe0" + bytes(50), "cannot identify image file")],
)  # fmt: skip
def test_a_file_that_is_no_image_is_reported_with_its_reason(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason(tmp_path / "a.jpg").startswith(words)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp"])
def test_a_truncated_image_is_found(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg")[:, 0, 0].tolist() == [10, 20, 30]


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 128]))
    assert read(tmp_path / "a.png")[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "YCbCr", "1", "P"])
def test_colour_modes_are_read(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert (read(path) >= 250).all()


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tiff")
    assert reason(tmp_path / "a.tiff") == "its pixels are floats of unknown range"
    Image.fromarray(RAMP.astype(np.int32) * 1000).save(tmp_path / "b.tiff")
    assert reason(tmp_path / "b.tiff") == "its pixels have more than 16 bits"


def test_one_pixel_is_an_image(tmp_path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png").reshape(3, -1).T == [10, 20, 30]).all()


def test_a_hundred_million_pixels_are_an_image(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (10_000, 10_000), 7).save(path, compress_level=1)
    assert (read(path) == 7).all() and measure_bit_depth(Split([path], [0])) == 16


def test_a_decompression_bomb_is_refused(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    assert "decompression bomb" in reason(tmp_path / "a.png")


def test_links_that_lead_nowhere_are_listed(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    assert "Too many levels of symbolic links" in reason(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    assert "No such file" in reason(tmp_path / "b.png")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert reason(tmp_path / "a.png") == "it is not a file"


def test_a_permission_error_is_listed(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")

    def refuse(path, formats):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("kdtune.data.decoding.Pillow.open", refuse)
    assert "Permission denied" in reason(tmp_path / "a.png")


@pytest.fixture
def data_dir(tmp_path):
    return write_digits(tmp_path / "data", 10)


def test_folders_that_link_in_circles_are_scanned_once(data_dir):
    before = find_images(str(data_dir))
    (data_dir / "digit-0" / "self").symlink_to(".")
    (data_dir / "digit-1" / "above").symlink_to("..")
    other = data_dir.parent / "more"
    write_digits(other, 1, first=20)
    (data_dir / "digit-2" / "more").symlink_to(other / "digit-2")
    after = find_images(str(data_dir))
    assert sum(map(len, (after.train, after.validation, after.test))) == 101
    assert before.train.images[0] == after.train.images[0]


def test_file_names_that_are_not_utf8_are_accepted(data_dir, tmp_path):
    name = os.fsencode(data_dir / "digit-0") + b"/caf\xe9.png"
    Image.new("L", (8, 8)).save(os.fsdecode(name).replace("caf\udce9", "ok"))
    os.rename(os.fsdecode(name).replace("caf\udce9", "ok"), name)
    data = find_images(str(data_dir))
    DecodedDataset(data, 8, ArrayCache(tmp_path / "cache")).decode_train_validation(print)
    with open(name, "wb"):
        pass
    with pytest.raises(BadImagesError, match=r"caf\\xe9\.png \(it is empty\)"):
        decoded = DecodedDataset(find_images(str(data_dir)), 8, ArrayCache(tmp_path / "cache"))
        for split in ("train", "validation", "test"):
            decoded.pixels(split)


def spoil(data_dir, *indices):
    """Empty some images of training and validation."""
    data = find_images(str(data_dir))
    paths = [split.images[i] for split in (data.train, data.validation) for i in indices]
    for path in paths:
        path.write_bytes(b"")
    return paths


def test_all_bad_images_of_training_and_validation_are_listed_at_once(data_dir, tmp_path):
    bad = spoil(data_dir, 0, 5)
    decoded = DecodedDataset(find_images(str(data_dir)), 8, ArrayCache(tmp_path / "cache"))
    with pytest.raises(BadImagesError) as error:
        decoded.decode_train_validation(print)
    assert {file for file, _ in error.value.failures} == set(map(str, bad))
    assert {reason for _, reason in error.value.failures} == {"it is empty"}
    said = str(error.value)
    assert said.startswith("4 images cannot be read: the first is") and "--skip-bad-images" in said


@pytest.mark.parametrize("cached", [True, False])
def test_bad_images_are_dropped_and_the_others_keep_their_split_and_order(
    data_dir, tmp_path, cached
):
    before = find_images(str(data_dir))
    bad = spoil(data_dir, 0, 5)
    for _ in range(2):
        cache = ArrayCache(tmp_path / "cache") if cached else None
        data, listed = drop_unreadable(find_images(str(data_dir)), cache)
        assert [image["file"] for image in listed] == [str(path) for path in bad]
        assert [image["split"] for image in listed] == ["train"] * 2 + ["validation"] * 2
        for split in ("train", "validation", "test"):
            kept = [p for p in getattr(before, split).images if p not in bad]
            assert list(getattr(data, split).images) == kept
        DecodedDataset(data, 8, cache).decode_train_validation(print)
    assert data.fingerprint != find_images(str(data_dir)).fingerprint


def test_the_cache_remembers_unreadable_images(data_dir, tmp_path, monkeypatch):
    spoil(data_dir, 0)
    first = drop_unreadable(find_images(str(data_dir)), ArrayCache(tmp_path / "cache"))
    looked = []

    def still_broken(split):
        looked.append(len(split))
        return dict.fromkeys(range(len(split)), "broken")

    monkeypatch.setattr("kdtune.data.decoded.find_unreadable", still_broken)
    data, listed = drop_unreadable(find_images(str(data_dir)), ArrayCache(tmp_path / "cache"))
    assert data == first[0] and len(listed) == 2
    assert looked == [1, 1, 0]  # for the reasons


def test_an_image_that_can_be_read_again_is_not_dropped(data_dir, tmp_path, monkeypatch):
    spoil(data_dir, 0)
    drop_unreadable(find_images(str(data_dir)), ArrayCache(tmp_path / "cache"))
    monkeypatch.setattr("kdtune.data.decoded.find_unreadable", lambda split: {})
    data = find_images(str(data_dir))
    assert drop_unreadable(data, ArrayCache(tmp_path / "cache")) == (data, [])


def test_without_bad_images_nothing_changes(data_dir):
    data = find_images(str(data_dir))
    assert drop_unreadable(data, None) == (data, [])


def test_a_class_without_a_readable_image_is_an_error(data_dir):
    for path in (data_dir / "digit-3").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="No training image of the class 'digit-3' can be read"):
        drop_unreadable(find_images(str(data_dir)), None)


def test_a_folder_that_cannot_be_listed_is_an_error(data_dir, monkeypatch):
    def walk(top, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(UserError, match=r"folder .*digit-0 cannot be read: Permission denied"):
        find_images(str(data_dir))
