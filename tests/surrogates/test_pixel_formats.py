"""The pixel format itself: resizing, names and which images a target sees alike."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surrogates import TargetError
from surrogates.targets.formats import PixelFormat, luminance
from surrogates.targets.layouts import joined_order, order_of
from surrogates.targets.resizing import resized


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


# Resizing

SIZES = [(28, 28), (5, 7), (64, 40), (1, 1), (2, 9), (100, 61)]


@pytest.mark.parametrize("size", [(56, 56), (14, 14), (3, 11), (1, 1), (29, 27), (224, 224)])
@pytest.mark.parametrize("shape", SIZES)
def test_resizing_is_that_of_torch(shape: tuple[int, int], size: tuple[int, int]) -> None:
    given = images(3, 2, *shape)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(given), size=size, mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(resized(given, size), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(40, 40), (9, 30)])
def test_an_image_becomes_the_same_bytes_in_any_batch_and_memory(size: tuple[int, int]) -> None:
    given = images(300, 3, 28, 28)
    whole = resized(given, size)
    for rows in (slice(0, 1), slice(7, 8), slice(100, 250), slice(299, 300)):
        assert resized(given[rows].copy(), size).tobytes() == whole[rows].tobytes()
    mirrored = np.ascontiguousarray(given[..., ::-1])[..., ::-1]  # other strides
    assert resized(mirrored, size).tobytes() == whole.tobytes()


def test_resizing_keeps_what_has_no_detail() -> None:
    flat = np.full((2, 1, 30, 20), 0.3, np.float32)
    np.testing.assert_allclose(resized(flat, (7, 50)), 0.3, rtol=1e-6)
    assert resized(flat, (30, 20)) is flat


# Color


def test_a_gray_image_of_three_channels_is_that_gray_image() -> None:
    gray = images(4, 1, 9, 9)
    assert luminance(gray.repeat(3, axis=1)).tobytes() == gray.tobytes()
    pure = np.eye(3, dtype=np.float32)[:, :, None, None]
    np.testing.assert_allclose(luminance(pure).ravel(), [0.299, 0.587, 0.114], rtol=1e-6)


# Layouts


@pytest.mark.parametrize(
    ("sides", "shape", "order"),
    [
        ((3, 1024), (3, 32, 32), "chw"),
        ((1024, 3), (3, 32, 32), "hwc"),
        ((32, 96), (3, 32, 32), "hwc"),
        ((96, 32), (3, 32, 32), "chw"),
        ((3072,), (3, 32, 32), "chw"),
        ((1, 3, 32, 32), (3, 32, 32), "chw"),
        ((32, 32, 1, 3), (3, 32, 32), "hwc"),
        ((28, 28, 1), (1, 28, 28), "chw"),
        ((3, 3, 3), (3, 3, 3), "chw"),
        ((64, 48), (3, 32, 32), None),
        ((32, 32), (3, 32, 32), None),
    ],
)
def test_joined_sides_tell_the_order(sides: tuple, shape: tuple, order: str | None) -> None:
    assert joined_order(sides, shape) == order


def test_sides_that_split_rows_are_filled_by_where_the_channels_are() -> None:
    assert order_of((3, 8, 128), (3, 32, 32)) == "chw"
    assert order_of((8, 128, 3), (3, 32, 32)) == "hwc"
    assert order_of((64, 48), (3, 32, 32)) == "chw"


# Names: a part of the key of every receipt

NAMES = {  # as earlier versions made them; ledgers hold answers under them
    "": {},
    "8 bits": {"quantize": 8},
    "uint8, 0..255": {"dtype": "uint8"},
    "float16": {"dtype": "float16"},
    "int64, 0..16": {"dtype": "int64", "pixel_range": (0, 16)},
    "-1..1": {"pixel_range": (-1, 1)},
    "mean 0.5, std 0.25": {"mean": 0.5, "std": [0.25]},
    "8 bits, uint8, 0..255": {"quantize": 8, "dtype": "uint8"},
    "float16, mean 0.485/0.456/0.406": {"dtype": "float16", "mean": (0.485, 0.456, 0.406)},
}


@pytest.mark.parametrize(("name", "options"), NAMES.items())
def test_names_of_receipts_that_are_there_hold(name: str, options: dict) -> None:
    for layout in ("chw", "flat"):
        assert PixelFormat(layout=layout, **options).name == name
    assert PixelFormat(layout="hwc", order_is_known=True, **options).name == name


def test_a_mean_of_another_meaning_has_another_name() -> None:
    """In version 0.1, mean and std were in units of pixel_range, and the range stood before them."""
    now = PixelFormat(mean=0.5, std=0.5, pixel_range=(0, 255)).name
    assert now == "mean 0.5, std 0.5, 0..255"
    assert now != "0..255, mean 0.5, std 0.5"


FORMS = st.fixed_dictionaries(
    {},
    optional={
        "layout": st.sampled_from(["chw", "hwc", "flat", "flat_hwc"]),
        "dtype": st.sampled_from(["float32", "float64", "uint8", "float16"]),
        "quantize": st.sampled_from([1, 3, 8]),
        "color": st.sampled_from(["rgb", "bgr", "gray"]),
        "resize": st.sampled_from([2, 5, (4, 6), 9]),
        "pixel_range": st.sampled_from([(0, 255), (0, 1), (0, 16)]),
    },
)


@given(FORMS, st.sampled_from([1, 3]), st.integers(0, 9))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_images_of_one_key_are_sent_as_the_same_bytes(options: dict, channels: int, seed: int) -> None:
    """And images that a target sees alike have one key: rounded, in gray, in another number of channels."""
    form = PixelFormat(**options)
    plain = images(3, channels, 4, 6, seed=seed)
    bits = form.quantize or (8 if form.dtype == "uint8" else None)
    alike: list[np.ndarray] = [plain, plain.copy()]
    if bits is not None and form.resize is None and form.color != "gray" and form.ends in ((0, 255), (0, 1)):
        alike.append((np.rint(plain.astype(np.float64) * (2**bits - 1)) / (2**bits - 1)).astype(np.float32))
    if channels == 1 and form.color is not None:
        alike.append(plain.repeat(3, axis=1))
    others = [images(3, channels, 4, 6, seed=seed + 100), plain[::-1].copy(), plain**2]
    keys: dict[bytes, Any] = {}
    for batch in alike + others:
        for image in np.concatenate([batch, 1 - batch]):
            key = form.canonical(image[None])
            assert key.flags.c_contiguous  # a ledger hashes its memory
            sent = form.encode(image[None])
            assert keys.setdefault(bytes(key) + str(key.shape).encode(), bytes(sent)) == bytes(sent)
    first = form.canonical(plain)
    for batch in alike:
        assert form.canonical(batch).tobytes() == first.tobytes()


@given(FORMS, st.sampled_from([1, 3]))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_encoding_is_the_same_in_any_batch_and_leaves_the_images_alone(options: dict, channels: int) -> None:
    form = PixelFormat(**options)
    given = images(70, channels, 30, 30)
    before = given.copy()
    whole = form.encode(given)
    assert not np.shares_memory(whole, given)
    for rows in (slice(0, 1), slice(33, 35), slice(69, 70)):
        assert form.encode(given[rows]).tobytes() == whole[rows].tobytes()
    whole[...] = 0  # a model may write into what it gets
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e5), ("float32", 1e40)])
def test_a_range_that_its_numbers_do_not_hold_is_refused(dtype: str, most: float) -> None:
    """It would go out as infinities."""
    with pytest.raises(TargetError, match=f"pixel_range of {dtype} is .* more than it holds"):
        PixelFormat(dtype=dtype, pixel_range=(0, most))
