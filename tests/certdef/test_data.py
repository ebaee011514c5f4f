import io
import zipfile

import numpy as np
import pytest

from certdef.config.job import ConfigError, DataConfig
from certdef.data.arrays import read_images
from certdef.data.pixels import as_images
from certdef.data.sets import load_data


def rows(images):
    return {image.tobytes() for image in images}


def test_digits_are_split_without_overlap():
    splits = load_data(DataConfig(), seed=0)
    assert splits.image_shape == (1, 8, 8)
    assert (len(splits.target_images), len(splits.pool), len(splits.heldout_images)) == (600, 797, 400)
    assert splits.pool.dtype == np.float32
    assert splits.pool.min() >= 0
    assert splits.pool.max() <= 1
    held, owner, pool = rows(splits.heldout_images), rows(splits.target_images), rows(splits.pool)
    # the data set itself holds no duplicate images, so the parts must not meet
    assert not held & owner
    assert not held & pool
    assert not owner & pool


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (load_data(DataConfig(), seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.pool, again.pool)
    assert not np.array_equal(first.pool, other.pool)


def test_moved_copies_join_the_pool_alone():
    plain, more = (load_data(DataConfig(pool_copies=copies), seed=0) for copies in (0, 2))
    count = len(plain.pool)
    assert len(more.pool) == 3 * count
    assert np.array_equal(more.pool[:count], plain.pool)
    assert np.array_equal(more.heldout_images, plain.heldout_images)
    assert np.array_equal(more.pool, load_data(DataConfig(pool_copies=2), seed=0).pool)
    assert not np.array_equal(more.pool[count : 2 * count], more.pool[2 * count :])
    assert more.pool_digest != plain.pool_digest

    # each copy is the image, moved by a pixel at most (an eighth of eight), half of the time mirrored
    padded = np.pad(plain.pool, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    shifts = [padded[..., row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    same = np.stack([(more.pool[count : 2 * count] == each).all((1, 2, 3)) for each in shifts]).any(0)
    padded = padded[..., ::-1]
    shifts = [padded[..., row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    mirrored = np.stack([(more.pool[count : 2 * count] == each).all((1, 2, 3)) for each in shifts]).any(0)
    assert (same | mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6  # a few digits are symmetric


def test_fashion_mnist_holds_out_its_own_test_set(data_root):
    config = DataConfig(
        name="fashion-mnist", root=str(data_root), target_images=200, pool_images=300, heldout_images=100
    )
    splits = load_data(config, seed=0)
    assert splits.image_shape == (1, 28, 28)
    assert len(splits.classes) == 10
    assert not rows(splits.target_images) & rows(splits.pool)
    assert set(splits.heldout_labels) <= set(range(10))


@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 8, 8, 1), (40, 1, 8, 8), (40, 8, 8, 3), (40, 3, 8, 8)])
def test_npz_takes_the_usual_layouts(tmp_path, shape):
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=levels, labels=np.arange(40) % 4)
    config = DataConfig(
        name="npz", path=str(tmp_path / "mine.npz"), target_images=10, pool_images=10, heldout_images=20
    )
    splits = load_data(config, seed=0)
    assert splits.image_shape == (3 if 3 in shape else 1, 8, 8)
    assert splits.classes == ("0", "1", "2", "3")
    assert 0 <= splits.pool.min() <= splits.pool.max() <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8), np.float32), "give at least one"),
        (np.zeros((4, 8), np.float32), r"shape \(4, 8\)"),
        (np.full((4, 8, 8), 255.0), "range from 255 to 255.*divide"),
        (np.full((4, 8, 8), np.nan), r"no number \(NaN\): leave such images out"),
        (
            np.full((4, 8, 8), np.nextafter(np.float32(1), 2)),
            r"to 1\.0000001.*: scale .* and clip",
        ),  # a rounding error shows
        (np.zeros((4, 8, 8), np.int64), "dtype int64"),
    ],
)
def test_unusable_images_are_named(images, message):
    with pytest.raises(ConfigError, match=message):
        as_images(images)


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [
        ((5, 32, 32, 3), (5, 3, 32, 32)),
        ((5, 32, 32, 4), (5, 4, 32, 32)),
        ((5, 4, 32, 32), (5, 4, 32, 32)),
        ((5, 64, 64, 13), (5, 13, 64, 64)),
        ((5, 13, 64, 64), (5, 13, 64, 64)),
        ((5, 28, 28, 2), (5, 2, 28, 28)),
        ((5, 3, 2, 2), (5, 3, 2, 2)),
        ((5, 8, 8, 8), None),
        ((5, 8, 64, 8), None),
        ((32, 32, 3), None),
        ((32, 32, 4), None),
    ],
)
def test_the_channels_are_found_or_asked_for(shape, becomes):
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if becomes is None:
        with pytest.raises(
            ConfigError, match=r"images have shape \(.*(add the array layout|perhaps of one image)"
        ):
            as_images(levels)
        return
    images = as_images(levels)
    assert images.shape == becomes
    last = shape != becomes
    np.testing.assert_array_equal(
        images[:, 0], (levels[..., 0] if last else levels[:, 0]).astype(np.float32) / 255
    )


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_a_file_may_say_where_its_channels_are(tmp_path, layout):
    levels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "cubes.npz", images=levels, labels=np.arange(30) % 3, layout=layout)
    images = read_images(str(tmp_path / "cubes.npz"), (8, 8, 8))
    expected = levels if layout == "chw" else levels.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(images, expected.astype(np.float32) / 255)
    with pytest.raises(ConfigError, match="layout is 'nchw': use chw or hwc"):
        as_images(levels, "nchw")


