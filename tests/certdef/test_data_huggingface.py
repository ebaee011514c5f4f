"""Data sets that `datasets` saved to disk, written by the library itself."""

import numpy as np
import pytest
from PIL import Image

from certdef.config.job import ConfigError, DataConfig
from certdef.data.objects import source_of
from certdef.data.sets import load_data, load_source, split

datasets = pytest.importorskip("datasets")

NAMES = ["dog", "ant", "cat"]


def pictures(start: int, count: int):
    return [Image.new("RGB", (7, 5), (start + number,) * 3) for number in range(count)]


def data_set(start: int = 0, count: int = 9, **columns):
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    content = {"image": pictures(start, count), "label": [number % 3 for number in range(count)]} | columns
    return datasets.Dataset.from_dict(
        content, datasets.Features(kinds | {name: datasets.Value("int64") for name in columns})
    )


def load(path, pool: int = 3, heldout: int = 6, **options):
    config = DataConfig(path=str(path), pool_images=pool, heldout_images=heldout, **options)
    return load_data(config, 0, own_target=True)


def numbers(data):
    return np.rint(data.heldout_images[:, 0, 0, 0] * 255).astype(int)


def test_pictures_and_class_labels(tmp_path):
    data_set().save_to_disk(tmp_path / "zoo")
    data = load(tmp_path / "zoo")
    assert (data.name, data.classes, data.by_name, data.image_shape) == ("zoo", tuple(NAMES), True, (3, 5, 7))
    np.testing.assert_array_equal(data.heldout_labels, numbers(data) % 3)
    assert load(tmp_path / "zoo", resize=4, color="gray").image_shape == (1, 4, 4)


@pytest.mark.parametrize("test", ["test", "validation"])
def test_splits_are_parts(tmp_path, test):
    datasets.DatasetDict({"train": data_set(), test: data_set(90, 6)}).save_to_disk(tmp_path / "zoo")
    data = load(tmp_path / "zoo")
    assert numbers(data).min() == 90
    assert np.rint(data.pool.max() * 255) < 9
    np.testing.assert_array_equal(data.heldout_labels, numbers(data) % 3)


def test_other_splits_are_listed(tmp_path):
    datasets.DatasetDict({"a": data_set(), "b": data_set()}).save_to_disk(tmp_path / "zoo")
    with pytest.raises(ConfigError, match=r"has the splits a, b: give one, --data.path .*zoo/a"):
        load(tmp_path / "zoo")
    assert load(tmp_path / "zoo" / "a").labeled


def test_arrays_and_names(tmp_path):
    levels = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8)
    kinds = datasets.Features(
        {"pixels": datasets.Array2D((6, 6), "uint8"), "class": datasets.Value("string")}
    )
    content = {"pixels": list(levels), "class": [NAMES[number % 3] for number in range(9)]}
    datasets.Dataset.from_dict(content, kinds).save_to_disk(tmp_path / "zoo")
    data = load(tmp_path / "zoo")
    assert data.classes == ("ant", "cat", "dog")
    names = [data.classes[label] for label in data.heldout_labels]
    assert names == [NAMES[number % 3] for number in numbers(data)]


def test_columns_are_named_where_they_do_not_tell(tmp_path):
    data_set().rename_columns({"label": "species"}).cast_column(
        "species", datasets.Value("int64")
    ).save_to_disk(tmp_path / "zoo")
    assert not load(tmp_path / "zoo").labeled
    data = load(tmp_path / "zoo", columns=("image", "species"))
    np.testing.assert_array_equal(data.heldout_labels, numbers(data) % 3)
    with pytest.raises(
        ConfigError, match=r"data.columns is \['photo'\], but the data set has the columns image, species"
    ):
        load(tmp_path / "zoo", columns=("photo",))


def test_a_missing_label_and_a_broken_picture_are_named(tmp_path):
    data_set().cast_column("label", datasets.ClassLabel(names=NAMES)).map(
        lambda row, number: {"label": None if number == 4 else row["label"]}, with_indices=True
    ).save_to_disk(tmp_path / "gap")
    with pytest.raises(ConfigError, match="the column 'label' has rows without a label"):
        load(tmp_path / "gap")
    broken = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no picture", "path": None}]}, datasets.Features({"image": datasets.Image()})
    )
    broken.save_to_disk(tmp_path / "broken")
    with pytest.raises(ConfigError, match="'row 0' is no JPEG, PNG"):
        load(tmp_path / "broken")


def test_a_damaged_folder_is_one_line(tmp_path):
    data_set().save_to_disk(tmp_path / "zoo")
    for path in (tmp_path / "zoo").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError, match=r"can't be read .*save it again with save_to_disk") as error:
        load_source(DataConfig(path=str(tmp_path / "zoo")))
    assert "\n" not in str(error.value)


def test_a_data_set_in_memory_is_the_same(tmp_path):
    data_set().save_to_disk(tmp_path / "zoo")
    config = DataConfig(pool_images=3, heldout_images=6)
    found = split(source_of(data_set()), config, 0, own_target=True)
    assert found.heldout_digest == load(tmp_path / "zoo").heldout_digest
    assert found.classes == tuple(NAMES)
