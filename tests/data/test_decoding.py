"""Decoding: what an image shows is what a network gets, in every format and mode."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kdtune.config.data import DataSource
from kdtune.config.train import TrainConfig
from kdtune.data.decoding import decode_images, measure_bit_depth
from kdtune.data.folders import find_images
from kdtune.data.image_formats import is_image, readable_formats
from kdtune.data.splits import Rendering, Split
from kdtune.errors import BadImagesError, UserError

RED, BLUE = [255, 0, 0], [0, 0, 255]


def decode(image, size=8, rendering=None):
    rendering = rendering or Rendering()
    return decode_images(Split([image], [0], rendering), size)[0].transpose(1, 2, 0)


def test_files_are_decoded_to_channels_first_rgb(tmp_path):
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    image.save(tmp_path / "a.png")
    assert decode_images(Split([tmp_path / "a.png"], [0]), 8)[0, :, 3, 3].tolist() == [10, 20, 30]


def red_left_blue_right():
    image = Image.new("RGB", (32, 16), tuple(RED))
    image.paste(tuple(BLUE), (16, 0, 32, 16))
    return image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_images_are_turned_as_their_exif_data_say(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees, clockwise: what is left becomes the top
    red_left_blue_right().save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    pixels = decode(tmp_path / f"a.{suffix}").astype(int)
    assert (abs(pixels[0] - RED) < 30).all() and (abs(pixels[-1] - BLUE) < 30).all()


def test_damaged_exif_data_are_ignored(tmp_path):
    red_left_blue_right().save(tmp_path / "a.png", exif=b"Exif\0\0no EXIF data")
    assert (decode(tmp_path / "a.png")[:, 0] == RED).all()


def test_an_image_is_turned_although_other_exif_data_are_wrong(tmp_path):
    turned = struct.pack("<HHII", 274, 3, 1, 6)
    maker_as_a_fraction = struct.pack("<HHII", 0x10F, 5, 1, 8)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + turned + maker_as_a_fraction + bytes(4)
    red_left_blue_right().save(tmp_path / "a.png", exif=exif)
    assert (decode(tmp_path / "a.png")[0] == RED).all()


def half_transparent(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 3, 7), fill=(0, 0, 0, 255))
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp")])
@pytest.mark.parametrize(
    ("background", "colour"), [("white", 255), ("black", 0), ("#808080", 128)]
)
def test_transparent_images_lie_on_a_background(tmp_path, mode, suffix, background, colour):
    half_transparent(mode).save(tmp_path / f"a.{suffix}", lossless=True)
    pixels = decode(tmp_path / f"a.{suffix}", 8, Rendering(background))
    assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == colour).all()


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 51)).save(tmp_path / "a.png")  # 51 of 255: a fifth
    assert (decode(tmp_path / "a.png") == 204).all()


def test_a_palette_with_a_transparent_colour_lies_on_the_background(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "a.gif", transparency=0)
    pixels = decode(tmp_path / "a.gif")
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == [10, 20, 30]).all()


@pytest.mark.parametrize("background", ["whitish", "#ff00"])
def test_an_unknown_or_transparent_background_is_refused(background):
    with pytest.raises(UserError, match="The setting background cannot be"):
        TrainConfig.parse({"background": background})


def write_grey(path, largest, dtype=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.linspace(0, largest, 64).round().astype(dtype).reshape(8, 8)
    Image.fromarray(values).save(path)
    return values


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (256, 10), (4095, 12), (4096, 14), (16384, 16), (65535, 16)]
)
def test_16_bit_images_are_scaled_by_the_bits_that_training_images_use(tmp_path, largest, bits):
    for i in range(4):
        write_grey(tmp_path / "a" / f"{i}.png", largest // (i + 1))
        write_grey(tmp_path / "b" / f"{i}.tiff", largest // (i + 1))
    data = find_images(str(tmp_path))
    assert {split.rendering.bit_depth for split in data.splits.values()} == {bits}
    for split in data.splits.values():
        for image in split.images:  # the same rule for all, however dark one of them is
            expected = np.round(np.asarray(Image.open(image)) * (255 / (2**bits - 1)))
            assert np.array_equal(decode(image, 8, split.rendering)[..., 0], expected)


def test_bits_that_are_given_are_not_measured(tmp_path):
    for name in "ab":
        for i in range(4):
            write_grey(tmp_path / name / f"{i}.png", 4095)
    data = find_images(DataSource(str(tmp_path), bit_depth=14))
    assert data.rendering.bit_depth == 14
    assert decode(data.train.images[0], 8, data.rendering).max() == round(4095 / 16383 * 255)


def test_a_value_above_the_bits_in_use_is_a_reason_and_names_the_flag(tmp_path):
    write_grey(tmp_path / "a.png", 5000)
    with pytest.raises(BadImagesError, match="use more than 12 bits: give --bit-depth 16"):
        decode(tmp_path / "a.png", 8, Rendering(bit_depth=12))


def test_8_bit_images_do_not_depend_on_the_bit_depth(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "a.png")
    split = Split([tmp_path / "a.png"], [0])
    assert measure_bit_depth(split) == 16
    assert (decode(tmp_path / "a.png", 8, Rendering(bit_depth=12)) == 77).all()


@pytest.mark.parametrize("suffix", ["gif", "jfif", "avif", "jp2", "tga", "ico", "qoi", "webp"])
def test_what_pillow_opens_is_an_image(tmp_path, suffix):
    for name, colour in (("a", RED), ("b", BLUE)):
        (tmp_path / name).mkdir()
        for i in range(5):
            file_format = "JPEG" if suffix == "jfif" else None
            Image.new("RGB", (16, 16), tuple(colour)).save(
                tmp_path / name / f"{i}.{suffix.upper()}", file_format
            )
    data = find_images(str(tmp_path))
    assert sum(map(len, data.splits.values())) == 10 and not data.left_out
    assert (abs(decode(data.train.images[0]).astype(int) - RED) < 20).all()


def test_heic_is_read_if_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    for name, colour in (("a", RED), ("b", BLUE)):
        (tmp_path / name).mkdir()
        for i in range(5):
            image = Image.new("RGB", (64, 64), tuple(colour))
            pillow_heif.from_pillow(image).save(tmp_path / name / f"{i}.heic", quality=100)
    data = find_images(str(tmp_path))
    assert sum(map(len, data.splits.values())) == 10
    assert (abs(decode(data.train.images[0]).astype(int) - RED) < 20).all()


def test_without_its_package_heic_is_left_out_and_the_package_named(tmp_path):
    program = f"""
import sys
sys.modules["pillow_heif"] = None  # as if it were not installed
from kdtune.data.folders import find_images
for kind, count in find_images({str(tmp_path)!r}).left_out.items():
    print(kind, count)
"""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "x.HEIC").write_bytes(b"")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = "files ending in .heic (need pillow-heif: pip install '.[heif]') 1"
    assert expected in run.stdout.splitlines()


def test_postscript_is_a_program_and_is_not_run(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert not is_image("a.eps") and "EPS" not in readable_formats()[0]
    with pytest.raises(BadImagesError, match="cannot identify image file"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4)])
def test_arrays_are_images(shape):
    array = np.full(shape, 90, np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    assert (decode(array) == 90).all()