def test_a_rounding_error_above_1_is_shown():
    images = np.zeros((1, 1, 4, 4), np.float32)
    images[0, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    with pytest.raises(ConfigError, match=r"range from 0 to 1.00000012: scale"):
        as_images(images)


LABELS = {
    "from 1": (np.arange(40) % 4 + 1, r"labels are 1, 2, 3 ... up to 4, 4 in all: number the classes from 0"),
    "a gap": (np.arange(40) % 3 * 5, r"labels are 0, 5, 10 up to 10, 3 in all: number the classes from 0"),
    "huge": (np.arange(40) % 2 * 2**40, r"up to 1099511627776, 2 in all"),
    "unsigned": (np.full(40, 2**64 - 1, np.uint64), r"up to 18446744073709551615, 1 in all"),
}


@pytest.mark.parametrize(("labels", "message"), LABELS.values(), ids=LABELS.keys())
def test_labels_that_skip_classes_are_refused_or_named(tmp_path, labels, message):
    images = np.random.default_rng(0).random((40, 8, 8), np.float32)
    config = DataConfig(
        name="npz", path=str(tmp_path / "mine.npz"), target_images=10, pool_images=10, heldout_images=20
    )
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    with pytest.raises(ConfigError, match=message):
        load_data(config, 0)
    names = np.array([f"class {index}" for index in range(11)])
    np.savez(tmp_path / "mine.npz", images=images, labels=labels, class_names=names)
    if labels.max() < 11:
        splits = load_data(config, 0)
        assert splits.classes == tuple(names)
        assert set(splits.heldout_labels) <= set(labels)
    else:
        with pytest.raises(ConfigError, match="class_names lists 11 names, but labels go up to"):
            load_data(config, 0)


def test_an_npz_that_promises_too_much_is_one_line(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 8, 8)}
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, header)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", raw.getvalue())
        archive.writestr("labels.npy", raw.getvalue())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "huge.npz").read_bytes()[:-30])
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "array.npy", np.zeros((4, 8, 8)))
    for name in ("huge.npz", "cut.npz", "text.npz", "array.npy"):
        with pytest.raises(ConfigError, match=r"can't be read") as caught:
            load_data(DataConfig(name="npz", path=str(tmp_path / name)), 0)
        assert "\n" not in str(caught.value)


def test_npz_errors(tmp_path):
    def load(path):
        return load_data(DataConfig(name="npz", path=path), 0)

    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        load(None)
    with pytest.raises(ConfigError, match="is no file"):
        load(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "wrong.npz", images=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match="labels"):
        load(str(tmp_path / "wrong.npz"))
    np.savez(tmp_path / "short.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(3, int))
    with pytest.raises(ConfigError, match="expected 4 whole numbers"):
        load(str(tmp_path / "short.npz"))
    np.savez(tmp_path / "pickled.npz", images=np.array([{}, {}], dtype=object), labels=np.zeros(2, int))
    with pytest.raises(ConfigError, match="can't be read"):
        load(str(tmp_path / "pickled.npz"))
