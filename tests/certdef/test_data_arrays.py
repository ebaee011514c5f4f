"""Arrays under any keys, in any common layout: found, named, or refused with what there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certdef.config.job import ConfigError, DataConfig
from certdef.data.pixels import Form, as_images, recolored
from certdef.data.sets import load_data, load_source
from certdef.data.source import ArrayImages

LEVELS = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8)  # image k has level k
LABELS = np.arange(40) % 4


def load(path, arrays, pool: int = 10, heldout: int = 30, **options):
    np.savez(path / "mine.npz", **arrays)
    config = DataConfig(path=str(path / "mine.npz"), pool_images=pool, heldout_images=heldout, **options)
    return load_data(config, 0, own_target=True)


def heldout_numbers(data):
    return np.rint(data.heldout_images[:, 0, 0, 0] * 255).astype(int)


PAIRS = [
    ("images", "labels"),
    ("x", "y"),
    ("X", "Y"),
    ("data", "targets"),
    ("image", "label"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
    ("X_train", "Y_train"),
    ("arr_0", "arr_1"),
]


@pytest.mark.parametrize("names", PAIRS, ids=map("-".join, PAIRS))
def test_images_and_labels_are_found(tmp_path, names):
    data = load(tmp_path, dict(zip(names, (LEVELS, LABELS), strict=True)))
    assert (data.name, data.classes) == ("mine", ("0", "1", "2", "3"))
    np.testing.assert_array_equal(data.heldout_labels, heldout_numbers(data) % 4)


@pytest.mark.parametrize("form", ["x_{}", "{}_images", "images_{}", "{}_x"])
@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_train_and_test_are_parts(tmp_path, form, test):
    labels = form.replace("x", "y").replace("images", "labels")
    arrays = {form.format("train"): LEVELS[:10], labels.format("train"): LABELS[:10]}
    arrays |= {form.format(test): LEVELS[10:], labels.format(test): LABELS[10:]}
    data = load(tmp_path, arrays)
    assert heldout_numbers(data).min() == 10
    assert np.rint(data.pool * 255).max() == 9
    np.testing.assert_array_equal(data.heldout_labels, heldout_numbers(data) % 4)


def test_test_is_held_out_where_validation_is_there_too(tmp_path):
    parts = {"train": slice(0, 10), "val": slice(10, 20), "test": slice(20, 40)}
    arrays = {f"{part}_images": LEVELS[which] for part, which in parts.items()}
    arrays |= {f"{part}_labels": LABELS[which][:, None] for part, which in parts.items()}  # (N, 1)
    assert heldout_numbers(load(tmp_path, arrays, heldout=20)).min() == 20


def test_options_name_them(tmp_path):
    arrays = {"clean": LEVELS, "noisy": LEVELS[::-1], "what": LABELS, "who": LABELS[::-1]}
    with pytest.raises(
        ConfigError, match=r"has the arrays clean, noisy, what, who: name those of images and labels"
    ):
        load(tmp_path, arrays)
    data = load(tmp_path, arrays, images_key="noisy", labels_key="who")
    np.testing.assert_array_equal(data.heldout_labels, (heldout_numbers(data)) % 4)
    assert not load(tmp_path, arrays, images_key="clean").labeled
    with pytest.raises(ConfigError, match=r"data.images_key is 'klean', but .* has the arrays clean, noisy"):
        load(tmp_path, arrays, images_key="klean")


def test_two_that_may_be_meant_are_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"has the arrays x, data: name the one that is meant"):
        load(tmp_path, {"x": LEVELS, "data": LEVELS, "y": LABELS})
    data = load(tmp_path, {"x": LEVELS, "data": LEVELS, "y": LABELS}, images_key="x")
    np.testing.assert_array_equal(data.heldout_labels, heldout_numbers(data) % 4)


def test_an_array_alone_has_no_labels(tmp_path):
    assert not load(tmp_path, {"images": LEVELS}).labeled
    np.save(tmp_path / "a.npy", LEVELS)
    data = load_data(
        DataConfig(path=str(tmp_path / "a.npy"), pool_images=10, heldout_images=30), 0, own_target=True
    )
    assert (data.name, data.labeled, data.image_shape) == ("a", False, (1, 6, 6))


def test_an_npy_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, LEVELS)
    whole = path.read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    for content in (whole[:-5], whole[:50], b"", b"text", (tmp_path / "objects.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"can't be read .*give an \.npy") as error:
            load_source(DataConfig(path=str(path)))
        assert "\n" not in str(error.value)


TEXTS = np.array(["dog", "cat", "ant", "cat"])[LABELS]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS.astype("S"), TEXTS[:, None]], ids=["str", "bytes", "column"])
def test_labels_may_be_names(tmp_path, texts):
    data = load(tmp_path, {"x": LEVELS, "y": texts})
    assert data.by_name
    assert data.classes == ("ant", "cat", "dog")
    names = np.array(data.classes)[data.heldout_labels]
    np.testing.assert_array_equal(names, TEXTS[heldout_numbers(data)])


def test_names_that_are_listed_keep_their_order(tmp_path):
    data = load(tmp_path, {"x": LEVELS, "y": TEXTS, "class_names": np.array(["dog", "bee", "cat", "ant"])})
    assert data.classes == ("dog", "bee", "cat", "ant")
    names = np.array(data.classes)[data.heldout_labels]
    np.testing.assert_array_equal(names, TEXTS[heldout_numbers(data)])
    with pytest.raises(ConfigError, match="class_names lists dog, cat, but a label is 'ant'"):
        load(tmp_path, {"x": LEVELS, "y": TEXTS, "class_names": np.array(["dog", "cat"])})


def test_some_of_a_targets_classes_are_enough(tmp_path):
    """A target that is trained here needs every class; one of the user's own may know more than the data shows."""
    data = load(tmp_path, {"x": LEVELS, "y": LABELS * 3})
    assert data.classes == tuple(map(str, range(10)))
    assert set(data.heldout_labels) == {0, 3, 6, 9}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS[:3], "expected 40 whole numbers from 0, or names"),
        (np.eye(4)[LABELS], r"shape \(40, 4\).*of one column a class, give the argmax"),
        (LABELS + 0.5, "dtype float64: expected 40 whole numbers"),
        (LABELS - 1, "labels go down to -1"),
        (LABELS * 10**6, "up to 3000000, 4 in all"),
    ],
    ids=["short", "one-hot", "halves", "negative", "huge"],
)
def test_labels_that_are_none_are_one_line(tmp_path, labels, said):
    with pytest.raises(ConfigError, match=said) as error:
        load(tmp_path, {"x": LEVELS, "y": labels})
    assert "\n" not in str(error.value)


