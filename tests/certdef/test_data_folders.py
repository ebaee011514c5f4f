"""A folder of pictures becomes a data set, or one clear line."""

import os

import numpy as np
import pytest
from PIL import Image

from certdef.config.job import ConfigError, DataConfig
from certdef.data.sets import OWN_ANSWERS, load_data, load_source

SIDES = (12, 20)


def picture(path, level: int, sides=SIDES, mode: str = "RGB"):
    """A picture of one level, in which nothing is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, sides[::-1], (level,) * 3 if mode == "RGB" else level)
    image.save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


def load(path, pool: int, heldout: int, seed: int = 0, **options):
    config = DataConfig(path=str(path), pool_images=pool, heldout_images=heldout, **options)
    return load_data(config, seed, own_target=True)


@pytest.fixture
def zoo(tmp_path):
    """Four pictures each of dog (level 200 and more), cat (100) and ant (0), of four kinds; a level is a picture."""
    for start, name in ((200, "dog"), (100, "cat"), (0, "ant")):
        for number, kind in enumerate(("jpg", "png", "webp", "bmp")):
            picture(tmp_path / "zoo" / name / f"{number}.{kind}", start + 10 * number)
    return tmp_path / "zoo"


def test_subfolders_are_the_classes_in_sorted_order(zoo):
    data = load(zoo, 5, 7)
    assert (data.name, data.classes, data.image_shape) == ("zoo", ("ant", "cat", "dog"), (3, *SIDES))
    assert data.by_name
    assert data.labeled
    levels = data.heldout_images.mean(axis=(1, 2, 3)) * 255
    np.testing.assert_array_equal(data.heldout_labels, (levels + 30) // 100)
    every = np.concatenate([data.pool, data.heldout_images]).mean(axis=(1, 2, 3)) * 255
    expected = [start + 10 * number for start in (0, 100, 200) for number in range(4)]
    np.testing.assert_allclose(sorted(every), expected, atol=1)  # each picture once


def test_the_split_depends_on_the_seed_alone(zoo):
    first, again, other = (load(zoo, 5, 7, seed) for seed in (0, 0, 1))
    assert first.heldout_digest == again.heldout_digest != other.heldout_digest


def test_hidden_files_and_what_computers_leave_are_no_pictures(zoo):
    (zoo / ".DS_Store").write_text("x")
    (zoo / "cat" / ".hidden.png").write_text("x")
    (zoo / "cat" / "Thumbs.db").write_text("x")
    (zoo / "cat" / "desktop.ini").write_text("x")
    (zoo / ".git").mkdir()
    (zoo / "__MACOSX").mkdir()
    (zoo / "README.md").write_text("beside the folders it is of no class")
    assert load(zoo, 5, 7).classes == ("ant", "cat", "dog")


def test_pictures_deeper_in_a_class_belong_to_it(zoo):
    picture(zoo / "cat" / "siamese" / "1.png", 150)
    assert len(load_source(DataConfig(path=str(zoo))).images) == 13


def test_folders_that_are_numbers_are_the_labels(tmp_path):
    for number in (10, 2, 7):
        picture(tmp_path / str(number) / "a.png", 10 * number)
    data = load(tmp_path, 1, 2)
    assert set(data.heldout_labels) <= {10, 2, 7}
    np.testing.assert_array_equal(data.heldout_labels * 10, np.rint(data.heldout_images[:, 0, 0, 0] * 255))
    assert not data.by_name
    with pytest.raises(
        ConfigError, match="labels are 2, 7, 10 up to 10, 3 in all: number the classes from 0"
    ):
        load_data(DataConfig(path=str(tmp_path), target_images=1, pool_images=1, heldout_images=1), 0)


def test_a_class_without_a_picture_keeps_its_place(zoo):
    (zoo / "bee").mkdir()
    assert load(zoo, 5, 7).classes == ("ant", "bee", "cat", "dog")


def test_pictures_without_folders_have_no_labels(zoo):
    data = load(zoo / "cat", 1, 3)
    assert not data.labeled
    assert data.classes == ()
    assert data.remarks == {"right": OWN_ANSWERS}
    with pytest.raises(ConfigError, match="cat has no labels, and a target that is trained here needs some"):
        load_data(DataConfig(path=str(zoo / "cat"), target_images=1, pool_images=1, heldout_images=1), 0)


def test_labels_can_be_ignored(zoo):
    data = load(zoo, 5, 7, labels="ignore")
    assert not data.labeled
    assert not data.by_name
    assert set(data.heldout_labels) == {-1}


@pytest.mark.parametrize("names", [("train", "test"), ("training", "val"), ("Train", "Validation")])
def test_train_and_test_are_parts_and_no_classes(tmp_path, names):
    for name, level in zip(names, (0, 200), strict=True):
        for number, kind in enumerate(("cat", "dog")):
            for each in range(3):
                picture(tmp_path / name / kind / f"{each}.png", level + 10 * number)
    data = load(tmp_path, 6, 6)
    assert data.classes == ("cat", "dog")
    assert data.pool.max() < 0.1
    assert data.heldout_images.min() > 0.7
    np.testing.assert_array_equal(data.heldout_labels, data.heldout_images[:, 0, 0, 0] > 0.8)


def test_train_alone_is_a_class_like_any_other(tmp_path):
    picture(tmp_path / "train" / "a.png", 0)
    picture(tmp_path / "bus" / "a.png", 10)
    assert load(tmp_path, 1, 1).classes == ("bus", "train")


def test_links_to_pictures_and_folders_are_followed(zoo, tmp_path):
    links = tmp_path / "links"
    (links / "cat").mkdir(parents=True)
    (links / "cat" / "a.png").symlink_to(zoo / "cat" / "1.png")
    (links / "dog").symlink_to(zoo / "dog")
    assert len(load_source(DataConfig(path=str(links))).images) == 5


def test_a_circle_of_links_is_named(zoo):
    (zoo / "cat" / "again").symlink_to(zoo / "cat")
    with pytest.raises(ConfigError, match=r"cat/again' is a link to a folder that it is in"):
        load(zoo, 5, 7)


def test_color_is_kept_where_any_picture_has_it(zoo):
    picture(zoo / "cat" / "gray.png", 150, mode="L")
    assert load(zoo, 5, 8).image_shape == (3, *SIDES)
    assert load(zoo, 5, 8, color="gray").image_shape == (1, *SIDES)


def test_gray_pictures_stay_gray_unless_color_is_wanted(tmp_path):
    for number in range(4):
        picture(tmp_path / "a" / f"{number}.png", 50 * number, mode="L")
    assert load(tmp_path, 2, 2).image_shape == (1, *SIDES)
    data = load(tmp_path, 2, 2, color="rgb")
    assert data.image_shape == (3, *SIDES)
    assert np.array_equal(data.pool[:, 0], data.pool[:, 2])
    assert data.prepared == "as rgb, before the noise"


def test_different_sizes_are_named_with_the_option(zoo):
    picture(zoo / "cat" / "tall.png", 150, sides=(30, 10))
    with pytest.raises(ConfigError) as error:
        load(zoo, 5, 8)
    assert "2 different sizes, height x width: 12 x 20 (" in str(error.value)
    assert "30 x 10 (" in str(error.value)
    assert "cat/tall.png" in str(error.value)
    assert "--data.resize, e.g. 10 (short side" in str(error.value)
    assert "\n" not in str(error.value)
    data = load(zoo, 5, 8, resize=8)
    assert data.image_shape == (3, 8, 8)
    assert data.remarks["prepared"].startswith("scaled to cover 8 x 8")
    assert load(zoo, 5, 8, resize=(6, 9)).image_shape == (3, 6, 9)


def test_a_picture_that_lies_on_its_side_has_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a" / "0.png", 10, sides=(12, 20))
    Image.new("RGB", (12, 20)).save(
        tmp_path / "a" / "1.jpg", exif=exif
    )  # 20 high, 12 wide, turned by a quarter
    assert load(tmp_path, 1, 1).image_shape == (3, 12, 20)


WRONG = {
    "empty": (lambda path: None, "is empty: give a folder of pictures"),
    "empty classes": (lambda path: (path / "cat").mkdir(), "has no picture in cat"),
    "pictures beside folders": (
        lambda path: (picture(path / "cat" / "a.png", 0), picture(path / "b.png", 0)),
        r"has pictures \(b.png, 1 in all\) beside the folders of classes \(cat\)",
    ),
    "folders of folders": (
        lambda path: [picture(path / "a" / kind / "x.png", 0) for kind in ("cat", "dog")],
        r"has folders of folders \(a has cat, dog\): give the folder whose subfolders are the classes",
    ),
    "a table": (
        lambda path: (picture(path / "b.png", 0), (path / "labels.csv").write_text("path,label\n")),
        "has the table 'labels.csv': give the table, --data.path ",
    ),
    "no picture": (
        lambda path: (picture(path / "cat" / "a.png", 0), (path / "cat" / "notes.txt").write_text("x")),
        r"cat/notes.txt' is no JPEG, PNG, WebP or BMP picture: take it away",
    ),
}


@pytest.mark.parametrize(("make", "said"), WRONG.values(), ids=WRONG.keys())
def test_another_kind_of_folder_is_one_line(tmp_path, make, said):
    make(tmp_path)
    with pytest.raises(ConfigError, match=said) as error:
        load(tmp_path, 1, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jpg", "it is one picture, give its folder"),
        ("a.zip", "give a folder of pictures"),
        ("a.txt", "is no data set"),
    ],
)
def test_another_file_is_one_line(tmp_path, name, said):
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / name, 1, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_one_line(zoo):
    (zoo / "cat").chmod(0)
    with pytest.raises(ConfigError, match="can't be listed"):
        load(zoo, 1, 1)


def test_too_few_pictures_say_what_there_is(zoo):
    with pytest.raises(
        ConfigError,
        match=r"data.pool_images is 797, but zoo has only 5 images left for it, of 12 in all: .*heldout_images 7",
    ):
        load(zoo, 797, 7)
    with pytest.raises(ConfigError, match=r"data.heldout_images is 400, but zoo has only 12 images left"):
        load(zoo, 1, 400)
    assert len(load(zoo, 0, 12).heldout_images) == 12


def test_only_the_images_of_the_job_are_decoded_and_kept(zoo):
    """A large folder costs what is taken of it."""
    whole = sorted(zoo.rglob("*.png"))
    for path in whole:
        path.write_bytes(path.read_bytes()[:-8])  # their headers stay good
    said = []
    for seed in range(6):
        try:
            said.append(str(load(zoo, 0, 1, seed).heldout_images.shape))
        except ConfigError as error:
            said.append(str(error))
    assert "(1, 3, 12, 20)" in said  # no broken one was taken
    assert not any("\n" in each for each in said)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_decoded(zoo, monkeypatch):
    import psutil

    class Little:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(
        ConfigError, match=r"12 images of shape \(3, 12, 20\) need .* lower data.pool_images or data.resize"
    ):
        load(zoo, 5, 7)


def test_images_without_a_target_of_ones_own_say_that_one_is_trained_on_them(zoo):
    with pytest.raises(
        ConfigError,
        match=r"heldout_images is 400, but .*; a target is trained here, unless --target.uri",
    ):
        load_data(DataConfig(name="files", path=str(zoo)), 0)
