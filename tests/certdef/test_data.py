import numpy as np
import pytest

from certdef.config.job import ConfigError, DataConfig
from certdef.data.sets import as_images, load_data


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
        (np.full((4, 8, 8), np.nan), "nan"),
        (np.zeros((4, 8, 8), np.int64), "dtype int64"),
    ],
)
def test_unusable_images_are_named(images, message):
    with pytest.raises(ConfigError, match=message):
        as_images(images)


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


@pytest.mark.parametrize(("labels", "missing"), [(np.arange(40) % 3 + 1, 0), (np.arange(40) % 3 * 5, 1)])
def test_labels_that_leave_out_a_class_are_refused_where_a_target_is_trained(labels, missing, tmp_path):
    np.savez(tmp_path / "mine.npz", images=np.zeros((40, 8, 8), np.uint8), labels=labels)
    config = DataConfig(
        name="npz", path=str(tmp_path / "mine.npz"), target_images=10, pool_images=10, heldout_images=20
    )
    with pytest.raises(ConfigError, match=f"no image is of class {missing}: number the classes from 0"):
        load_data(config, 0)
    classes = load_data(config, 0, own_target=True).classes
    assert len(classes) == labels.max() + 1, "another target's classes are its own"