def test_whole_floats_are_labels(tmp_path):
    data = load(tmp_path, {"x": LEVELS, "y": LABELS.astype(np.float32)})
    assert data.heldout_labels.dtype == np.int64


def test_the_old_name_reads_the_same_images(tmp_path):
    arrays = {"images": LEVELS, "labels": LABELS}
    named, found = load(tmp_path, arrays, name="npz"), load(tmp_path, arrays)
    assert (named.name, found.name) == ("npz", "mine")
    assert (named.heldout_digest, named.pool_digest) == (found.heldout_digest, found.pool_digest)


shapes = st.tuples(st.integers(1, 4), st.integers(5, 9), st.integers(5, 9))


@settings(max_examples=80, deadline=None)
@given(shapes, st.sampled_from([None, 1, 3]), st.sampled_from(["uint8", "float32", "float64"]), st.randoms())
def test_every_layout_gives_the_same_images(shape, channels, dtype, random):
    count, height, width = shape
    levels = np.random.default_rng(random.randint(0, 99)).integers(
        0, 256, (count, channels or 1, height, width)
    )
    values = levels.astype(np.uint8) if dtype == "uint8" else (levels / 255).astype(dtype)
    expected = (levels / 255).astype(np.float32)
    layouts = [values, values.transpose(0, 2, 3, 1)] if channels else ([values[:, 0]] if width > 4 else [])
    for layout in layouts:
        for array in (layout, np.asfortranarray(layout), layout[::-1][::-1]):
            np.testing.assert_allclose(as_images(array), expected, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([1, 3]), st.sampled_from(["gray", "rgb", None]))
def test_color_changes_the_channels_alone(shape, channels, color):
    count, height, width = shape
    images = np.random.default_rng(count).random((count, channels, height, width), np.float32)
    found = ArrayImages(images, Form(None, color)).take(np.arange(count))
    assert found.shape == (count, {"gray": 1, "rgb": 3, None: channels}[color], height, width)
    assert 0 <= found.min() <= found.max() <= 1
    if color == "gray" and channels == 3:
        np.testing.assert_allclose(
            found[:, 0], np.einsum("nchw,c->nhw", images, [0.299, 0.587, 0.114]), atol=1e-6
        )
        again = recolored(recolored(found, "rgb"), "gray")
        np.testing.assert_allclose(again, found, atol=1e-6)  # gray is the gray of its own color


def test_other_channels_have_no_color(tmp_path):
    with pytest.raises(ConfigError, match=r"data.color is 'gray', but images have 4 channels: leave it out"):
        load(tmp_path, {"x": np.zeros((40, 4, 6, 6), np.uint8), "y": LABELS}, color="gray")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"sides": (0, 0)}, "data.resize is 0: use 1 to 8,192 pixels"),
        ({"sides": (4, 9_000)}, r"data.resize is \(4, 9000\): use 1 to 8,192"),
        ({"color": "red"}, "data.color is 'red': use gray or rgb"),
    ],
)
def test_a_form_that_is_none_is_refused(form, said):
    with pytest.raises(ConfigError, match=said):
        Form(**form)


def test_arrays_are_resized_as_pictures_are(tmp_path):
    """The same pixels in a PNG and in an array, up to the 8-bit rounding of the former."""
    from PIL import Image

    levels = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    (tmp_path / "png").mkdir()
    for number, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / "png" / f"{number}.png")
    config = {"pool_images": 0, "heldout_images": 4, "resize": (8, 10)}
    pictures = load_data(DataConfig(path=str(tmp_path / "png"), **config), 0, own_target=True)
    arrays = load(tmp_path, {"x": levels}, **{"pool": 0, "heldout": 4, "resize": (8, 10)})
    assert arrays.image_shape == (3, 8, 10)
    np.testing.assert_allclose(arrays.heldout_images, pictures.heldout_images, atol=1.01 / 255)
    assert arrays.prepared == pictures.prepared


def test_data_sets_by_name_are_resized_too():
    data = load_data(DataConfig(resize=16, color="rgb"), 0)
    assert data.image_shape == (3, 16, 16)
    assert data.classes == tuple("0123456789")
