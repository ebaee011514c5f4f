"""Images that a caller has in Python."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from certdef.config.job import ConfigError, DataConfig
from certdef.data.objects import source_of
from certdef.data.pixels import Form
from certdef.data.sets import split

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
EXPECTED = (LEVELS / np.float32(255)).transpose(0, 3, 1, 2)
LABELS = [2, 0, 1, 1, 0, 2]


class Pairs(Dataset):
    """As torchvision's data sets are: pictures and numbers, names beside them."""

    classes = ("dog", "ant", "cat")

    def __len__(self):
        return len(LEVELS)

    def __getitem__(self, index):
        if not 0 <= index < len(LEVELS):
            raise IndexError(index)
        return Image.fromarray(LEVELS[index]), LABELS[index]


def dictionaries():
    return [{"image": torch.from_numpy(EXPECTED[number]), "label": LABELS[number]} for number in range(6)]


FORMS = {
    "array": (LEVELS, LABELS),
    "array in chw": (EXPECTED, np.array(LABELS)),
    "tensor": (torch.from_numpy(EXPECTED), torch.tensor(LABELS)),
    "tensor that takes gradients": (torch.from_numpy(EXPECTED).requires_grad_(), LABELS),
    "pictures": ([Image.fromarray(image) for image in LEVELS], LABELS),
    "arrays": (list(LEVELS), LABELS),
    "data set of pictures": (Pairs(), None),
    "data set of tensors": (TensorDataset(torch.from_numpy(EXPECTED), torch.tensor(LABELS)), None),
    "dictionaries": (dictionaries(), None),
}


@pytest.mark.parametrize(("images", "labels"), FORMS.values(), ids=FORMS.keys())
def test_the_same_images_whatever_holds_them(images, labels):
    source = source_of(images, labels)
    np.testing.assert_array_equal(source.labels, LABELS)
    np.testing.assert_allclose(source.images.take(np.arange(6)), EXPECTED, atol=1e-7)
    assert source.image_shape == (3, 5, 7)


def test_labels_are_optional():
    assert source_of(LEVELS).labels is None
    assert source_of([Image.fromarray(image) for image in LEVELS]).labels is None
    assert source_of(TensorDataset(torch.from_numpy(EXPECTED))).labels is None


def test_names_come_with_the_data_set_or_the_caller():
    assert source_of(Pairs()).classes == Pairs.classes
    named = source_of(LEVELS, ["dog", "ant", "ant", "dog", "ant", "ant"])
    assert (named.classes, named.by_name) == (("ant", "dog"), True)
    given = source_of(LEVELS, LABELS, ["a", "b", "c"])
    assert (given.classes, given.by_name) == (("a", "b", "c"), False)


def test_what_was_given_is_not_changed_and_shares_no_memory():
    images = EXPECTED.copy()
    source = source_of(images)
    taken = source.images.take(np.arange(6))
    taken[:] = 0
    np.testing.assert_array_equal(images, EXPECTED)
    np.testing.assert_array_equal(source.images.take(np.arange(6)), EXPECTED)


def test_a_form_is_given_to_each():
    mixed = [Image.new("L", (9, 8), 100), Image.new("RGB", (30, 12), (100, 100, 100))]
    with pytest.raises(
        ConfigError, match=r"image 1 has shape \(3, 12, 30\), the first one \(1, 8, 9\): .*data.resize"
    ):
        source_of(mixed)
    source = source_of(mixed, form=Form((4, 4), "rgb"))
    np.testing.assert_allclose(source.images.take(np.arange(2)), 100 / 255, atol=1e-6)


def test_a_job_splits_them():
    config = DataConfig(pool_images=2, heldout_images=4)
    data = split(source_of(Pairs(), name="pairs"), config, 0, own_target=True)
    assert (data.name, len(data.pool), len(data.heldout_images)) == ("pairs", 2, 4)
    where = [np.flatnonzero((image == EXPECTED).all(axis=(1, 2, 3)))[0] for image in data.heldout_images]
    np.testing.assert_array_equal(data.heldout_labels, np.array(LABELS)[where])


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (iter([]), None, "give an array, a tensor, a list of pictures"),
        ("folder", None, "give an array, a tensor"),
        ([], None, "images is empty"),
        (LEVELS, [0, 1], "labels have shape"),
        ([{"pixels": LEVELS[0]}], None, "has the keys pixels: call the image 'image'"),
        ([LEVELS[0].astype(int)], None, "image 0: images have dtype int64"),
        (EXPECTED * 255, None, "range from"),
    ],
)
def test_what_is_no_data_set_is_one_line(images, labels, said):
    with pytest.raises(ConfigError, match=said) as error:
        source_of(images, labels)
    assert "\n" not in str(error.value)


def test_labels_of_some_images_alone_are_refused():
    items = [(image, label) for image, label in zip(LEVELS, [*LABELS[:4], None, None], strict=True)]
    with pytest.raises(ConfigError, match="2 of 6 images have no label, the first one at 4"):
        source_of(items)


@pytest.mark.parametrize("pixels", [np.float32, np.int32])
def test_pictures_whose_mode_does_not_say_what_is_white_are_refused(pixels):
    """As Image.fromarray makes them of floats in [0, 1], or of levels that are no bytes: they would be black."""
    scale = 1 if pixels is np.int32 else 255
    pictures = [Image.fromarray((level[:, :, 0] / scale).astype(pixels)) for level in LEVELS]
    assert pictures[0].mode in ("F", "I")
    with pytest.raises(ConfigError, match=r"image 0 has the mode [FI].*give its pixels as an array"):
        source_of(pictures)
