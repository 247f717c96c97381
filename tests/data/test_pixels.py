"""Images of every kind as pixels, against numpy on the numbers that went into the file."""

import io

import numpy as np
import pytest
from PIL import Image, features

from hlnet.data.images import open_image
from hlnet.data.pixels import plain_image
from hlnet.data.tree_data import eval_transform
from hlnet.errors import DataError
from hlnet.model.transform import InputTransform

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
#: EXIF orientation -> what turns the stored pixels upright (EXIF 2.3, section 4.6.4).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def reopened(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return open_image(f"x.{format.lower()}", file)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_upright(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    image = reopened(Image.fromarray(COLOUR), format, exif=exif, **options)
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](COLOUR))
    assert np.array_equal(np.asarray(plain_image(image)), np.asarray(image))  # not turned twice


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_integers_are_scaled_by_the_bits_that_hold_them(bits):
    values = (GREY.astype(np.int64) * (2**bits - 1)) // 255
    values[0, 0] = 2**bits - 1
    expected = np.floor(values * 255 / (2**bits - 1) + 0.5)
    for image in (Image.fromarray(values.astype(np.uint16)), Image.fromarray(values.astype(np.int32))):
        assert np.abs(np.asarray(reopened(image, "TIFF"), dtype=int) - expected).max() <= 1


def test_16_bits_in_png():
    values = GREY.astype(np.uint16) * 257
    values[0, 0] = 65535
    assert np.abs(np.asarray(reopened(Image.fromarray(values), "PNG"), int)[1:] - GREY[1:]).max() <= 1


@pytest.mark.parametrize("scale", [1, 255])
def test_fractions(scale):
    values = GREY.astype(np.float32) / GREY.max() * scale
    values[-1, -1] = scale
    expected = np.floor(values / scale * 255 + 0.5)
    assert np.abs(np.asarray(reopened(Image.fromarray(values), "TIFF"), int) - expected).max() <= 1


@pytest.mark.parametrize("value", [-1.0, 256.0, np.nan, np.inf])
def test_fractions_out_of_range_are_refused(value):
    values = np.full((2, 2), 0.5, np.float32)
    values[0, 0] = value
    with pytest.raises(DataError, match=r"cannot read image 'x.tiff': its numbers"):
        reopened(Image.fromarray(values), "TIFF")


def test_negative_integers_are_refused():
    with pytest.raises(DataError, match="down to -3"):
        reopened(Image.fromarray(np.array([[-3, 5]], np.int32)), "TIFF")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composed_on_white(mode):
    alpha = GREY[:, ::-1].copy()
    alpha[0] = 0
    colour = COLOUR if mode == "RGBA" else GREY[..., None]
    image = Image.fromarray(np.concatenate([colour, alpha[..., None]], axis=-1).squeeze())
    share = alpha[..., None] / 255
    expected = np.broadcast_to(colour * share + 255 * (1 - share), COLOUR.shape)
    assert np.abs(np.asarray(reopened(image, "PNG"), float) - expected).max() <= 1


def test_transparent_palettes_and_colours():
    palette = Image.fromarray(GREY // 64).convert("L")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image = np.asarray(reopened(palette, "PNG", transparency=0))
    assert (image[GREY // 64 == 0] == 255).all() and (image[GREY // 64 == 1] == [0, 255, 0]).all()
    keyed = np.asarray(reopened(Image.fromarray(COLOUR), "PNG", transparency=tuple(map(int, COLOUR[1, 2]))))
    assert (keyed[1, 2] == 255).all() and (keyed[3, 3] == COLOUR[3, 3]).all()


@pytest.mark.parametrize("mode, expected", [("1", "L"), ("L", "L"), ("P", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB")])
def test_other_modes(mode, expected):
    image = plain_image(Image.fromarray(COLOUR).convert(mode))
    assert image.mode == expected
    wanted = Image.fromarray(COLOUR).convert(mode).convert(expected)
    assert np.array_equal(np.asarray(image), np.asarray(wanted))


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), shade) for shade in ("red", "blue")]
    assert reopened(frames[0], "GIF", save_all=True, append_images=frames[1:]).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg></svg>"])
def test_what_would_run_another_program_is_no_image(tmp_path, head):
    (tmp_path / "a.png").write_bytes(head)
    with pytest.raises(DataError, match="not an image"):
        open_image(tmp_path / "a.png")


def test_the_transform_prepares_images_of_any_origin():
    prepare = eval_transform(InputTransform(input_size=(3, 8, 8), crop_pct=1.0))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert prepare(clear).equal(prepare(Image.new("RGB", (8, 8), "white")))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif():
    assert reopened(Image.new("RGB", (16, 16), "blue"), "AVIF").size == (16, 16)
