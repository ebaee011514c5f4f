"""One picture: what is decoded is what a person sees, and nothing that a file does ends in a traceback."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from certdef.config.job import ConfigError
from certdef.data import pictures
from certdef.data.pictures import BadPicture, Pictures, decode, look
from certdef.data.pixels import Form, covering

COLORS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
GRAYS = COLORS[:, :, 0]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def color(**options) -> bytes:
    return encoded(Image.fromarray(COLORS), **options)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_lossless_kinds_give_their_levels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(color(kind=kind, **options), Form(color="rgb"))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, (COLORS / np.float32(255)).transpose(2, 0, 1))


def test_a_jpeg_gives_what_its_decoder_gives():
    data = color(kind="JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(decode(data, Form(color="rgb")), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turned_photograph_is_seen_as_its_taker_saw_it(orientation, kind):
    """The file is what a camera writes that is held so: turning it back must give the scene."""
    scene = Image.fromarray(np.arange(12 * 20, dtype=np.uint8).reshape(12, 20))
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    stored = scene if turned is None else scene.transpose(turned)
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    assert look(data).sides == (12, 20)
    pixels = decode(data, Form(color="gray"))[0]
    assert pixels.shape == (12, 20)
    assert np.abs(pixels * 255 - np.asarray(scene)).max() < 6  # JPEG


MODES = {
    "gray": (Image.fromarray(GRAYS), GRAYS / 255, False),
    "black and white": (Image.fromarray(GRAYS > 128), (GRAYS > 128).astype(float), False),
    "gray with alpha": (Image.fromarray(GRAYS).convert("LA"), GRAYS / 255, False),
    "16 bits": (Image.fromarray(GRAYS.astype(np.uint16) * 250), GRAYS.astype(float) * 250 / 65535, False),
    "color": (Image.fromarray(COLORS), COLORS / 255, True),
    "alpha": (Image.fromarray(np.dstack([COLORS, GRAYS])), COLORS / 255, True),
    "palette": (
        Image.fromarray(COLORS).quantize(250),
        np.asarray(Image.fromarray(COLORS).quantize(250).convert("RGB")) / 255,
        True,
    ),
}


@pytest.mark.parametrize(("image", "levels", "has_color"), MODES.values(), ids=MODES.keys())
def test_every_mode_of_a_png_in_gray_and_color(image, levels, has_color):
    data = encoded(image)
    assert look(data).color == has_color
    expected = levels if levels.ndim == 3 else np.repeat(levels[:, :, None], 3, axis=2)
    np.testing.assert_allclose(decode(data, Form(color="rgb")), expected.transpose(2, 0, 1), atol=1e-6)
    gray = expected @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(
        decode(data, Form(color="gray"))[0], gray, atol=1.01 / 255 if has_color else 1e-6
    )


def test_a_cmyk_jpeg_is_seen_as_pillow_shows_it():
    data = encoded(Image.fromarray(COLORS).convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(decode(data, Form(color="rgb")), expected)


def test_16_bits_are_not_rounded_to_8():
    deep = np.array([[30000, 30001], [30002, 65535]], np.uint16)
    pixels = decode(encoded(Image.fromarray(deep)), Form(color="gray"))
    assert len(np.unique(pixels)) == 4
    assert pixels.max() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(3, 60), st.integers(1, 40))
def test_one_side_is_resized_and_cropped_as_torchvision_does(height, width, side):
    from torchvision.transforms import functional

    image = Image.fromarray(
        np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    theirs = functional.center_crop(functional.resize(image, side), [side, side])
    np.testing.assert_array_equal(np.asarray(covering(image, (side, side))), np.asarray(theirs))


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 40)] * 4)
def test_any_two_sides_are_covered_without_distortion(height, width, new_height, new_width):
    """A picture whose columns say where they are stays centered, and is scaled alike in both directions."""
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    out = np.asarray(covering(Image.fromarray(ramp), (new_height, new_width)))
    assert out.shape == (new_height, new_width)
    if width > 1:
        assert abs(out.mean() - 0.5) <= 0.5 * max(1 / width, 1 / new_width) + 1e-3


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it has these sides."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each))
        for each in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JPEG, PNG, WebP or BMP"),
        (b"hello", "is no JPEG, PNG, WebP or BMP"),
        (encoded(Image.fromarray(COLORS), "GIF"), "is no JPEG, PNG, WebP or BMP"),
        (encoded(Image.fromarray(COLORS), "TIFF"), "is no JPEG, PNG, WebP or BMP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no JPEG, PNG, WebP or BMP"),
        (color()[:-40], "can't be read"),
        (color(kind="JPEG")[:300], "can't be read|is no JPEG"),
        (bomb(10_000, 10_000), "has 100,000,000 pixels, more than 89,478,485: shrink it"),
        (bomb(60_000, 60_000), "pixels: shrink it"),
    ],
    ids=["empty", "text", "gif", "tiff", "svg", "cut png", "cut jpeg", "large", "bomb"],
)
def test_what_is_no_picture_is_named(content, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadPicture, match=said) as error:
            decode(content, Form(color="rgb"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_flipped_and_cut_bytes_are_a_picture_or_a_line(kind):
    whole, random = color(kind=kind), np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole)
        for at in random.integers(len(data), size=3):
            data[at] = random.integers(256)
        for content in (bytes(data), bytes(data[: random.integers(len(data))])):
            said = ""
            try:
                pixels = decode(content, Form((8, 8), "rgb"))
            except BadPicture as error:
                said = str(error)
            else:
                assert pixels.shape == (3, 8, 8)
                assert 0 <= pixels.min() <= pixels.max() <= 1
            assert "\n" not in said


def test_every_broken_file_is_named_at_once(tmp_path):
    (tmp_path / "good.png").write_bytes(color())
    (tmp_path / "cut.png").write_bytes(color()[:-40])  # only its decoder notices
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    files = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError) as error:
        Pictures([file.name for file in files], lambda index: files[index], Form())
    lines = str(error.value).splitlines()
    assert sorted(line.split("'")[1] for line in lines) == ["cut.png", "gone.png", "pipe.png", "text.jpg"]


def test_a_picture_that_breaks_only_when_decoded_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(color())
    (tmp_path / "b.png").write_bytes(color()[:-40])
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    found = Pictures([str(file) for file in files], lambda index: files[index], Form())
    assert found.take(np.array([0])).shape == (1, 3, 12, 20)
    with pytest.raises(ConfigError, match=r"b\.png' can't be read"):
        found.take(np.array([0, 1]))


def test_a_hundred_broken_files_are_counted():
    with pytest.raises(ConfigError, match="and 80 more such files") as error:
        Pictures([f"{number}.png" for number in range(100)], lambda _: b"", Form())
    assert len(str(error.value).splitlines()) == 21


def test_a_line_of_pixels_is_refused_before_it_is_scaled_to_gigabytes():
    strip = encoded(Image.new("RGB", (60_000, 1)))
    assert look(strip).sides == (1, 60_000)
    with pytest.raises(BadPicture, match="can't be scaled: 1 x 60000 pixels would be 224 x 13,440,000"):
        decode(strip, Form((224, 224)))
